"""`tunewise plan`: what each method would train, need and be bounded by, before anything is loaded or trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tunewise.cli import options
from tunewise.cli.narrow import narrowed, room
from tunewise.errors import SpecError

_SPARED = ("share", "weights", "optimizer", "kept")
"""Columns that a narrow terminal does without, the first of them first."""
_WIDE = 1000
"""Columns of a pipe, which has room for all."""


def plan(
    model: Annotated[
        str | None, options.source(help="Folder with a config.json, hub id, or package:MODULE/path.")
    ] = None,
    methods: Annotated[str | None, options.methods(help="Names with commas.  [default: all of the catalog]")] = None,
    rank: options.Rank = None,
    targets: options.Targets = None,
    task: Annotated[
        str | None, options.source(help="text, image or causal.  [default: what the model was made for]")
    ] = None,
    labels: Annotated[int, options.source(help="Classes that the task head tells apart.", min=1)] = 2,
    samples: Annotated[int | None, options.source(help="Training examples, for the theory's bounds.", min=1)] = None,
    batch_size: Annotated[int | None, options.training(help="[default: 16]", min=1)] = None,
    length: Annotated[int | None, options.training(help="Tokens of an example.  [default: 128]", min=1)] = None,
    dtype: Annotated[Literal["fp32", "bf16"], options.training(help="Of the frozen weights and activations.")] = "fp32",
    device: Annotated[Literal["cpu", "cuda"], options.training(help="Whose attention kernels are meant.")] = "cpu",
    checkpointing: Annotated[
        bool, options.training("--gradient-checkpointing", help="Layers are computed again in the backward.")
    ] = False,
    spec: Annotated[Path | None, typer.Option(help="Spec file of a comparison; flags given here win.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """What each method would train, need in memory and on disk, and be bounded by: from the model's config alone."""
    content = _content(spec)
    asked = _asked(content, methods, rank, targets)
    model_spec = _model(content, model)
    training = content.get("training") or {}
    data = content.get("data") if isinstance(content.get("data"), dict) else {}
    question: dict[str, Any] = {
        "methods": asked,
        "task": task or content.get("task"),
        "labels": labels,
        "samples": samples or (data or {}).get("train_size"),
        "batch": batch_size or training.get("batch_size", 16),
        "length": length or training.get("max_length"),
        "dtype": dtype,
        "device": device,
        "checkpointing": checkpointing,
    }
    from tunewise.preview import kept

    key = kept.key_of(model_spec, question)
    rows = kept.read(key) if key else None
    if rows is None:
        rows = _forecast(model_spec, question)
        if key:
            kept.write(key, rows)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        _show(rows, question)


def _content(spec: Path | None) -> dict[str, Any]:
    if spec is None:
        return {}
    from tunewise.spec import load_yaml

    return load_yaml(spec)


def _model(content: dict[str, Any], flag: str | None) -> Any:
    from tunewise.spec import ModelSpec, parse

    said = content.get("model")
    said = {"path": said} if isinstance(said, str) else dict(said or {})
    if flag:
        said = {"path": flag}
    if not said.get("path"):
        raise SpecError("'model' is missing: give --model or a --spec file")
    return parse(ModelSpec, said)


def _asked(content: dict[str, Any], methods: str | None, rank: int | None, targets: str | None) -> list[dict[str, Any]]:
    """The methods as a comparison would read them: short forms spread out, names checked."""
    from tunewise.catalog import CATALOG
    from tunewise.spec import StudySpec, parse

    given = {key: content[key] for key in ("methods", "rank", "alpha", "targets") if content.get(key) is not None}
    given |= {key: value for key, value in (("methods", methods), ("rank", rank)) if value is not None}
    if targets is not None:
        given["targets"] = targets
    listed = "methods" in given
    given.setdefault("methods", ",".join(CATALOG))
    checked = parse(StudySpec, {"model": "-", "data": "-", **given})
    found = [m.model_dump(mode="json", exclude={"learning_rate"}) for m in checked.methods]
    return found if listed else [{**m, "optional": True} for m in found]


def _forecast(model: Any, question: dict[str, Any]) -> list[dict[str, Any]]:
    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from tunewise.models.load import load_config
    from tunewise.preview.forecast import forecast
    from tunewise.spec import MethodSpec
    from tunewise.tasks.build import detect_model_task, task_class

    config = load_config(model)
    task = task_class(question["task"] or detect_model_task(config))
    head = task.make_head([f"label {i}" for i in range(question["labels"])])
    wanted = []
    for method in question["methods"]:
        optional = method.get("optional") and head.pretrained and method["name"] == "head"
        if not optional:  # a language model has no task head to train alone
            wanted.append(MethodSpec(**{k: v for k, v in method.items() if k != "optional"}))
    settings = {key: question[key] for key in ("batch", "samples", "dtype", "device", "checkpointing")}
    longest = getattr(config, "max_position_embeddings", None)
    settings["length"] = question["length"] or min(128, longest if isinstance(longest, int) and longest > 0 else 128)
    return [row.model_dump(mode="json") for row in forecast(config, task, head, wanted, **settings)]


def _show(rows: list[dict[str, Any]], question: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from tunewise.number_format import memory, short_count
    from tunewise.preview.machine import beyond_tensors

    console = Console()
    with_bound = any(row["information_bound"] is not None for row in rows)
    names = ["trained", "share", "memory", "weights", "optimizer", "kept", "disk", *(["bound"] if with_bound else [])]
    lines = [["method", *names]]
    for row in rows:
        cells = [
            short_count(row["trainable_parameters"]),
            f"{row['trainable_share']:.3%}",
            *(memory(row[key]) for key in ("memory_bytes", "weight_bytes", "optimizer_bytes", "activation_bytes")),
            memory(row["disk_bytes"]),
        ]
        if with_bound:
            cells.append("" if row["information_bound"] is None else f"{row['information_bound']:.3g}")
        lines.append([row["method"], *cells])
    (heads, *shown), left_out = narrowed(lines, _SPARED, room())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in heads:
        if name == "method":
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for cells in shown:
        table.add_row(*cells)
    Console(width=room() or _WIDE).print(table)
    if left_out:
        console.print(left_out, style="dim", highlight=False)
    length = question["length"] or "at most 128"
    size = f"batches of {question['batch']} x {length} tokens, {question['dtype']}, AdamW"
    chains = any(row["link_bytes"] for row in rows)
    links = "A chain is counted in its last link, which holds W0's values under the links before it. " if chains else ""
    console.print(
        f"\nmemory: of the tensors alive at the worst moment of a step, {size}. kept: between forward and backward. "
        f"disk: the adapter. {links}{beyond_tensors(question['device'])}",
        highlight=False,
    )
    if with_bound:
        console.print(
            f"bound: on the expected gap with {question['samples']:,} examples, sigma 1, 32 bits (arXiv 2606.13767, "
            "Theorem 7). Far above any loss, as here, it says nothing of the size of the gap; it orders the methods.",
            highlight=False,
        )
        ranks = next((row for row in rows if row["rank_for_existence"] is not None), None)
        if ranks:
            console.print(
                f"ranks (arXiv 2402.11867, lazy training): a solution of rank {ranks['rank_for_existence']} exists; "
                "from "
                f"{ranks['rank_without_spurious_minima']} on no spurious minima; by the later, weaker demand from "
                f"{ranks['rank_for_generic_features']} on (arXiv 2605.03724).",
                highlight=False,
            )
