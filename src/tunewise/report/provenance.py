"""Where the numbers come from: "How this was measured", from what the records hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tunewise import number_format as numbers
from tunewise.catalog import get_method
from tunewise.spec import StudySpec
from tunewise.store.records import CostReport, RunRecord
from tunewise.text_format import pluralize

Facts = Mapping[str, Sequence[str]]
"""Heading -> its lines."""


def subject(comparison: StudySpec, records: Sequence[RunRecord]) -> str:
    """What was compared, in one line."""
    data = next((r.data for r in records if r.data), None)
    sizes = f" ({data.train:,} training, {data.validation:,} validation, {data.test:,} test items)" if data else ""
    linearised = ", of the network linearised at its pretrained weights" if comparison.training.linearised else ""
    return (
        f"{pluralize(len(comparison.methods), 'method')} × {pluralize(len(comparison.seeds), 'seed')} on "
        f"{_short_path(comparison.model.path)} with {_short_path(comparison.data.path)}{sizes}, "
        f"{pluralize(comparison.training.epochs, 'epoch')} each{linearised}."
    )


def facts(comparison: StudySpec, records: Sequence[RunRecord], costs: CostReport | None) -> Facts:
    """How the comparison was made, heading by heading."""
    results = [r.results for r in records if r.status == "done" and r.results]
    found = {
        "Model": [_with_digest(comparison.model.path, comparison.model.digest), *_model(records)],
        "Data": [_with_digest(comparison.data.path, comparison.data.digest), *_data(comparison, records)],
        "Methods": _methods(comparison, records),
        "Training": _training(comparison, records),
        "Epoch kept": list(dict.fromkeys(result.selected_by for result in results)),
        "Gap": [
            f"mean test loss − mean train loss, nats, over the whole test split and {source}, in evaluation mode, at "
            "the epoch kept"
            for source in gap_sources(records)
        ],
        "Seeds and intervals": _statistics(comparison),
        "Costs": _costs(costs),
        "Saved adapters": _checks(records),
        "Machines and versions": list(dict.fromkeys(_machine(record) for record in records)),
        "Specification": [f"{comparison.id}; that of each run is in its run.json"],
    }
    return {heading: lines for heading, lines in found.items() if lines}


def gap_sources(records: Sequence[RunRecord]) -> list[str]:
    """The training examples that gaps are taken from, in words, each once."""
    return list(dict.fromkeys(record.gap_source for record in records if record.gap_source))


def _model(records: Sequence[RunRecord]) -> list[str]:
    model = next((r.model for r in records if r.model), None)
    return [f"{model.parameters:,} parameters, {model.head:,} of them in the task head"] if model else []


def _data(comparison: StudySpec, records: Sequence[RunRecord]) -> list[str]:
    data = next((r.data for r in records if r.data), None)
    if data is None:
        return []
    classes = f", {len(data.labels)} classes" if data.labels else ""
    split = f"train {data.train:,}, validation {data.validation:,}, test {data.test:,} items{classes}"
    notes = dict.fromkeys(note for record in records if record.data for note in record.data.notes)
    return [f"{split}; split seed {comparison.data.split_seed}; the test split was read once, after training", *notes]


def _methods(comparison: StudySpec, records: Sequence[RunRecord]) -> list[str]:
    lines = []
    for spec in comparison.methods:
        method = get_method(spec.name)
        parts = [f"{spec.label}: {method.summary}" if method.summary else spec.label]
        own = [record for record in records if record.spec.method.label == spec.label]
        if method.adapts:
            alpha = f", alpha {spec.alpha:g}" if spec.alpha is not None else ""
            targets = spec.targets if isinstance(spec.targets, str) else ", ".join(spec.targets)
            parts.append(f"rank {spec.rank}{alpha}, on {targets}" if method.takes_rank else f"on {targets}")
            model = next((record.model for record in own if record.model), None)
            if model is not None:
                parts.append(f"{len(model.layers)} layers, {model.adapter:,} adapter parameters")
                parts += [model.coverage.describe()] if model.coverage else []
        rates = dict.fromkeys(numbers.rate(record.spec.learning_rate) for record in own)
        parts.append(f"learning rate {' / '.join(rates)}")
        if spec.weight_decay is not None:
            parts.append(f"weight decay {spec.weight_decay:g}")
        lines.append("; ".join([*parts, method.source] if method.source else parts))
    return lines


def _training(comparison: StudySpec, records: Sequence[RunRecord]) -> list[str]:
    t = comparison.training
    size = next((f", {r.data.input_size}" for r in records if r.data and r.data.input_size), "")
    lines = [
        f"{t.epochs} epochs, batch size {t.batch_size}, AdamW with weight decay {t.weight_decay:g}, {t.schedule} "
        f"schedule after {100 * t.warmup_ratio:g} % warm-up, gradients clipped at {t.max_grad_norm:g}{size}"
    ]
    if t.linearised:
        lines.append(
            "trained and evaluated: the network's linearisation at the pretrained weights, without dropout; an adapter "
            "that is loaded elsewhere changes the network itself, with other outputs"
        )
    shared = [record.processes for record in records if record.processes > 1]
    if shared:
        lines.append(
            f"{len(shared)} of {len(records)} runs by {max(shared)} processes, each with a share of every batch"
        )
    return lines


def _statistics(comparison: StudySpec) -> list[str]:
    seeds = ", ".join(map(str, comparison.seeds))
    if len(comparison.seeds) == 1:
        return [f"one seed ({seeds}): there is no interval, and no difference can be tested"]
    return [
        f"seeds {seeds}; 95 % t intervals of the mean over seeds",
        f"against {comparison.reference}: paired t tests over seeds, Holm-corrected over the methods",
        "places and ties: Tukey's studentized range over all pairs with pooled variance (Welch, Games and Howell where "
        "variances differ), and the pair's own paired t test, one-sided at 95 %",
        "runs that diverged or failed are in no mean; they are listed above",
    ]


def _costs(costs: CostReport | None) -> list[str]:
    if costs is None:
        return ["step time and memory were not measured"]
    steps = sorted({row.step.steps for row in costs.rows})
    counts = " to ".join(dict.fromkeys(map(str, (steps[0], steps[-1])))) if steps else "no"
    return [
        f"a separate probe on {costs.device}: one batch of {costs.batch}, steps of the methods interleaved, {counts} "
        "steps each after warm-up, medians with 95 % intervals",
        "kept for backward: exact bytes that autograd saves for one batch",
        "peak memory: the allocator's on a GPU; on a CPU the resident memory of a new process for each method, "
        "libraries included",
    ]


def _checks(records: Sequence[RunRecord]) -> list[str]:
    checks = [r.check for r in records if r.status == "done" and r.check]
    if not checks:
        return []
    worst = max(check.max_logit_difference for check in checks)
    loaders = " or ".join(dict.fromkeys(check.loader for check in checks))
    return [f"{pluralize(len(checks), 'run')} loaded again with {loaders}: logits differ by at most {worst:.1e}"]


def _machine(record: RunRecord) -> str:
    e = record.environment
    versions = ", ".join(f"{name} {version}" for name, version in e.versions.items())
    return f"{e.device}; {e.platform}; Python {e.python}; tunewise {e.tunewise}; {versions}"


def _with_digest(path: str, digest: str | None) -> str:
    return f"{path} (sha256 {digest[:16]}…)" if digest else path


def _short_path(path: str) -> str:
    """The last part of a path; of one in a package, the part before a bare 'model' or 'data'."""
    if path.startswith("package:"):
        path = re.sub(r"/(model|data)(\.zip)?$", "", path.removeprefix("package:"))
    return path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or path
