"""`tunewise inspect`: what an adapter did to each weight: spectra and intruder dimensions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from tunewise.cli import flags
from tunewise.cli.locating import run_or_adapter
from tunewise.errors import SpecError
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, StudySpec, parse
from tunewise.text_format import join_names

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tunewise.inspecting import Inspection
    from tunewise.measures.intruders.scaled import ScaledIntruders

_TITLES = ("layer", "shape", "rank", "eff.", "stable", "norm %", "out ×", "in ×", "intruders", "min |cos|")


@flags.spec_flags(StudySpec, only=("data", "task", "text", "text_pair", "label"))
def inspect(
    given: flags.Given,
    adapter: flags.RunOrAdapter | None = None,
    /,
    *,
    base: Annotated[str | None, Parameter(help="Pretrained model; the one that the run or adapter names.")] = None,
    model_b: Annotated[str | None, Parameter(help="Instead of an adapter: a fine-tuned model, against --base.")] = None,
    top_k: Annotated[str, Parameter(help="Singular vectors of each weight: a number, or all.")] = "10",
    threshold: Annotated[
        float,
        Parameter(validator=Number(gt=0, lte=1), help="A vector with a largest |cos| below this is an intruder."),
    ] = 0.6,
    scale: Annotated[
        str | None,
        Parameter(help="Evaluate the loss with the intruders' singular values times these factors: 0,0.5,1,2."),
    ] = None,
    runs: flags.RunsFolder = Path("runs"),
    as_json: flags.Json = False,
) -> None:
    """Analyse an adapter, or the difference of two models."""
    if adapter is not None:
        adapter = run_or_adapter(adapter, runs)
    count, factors = _top_k(top_k), _factors(scale)
    data = parse(DataSpec, given["data"]) if given.get("data") else None

    from rich.console import Console

    with Console(stderr=True).status("starting ...") as status:
        from tunewise.inspecting import inspect as analyse

        result = analyse(
            adapter,
            base=base,
            model_b=model_b,
            top_k=count,
            threshold=threshold,
            scale=factors,
            data=data,
            task=TASKS.check(given["task"]) if "task" in given else None,
            on_phase=lambda phase: status.update(f"{phase} ..."),
        )
    if as_json:
        print(json.dumps(result.as_data(), indent=1, allow_nan=False))
    else:
        _show(result, Console(highlight=False))


def _top_k(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise SpecError(f"--top-k {text}: give a number from 1 on, or all")
    return int(text)


def _factors(text: str | None) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise SpecError(f"--scale {text}: give numbers with commas, as in 0,0.5,1,2") from None
    if not all(0 <= factor < float("inf") for factor in factors):
        raise SpecError(f"--scale {text}: factors are numbers from 0 on")
    return factors


def _show(result: Inspection, console: Console) -> None:
    from tunewise.cli.tables import rich_table

    console.print(result.of, style="bold", markup=False, soft_wrap=True)
    console.print(f"base {result.base}, {result.family}\n", style="dim", markup=False, soft_wrap=True)
    console.print(rich_table(_TITLES, _layer_rows(result)), markup=False)
    console.print("", *_explanations(result), sep="\n", markup=False)
    thresholds = [t / 10 for t in range(1, 11)]
    console.print("\nIntruders by threshold", style="bold")
    counts = ["vectors", *(f"{result.intruders.count(t):,}" for t in thresholds)]
    console.print(rich_table(["below", *(f"{t:g}" for t in thresholds)], [counts]))
    if result.scaled_intruders:
        console.print("\nIntruders scaled", style="bold")
        console.print(_scaled_table(result.scaled_intruders), markup=False)


def _layer_rows(result: Inspection) -> Iterator[list[str]]:
    """A row for each layer, and one for all together."""
    from tunewise.measures.section_parts import short_layers
    from tunewise.measures.spectrum.section import over_chance

    spectrum, intruders = result.spectrum, result.intruders
    for (name, layer), short in zip(spectrum.layers.items(), short_layers(list(spectrum.layers))):
        top = intruders.layers[name]
        yield [
            short,
            "×".join(map(str, layer.shape)),
            str(layer.rank),
            *_numbers(layer.effective_rank, layer.stable_rank, layer.relative_norm and 100 * layer.relative_norm),
            *_numbers(over_chance(layer, layer.energy_left, 0), over_chance(layer, layer.energy_right, 1)),
            f"{top.count(intruders.threshold)} / {len(top.cosines)}",
            f"{min(top.cosines):.3f}",
        ]
    norm = spectrum.relative_norm and 100 * spectrum.relative_norm
    totals = _numbers(spectrum.effective_rank, spectrum.stable_rank, norm)
    lowest = min(min(layer.cosines) for layer in intruders.layers.values())
    counts = f"{intruders.count()} / {intruders.vectors}"
    yield ["all", str(len(spectrum.layers)), "", *totals, "", "", counts, f"{lowest:.3f}"]


def _numbers(*values: float | None) -> list[str]:
    return [f"{value:.2f}" if value is not None else "–" for value in values]


def _explanations(result: Inspection) -> list[str]:
    """What the columns mean, and what else was trained."""
    intruders = result.intruders
    names = [name for name in result.left_out if name not in result.retrained.tokens]
    spaces = _range([layer.top for layer in result.spectrum.layers.values()], "d")
    baselines = _range([layer.baseline for layer in intruders.layers.values()], ".3f")
    lines = [
        "eff., stable: effective and stable rank of dW; norm %: of W0's Frobenius norm; out ×, in ×: energy of "
        f"dW in W0's top {spaces} output and input directions, over a random dW's.",
        f"intruders: of {'all' if intruders.top_k == 'all' else f'the top {intruders.top_k}'} left singular vectors of "
        f"W0 + dW, those whose largest |cos| with W0's is below {intruders.threshold:g}. A random direction has about "
        f"{baselines}.",
    ]
    if names:
        lines.append(f"Changed modules that are not linear layers, left out: {join_names(names, 3)}.")
    return [*lines, *result.retrained.describe()]


def _range(values: Sequence[float], form: str) -> str:
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(ends)


def _scaled_table(scaled: Sequence[ScaledIntruders]) -> Table:
    """Intruders left and the loss at each factor."""
    from tunewise.cli.tables import rich_table

    columns = ["factor", "intruders left"]
    rows = [[f"{s.factor:g}", str(s.count)] for s in scaled]
    if any(s.loss is not None for s in scaled):
        metrics = list(scaled[0].metrics)
        columns += ["loss, nats", *(metric.replace("_", " ") for metric in metrics)]
        for row, s in zip(rows, scaled):
            row += [f"{s.loss or 0.0:.4f}", *(f"{s.metrics[metric]:.4f}" for metric in metrics)]
    return rich_table(columns, rows)
