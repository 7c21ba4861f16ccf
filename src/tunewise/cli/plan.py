"""`tunewise plan`: what each method would train and need, and its bounds, before anything is loaded or trained."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.cli.tables import aligned
from tunewise.errors import SpecError
from tunewise.spec import MethodSpec, ModelSpec, StudySpec, load_yaml, merge_specs, parse

_Row = dict[str, Any]
"""What is forecast for a method, as the JSON has it."""


@flags.spec_flags(StudySpec, only=("model", "task", "methods", "rank", "targets", "batch_size"))
def plan(
    given: flags.Given,
    *,
    labels: Annotated[flags.Count, Parameter(help="Classes of the task head.")] = 2,
    samples: Annotated[flags.Count | None, Parameter(help="Training examples, for the theory's bounds.")] = None,
    length: Annotated[flags.Count | None, Parameter(help="Tokens of an example; at most 128 unless given.")] = None,
    dtype: Annotated[Literal["fp32", "bf16"], Parameter(help="Of the frozen weights and activations.")] = "fp32",
    device: Annotated[Literal["cpu", "cuda"], Parameter(help="Device that the attention kernels run on.")] = "cpu",
    gradient_checkpointing: Annotated[
        flags.Switch, Parameter(help="Activations are computed again in the backward pass.")
    ] = False,
    spec: flags.SpecFile = None,
    as_json: flags.Json = False,
) -> None:
    """Forecast from the model's config alone."""
    content = merge_specs(load_yaml(spec) if spec else {}, given)
    model = content.get("model")
    if not model:
        raise SpecError("'model' is missing: give --model or a --spec file")
    model = parse(ModelSpec, {"path": model} if isinstance(model, str) else model)
    training = content.get("training") or {}
    data = content.get("data") if isinstance(content.get("data"), dict) else {}
    size = (data or {}).get("train_size")
    question: flags.Given = {
        "methods": _methods(content),
        "task": content.get("task"),
        "labels": labels,
        "samples": samples or (size if isinstance(size, int) else None),  # a share says nothing without the data
        "batch": training.get("batch_size", 16),
        "length": length or training.get("max_length"),
        "dtype": dtype,
        "device": device,
        "checkpointing": gradient_checkpointing,
    }
    rows = _forecast(model, question)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _show(rows, question)


def _methods(content: flags.Given) -> list[_Row]:
    """The methods as a comparison would read them; the whole catalog where none is named."""
    from tunewise.catalog import CATALOG

    settings = {key: content[key] for key in ("methods", "rank", "alpha", "targets") if content.get(key) is not None}
    checked = parse(StudySpec, {"model": "-", "data": "-", "methods": ",".join(CATALOG), **settings})
    methods = [m.model_dump(mode="json", exclude={"learning_rate"}) for m in checked.methods]
    return methods if "methods" in settings else [{**m, "optional": True} for m in methods]


def _forecast(model: ModelSpec, question: flags.Given) -> list[_Row]:
    from tunewise.models.load import load_config
    from tunewise.study.forecast import forecast_methods
    from tunewise.tasks.build import detect_model_task, task_class

    config = load_config(model)
    task = task_class(question["task"] or detect_model_task(config))
    head = task.make_head([f"label {i}" for i in range(question["labels"])])
    methods = []
    for method in question["methods"]:
        optional = method.get("optional") and head.pretrained and method["name"] == "head"
        if not optional:  # a language model has no task head to train alone
            methods.append(MethodSpec(**{k: v for k, v in method.items() if k != "optional"}))
    settings = {key: question[key] for key in ("batch", "samples", "dtype", "device", "checkpointing")}
    longest = getattr(config, "max_position_embeddings", None)
    settings["length"] = question["length"] or min(128, longest if isinstance(longest, int) and longest > 0 else 128)
    return [row.model_dump(mode="json") for row in forecast_methods(config, task, head, methods, **settings)]


def _show(rows: list[_Row], question: flags.Given) -> None:
    from rich.console import Console

    with_bound = any(row["information_bound"] is not None for row in rows)
    titles = ["method", "trained", "share", "memory", "weights", "optimizer", "kept", "disk"]
    titles += ["bound"] if with_bound else []
    console = Console(highlight=False)
    print(*aligned([titles, *(_cells(row, with_bound) for row in rows)], right=range(1, len(titles))), sep="\n")
    for paragraph in _explanations(rows, question, with_bound):
        console.print(paragraph)


def _cells(row: _Row, with_bound: bool) -> list[str]:
    from tunewise.number_format import memory, short_count

    cells = [
        row["method"],
        short_count(row["trainable_parameters"]),
        f"{row['trainable_share']:.3%}",
        *(memory(row[key]) for key in ("memory_bytes", "weight_bytes", "optimizer_bytes", "activation_bytes")),
        memory(row["disk_bytes"]),
    ]
    if with_bound:
        cells.append("" if row["information_bound"] is None else f"{row['information_bound']:.3g}")
    return cells


def _explanations(rows: list[_Row], question: flags.Given, with_bound: bool) -> list[str]:
    from tunewise.study.forecast import describe_overhead

    size = f"batches of {question['batch']} x {question['length'] or 'at most 128'} tokens, {question['dtype']}, AdamW"
    links = ""
    if any(row["link_bytes"] for row in rows):
        links = "A chain is counted in its last link, which holds W0's values under the links before it. "
    paragraphs = [
        f"\nmemory: of the tensors alive at the peak of a step, {size}. kept: between forward and backward. "
        f"disk: the adapter. {links}{describe_overhead(question['device'])}"
    ]
    for words in dict.fromkeys(row["coverage"] for row in rows if row["coverage"]):
        methods = [row["method"] for row in rows if row["coverage"] == words]
        paragraphs.append(f"adapted by {', '.join(methods)}: {words}.")
    for words in dict.fromkeys(row["start"] for row in rows if row["start"]):
        paragraphs.append(f"{', '.join(row['method'] for row in rows if row['start'] == words)} {words}.")
    if without := [row["method"] for row in rows if row["rank"] is None and row["method"].startswith("peft:")]:
        paragraphs.append(f"{', '.join(without)}: no rank.")
    if with_bound:
        paragraphs.append(
            f"bound: on the expected gap with {question['samples']:,} examples, sigma 1, 32 bits (arXiv 2606.13767, "
            "Theorem 7). Far above any loss, as here, it does not give the size of the gap; it orders the methods."
        )
        ranks = next((row for row in rows if row["rank_for_existence"] is not None), None)
        if ranks:
            paragraphs.append(
                f"ranks (arXiv 2402.11867, lazy training): a solution of rank {ranks['rank_for_existence']} exists; "
                f"from {ranks['rank_without_spurious_minima']} on no spurious minima; by the later, weaker condition "
                f"from {ranks['rank_for_generic_features']} on (arXiv 2605.03724)."
            )
    return paragraphs
