"""`tunewise plan`: what each method would train and need, and its bounds, before anything is loaded or trained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from tunewise.catalog import CATALOG
from tunewise.cli import flags
from tunewise.cli.tables import aligned
from tunewise.errors import SpecError
from tunewise.spec import StudySpec, load_yaml, merge_specs, parse

if TYPE_CHECKING:
    from tunewise.study.forecast import MethodForecast
    from tunewise.study.forecast_step import StepSettings


_MODEL = ("model", "dtype", "quantization")
_TRAINING = ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "optimizer")


@flags.spec_flags(StudySpec, only=(*_MODEL, "task", "methods", "rank", "targets", *_TRAINING))
def plan(
    given: flags.Given,
    *,
    labels: Annotated[flags.Count, Parameter(help="Classes of the task head.")] = 2,
    samples: Annotated[flags.Count | None, Parameter(help="Training examples, for the theory's bounds.")] = None,
    length: Annotated[
        flags.Count | None, Parameter(help="Tokens of an example; the max_length of runs unless given.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, Parameter(help="Device of the runs; this machine's unless given.")
    ] = None,
    spec: flags.SpecFile = None,
    as_json: flags.Json = False,
) -> None:
    """Forecast from the model's config alone."""
    content = merge_specs(load_yaml(spec) if spec else {}, given)
    if not content.get("model"):
        raise SpecError("'model' is missing: give --model or a --spec file")
    keys = ("model", "methods", "rank", "alpha", "targets", "training")
    study = parse(
        StudySpec, {"data": "-", "methods": ",".join(CATALOG)} | {k: content[k] for k in keys if k in content}
    )
    data = content.get("data")
    size = data.get("train_size") if isinstance(data, dict) else None
    samples = samples or (size if isinstance(size, int) else None)  # a share says nothing without the data

    import torch

    from tunewise.models.load import load_config
    from tunewise.study.forecast import forecast_methods, step_settings
    from tunewise.tasks.build import detect_model_task, task_class, with_length, with_targets

    config = load_config(study.model)
    task = task_class(content.get("task") or detect_model_task(config))
    head = task.make_head([f"label {i}" for i in range(labels)])
    methods = [with_targets(method, task) for method in study.methods]
    if "methods" not in content:  # all that there are for this model
        unfit = (["head"] if head.pretrained else []) + (["fft"] if study.model.quantization != "none" else [])
        methods = [method for method in methods if method.name not in unfit]
    longest = getattr(config, "max_position_embeddings", None) or task.default_length
    is_given = "max_length" in study.training.model_fields_set
    usual = with_length(study.training, task).max_length
    settings: StepSettings = {
        **step_settings(study.model, study.training, device or ("cuda" if torch.cuda.is_available() else "cpu")),
        "batch": study.training.batch_size,
        "length": length or (usual if is_given else min(usual, longest)),
    }
    rows = forecast_methods(config, task, head, methods, samples=samples, **settings)
    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in rows], indent=1))
    else:
        _show(rows, settings, samples)


def _show(rows: list[MethodForecast], settings: StepSettings, samples: int | None) -> None:
    from rich.console import Console

    from tunewise.number_format import memory, short_count

    titles = ["method", "trained", "share", "memory", "weights", "optimizer", "kept", "disk"]
    lines = []
    for row in rows:
        sizes = (row.memory_bytes, row.weight_bytes, row.optimizer_bytes, row.activation_bytes, row.disk_bytes)
        share = f"{row.trainable_share:.3%}"
        lines.append([row.method, short_count(row.trainable_parameters), share, *map(memory, sizes)])
    if any(row.information_bound is not None for row in rows):
        titles.append("bound")
        for line, row in zip(lines, rows):
            line.append("" if row.information_bound is None else f"{row.information_bound:.3g}")
    print(*aligned([titles, *lines], right=range(1, len(titles))), sep="\n")
    console = Console(highlight=False)
    for paragraph in _explanations(rows, settings, samples if "bound" in titles else None):
        console.print(paragraph)


def _explanations(rows: list[MethodForecast], settings: StepSettings, samples: int | None) -> list[str]:
    from tunewise.study.forecast import describe_overhead

    size = f"batches of {settings['batch']} x {settings['length']} tokens, {_describe_settings(settings)}"
    links = ""
    if any(row.link_bytes for row in rows):
        links = "A chain is counted in its last link, which holds W0's values under the links before it. "
    paragraphs = [
        f"\nmemory: of the tensors alive at the peak of a step, {size}. kept: between forward and backward. "
        f"disk: the adapter. {links}{describe_overhead(settings['device'])}"
    ]
    for words in dict.fromkeys(row.coverage for row in rows if row.coverage):
        methods = [row.method for row in rows if row.coverage == words]
        paragraphs.append(f"adapted by {', '.join(methods)}: {words}.")
    for words in dict.fromkeys(row.start for row in rows if row.start):
        paragraphs.append(f"{', '.join(row.method for row in rows if row.start == words)} {words}.")
    if without := [row.method for row in rows if row.rank is None and row.method.startswith("peft:")]:
        paragraphs.append(f"{', '.join(without)}: no rank.")
    if samples is not None:
        paragraphs.append(
            f"bound: on the expected gap with {samples:,} examples, sigma 1, 32 bits (arXiv 2606.13767, "
            "Theorem 7). Far above any loss, as here, it does not give the size of the gap; it orders the methods."
        )
        ranks = next((row for row in rows if row.rank_for_existence is not None), None)
        if ranks:
            paragraphs.append(
                f"ranks (arXiv 2402.11867, lazy training): a solution of rank {ranks.rank_for_existence} exists; "
                f"from {ranks.rank_without_spurious_minima} on no spurious minima; by the later, weaker condition "
                f"from {ranks.rank_for_generic_features} on (arXiv 2605.03724)."
            )
    return paragraphs


def _describe_settings(settings: StepSettings) -> str:
    """'bfloat16, weights in nf4, gradient checkpointing, adamw_8bit'."""
    quantization = settings["quantization"]
    parts: list[str] = [settings["dtype"]]
    parts += [f"weights in {quantization}"] if quantization != "none" else []
    parts += ["gradient checkpointing"] if settings["checkpointing"] else []
    return ", ".join([*parts, settings["optimizer"]])
