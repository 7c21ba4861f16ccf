"""Where every number comes from: the list of runs, and in words how they were made and measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from tunewise import number_format as numbers
from tunewise.catalog import get_method
from tunewise.report.rows import metric_name
from tunewise.spec import StudySpec
from tunewise.store.records import CostReport, DataFacts, RunRecord, TuningReport
from tunewise.text_format import pluralize


@dataclass(frozen=True)
class RunLine:
    """One run in the list of runs; texts as shown."""

    id: str
    method: str
    seed: int
    status: str
    numbers: dict[str, str]
    error: str
    folder: str
    link: str


@dataclass(frozen=True)
class Fact:
    """A heading of "How this was measured" with its sentences, as a paragraph or, where `listed`, one a line."""

    name: str
    sentences: list[str]
    listed: bool = False


def subject(comparison: StudySpec, records: Sequence[RunRecord]) -> str:
    """What was compared, in one line."""
    methods, seeds = len(comparison.methods), len(comparison.seeds)
    data = _data(records)
    sizes = ""
    if data:
        sizes = (
            f" ({data.train:,} training, {data.validation:,} validation and {data.test:,} test items{_classes(data)})"
        )
    return (
        f"{pluralize(methods, 'method')} × {pluralize(seeds, 'seed')} on "
        f"{_last(comparison.model.path)} with {_last(comparison.data.path)}{sizes}, "
        f"{pluralize(comparison.training.epochs, 'epoch')} each"
        f"{', of the network linearised at its pretrained weights' if comparison.training.linearised else ''}."
    )


def run_columns(metric: str, share: bool = True) -> list[str]:
    unit = ", %" * share
    return [f"test {metric_name(metric)}{unit}", "test loss", "train loss", "gap", "epoch kept", "training time"]


def run_lines(records: Sequence[RunRecord], folders: Mapping[str, str], metric: str) -> list[RunLine]:
    """Every run, finished or not, in the order of `records`."""
    columns = run_columns(metric, _is_share(records, metric))
    lines = []
    for record in records:
        results = record.results
        values = [numbers.MISSING] * 5
        if results:
            main = results.test.metrics.get(metric)
            values = [
                numbers.MISSING if main is None else numbers.score(main, metric not in results.lower_is_better),
                numbers.nats(results.test.loss),
                numbers.nats(results.train.loss),
                numbers.nats(results.gap),
                str(results.selected_epoch),
            ]
        values.append(numbers.seconds(record.seconds))
        folder = folders.get(record.id, "")
        lines.append(
            RunLine(
                id=record.id,
                method=record.spec.method.label,
                seed=record.spec.seed,
                status=record.status,
                numbers=dict(zip(columns, values)),
                error=record.error or "",
                folder=folder,
                link=_link(folder),
            )
        )
    return lines


def facts(
    comparison: StudySpec,
    records: Sequence[RunRecord],
    costs: CostReport | None,
    tuning: TuningReport | None = None,
) -> list[Fact]:
    """How the comparison was made, heading by heading; only what the records say."""
    finished = [r for r in records if r.status == "done" and r.results]
    found = [
        Fact("Model", [_with_digest(comparison.model.path, comparison.model.digest), *_parameters(finished)]),
        Fact(
            "Data",
            [_with_digest(comparison.data.path, comparison.data.digest), *_splits(comparison, records)],
        ),
        Fact("Notes on the data", list(dict.fromkeys(n for r in records if r.data for n in r.data.notes)), True),
        Fact("Methods", _methods(comparison, records), True),
        Fact("Training", [_training(comparison, records)]),
        Fact("Computation", _computation(records)),
        Fact("Learning rates", [*_rates(records), *tuning_words(tuning)]),
        Fact("Selection", _selection(finished)),
        Fact(
            "Gap",
            [
                "Mean test loss − mean train loss in nats, both over the whole split, in evaluation mode, with the "
                "weights of the epoch kept.",
            ],
        ),
        Fact("Seeds and intervals", [_seeds(comparison)]),
        Fact("Costs", _costs(costs)),
        Fact("Saved adapters", _checks(finished)),
        Fact("Machine and versions", _machines(records), True),
        Fact("Comparison", [f"Specification {comparison.id}; each run's folder holds its own, in run.json."]),
    ]
    return [fact for fact in found if fact.sentences]


def _splits(comparison: StudySpec, records: Sequence[RunRecord]) -> list[str]:
    data = _data(records)
    if data is None:
        return []
    return [
        f"Train {data.train:,}, validation {data.validation:,}, test {data.test:,} items{_classes(data)}; "
        f"the same split in every run (split seed {comparison.data.split_seed}). The test split was read once, after "
        f"training."
    ]


def _classes(data: DataFacts) -> str:
    return f", {len(data.labels)} classes" if data.labels else ""


def _is_share(records: Sequence[RunRecord], metric: str) -> bool:
    return all(metric not in r.results.lower_is_better for r in records if r.results)


def _parameters(finished: Sequence[RunRecord]) -> list[str]:
    model = next((r.model for r in finished if r.model), None)
    if model is None:
        return []
    return [f"{model.parameters:,} parameters, of which {model.head:,} in the task head."]


def _methods(comparison: StudySpec, records: Sequence[RunRecord]) -> list[str]:
    said = []
    for spec in comparison.methods:
        method = get_method(spec.name)
        parts = [f"{spec.label}: {method.summary}" if method.summary else spec.label]
        if method.adapts:
            scale = f", alpha {spec.alpha:g}" if spec.alpha is not None else ""
            targets = spec.targets if isinstance(spec.targets, str) else ", ".join(spec.targets)
            parts.append(f"rank {spec.rank}{scale}, on {targets}")
            facts = next((r.model for r in records if r.model and r.spec.method.label == spec.label), None)
            if facts:
                parts.append(f"{len(facts.layers)} layers, {facts.adapter:,} adapter parameters")
        if method.source:
            parts.append(method.source)
        said.append("; ".join(parts) + ".")
    return said


def _training(comparison: StudySpec, records: Sequence[RunRecord]) -> str:
    t = comparison.training
    linearised = (
        " What was trained and scored is the network's linearisation at the pretrained weights (the NTK regime), "
        "dropout off; an adapter loaded elsewhere puts its dW into the network itself, whose outputs are others."
        if t.linearised
        else ""
    )
    return (
        f"{t.epochs} epochs, batch size {t.batch_size}, AdamW with weight decay {_decays(comparison)}, {t.schedule} "
        f"schedule after {100 * t.warmup_ratio:g} % warm-up, gradients clipped at {t.max_grad_norm:g}"
        f"{_input_size(records)}.{linearised}"
    )


def _decays(comparison: StudySpec) -> str:
    own = [f"{m.label} {m.weight_decay:g}" for m in comparison.methods if m.weight_decay is not None]
    return f"{comparison.training.weight_decay:g}" + (f" ({', '.join(own)})" if own else "")


def _input_size(records: Sequence[RunRecord]) -> str:
    sizes = [record.data.input_size for record in records if record.data]
    return f", {sizes[0]}" if sizes and sizes[0] else ""


def _rates(records: Sequence[RunRecord]) -> list[str]:
    rates: dict[str, dict[float, None]] = {}
    for record in records:
        rates.setdefault(record.spec.method.label, {})[record.spec.learning_rate] = None
    if not rates:
        return []
    said = ", ".join(f"{method} {' / '.join(map(numbers.rate, used))}" for method, used in rates.items())
    return [f"As used, one rate a method: {said}."]


def tuning_words(tuning: TuningReport | None) -> list[str]:
    """How the rates were found, and where methods did not get the same."""
    if tuning is None:
        return ["They were given or are the methods' defaults; none was searched for here."]
    searched = [row for row in tuning.methods if not row.given]
    given = [row.method for row in tuning.methods if row.given]
    budgets = sorted({len(row.trials) for row in searched})
    trials = " or ".join(map(str, budgets))
    stop = (
        " A trial past half of its epochs was stopped where it was worse than the median of those before it and no "
        "longer getting better."
        if tuning.settings.stop == "median"
        else ""
    )
    middle = "rate that was given, or else its default" if tuning.settings.given else "default"
    said = [
        f"Each was searched for with {trials} trials, a factor of {tuning.settings.factor:g} from one rate to the next "
        f"around the method's {middle}, at seed {tuning.settings.seed}, which none of the runs below has; the best "
        f"{tuning.objective} decided, and the trials' test scores had no say.{stop}"
    ]
    if given:
        said.append(f"Given, not tuned: {', '.join(given)}; the budgets are unequal there.")
    return said


def _selection(finished: Sequence[RunRecord]) -> list[str]:
    how = dict.fromkeys(r.results.selected_by for r in finished if r.results)
    return [f"The epoch kept is the one with the {' / '.join(how)}."] if how else []


def _seeds(comparison: StudySpec) -> str:
    seeds = ", ".join(map(str, comparison.seeds))
    if len(comparison.seeds) == 1:
        return f"One seed ({seeds}): there is no interval, and no difference can be tested."
    return (
        f"Seeds {seeds}. Intervals are 95 % t intervals of the mean over seeds. Methods are compared with "
        f"{comparison.reference} seed by seed (paired t test), Holm-corrected over the methods. Places, and who is as "
        "good as the best, come from all pairs at once: Tukey's studentized range with the spread over seeds pooled "
        "over the methods, which assumes that they scatter alike. Where they plainly do not, a method stands on its "
        "own spread (Welch, Games and Howell), and no pair is told apart whose own paired t test does not see it, "
        "one-sided at 95 %. Runs that diverged or failed enter no mean and are listed above."
    )


def _costs(costs: CostReport | None) -> list[str]:
    if costs is None:
        return ["Step time and memory were not measured; trained parameters stand for cost."]
    steps = sorted({row.step.steps for row in costs.rows})
    counted = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}" if steps else "no"
    return [
        f"A separate probe on {costs.device}: one batch of {costs.batch or _texts(costs)}, methods timed in turns, "
        f"{counted} steps each after warm-up; medians with 95 % intervals. Kept for the backward are the exact "
        "bytes that autograd holds for one batch. Peak memory is the allocator's on a GPU; on a CPU it is the resident "
        "memory of a fresh process a method, libraries included, that gives back what it frees.",
        f"Energy is the difference of the {costs.energy_source} over at least a second of steps, twice."
        if costs.energy_source
        else "Energy was not measured: this machine keeps no counter that may be read.",
    ]


def _texts(costs: CostReport) -> str:
    """The batch of a report from before there were images."""
    return f"{costs.batch_size} texts ({costs.tokens:,} tokens with padding, at most {costs.max_length} each)"


def _checks(finished: Sequence[RunRecord]) -> list[str]:
    checks = [r.check for r in finished if r.check]
    if not checks:
        return []
    worst = max(check.max_logit_difference for check in checks)
    loaders = " or ".join(dict.fromkeys(check.loader for check in checks))
    return [
        f"{len(checks)} of {len(finished)} finished runs were saved, loaded again with {loaders} and compared with the "
        f"model in memory: logits differ by at most {worst:.1e}."
    ]


def _computation(records: Sequence[RunRecord]) -> list[str]:
    """Runs that several processes trained together."""
    counts = Counter(record.processes for record in records if record.processes > 1)
    return [
        f"{count} of {len(records)} runs were trained by {processes} processes, each with a share of every batch; equal "
        "to a run of one process up to the rounding of fp32."
        for processes, count in counts.items()
    ]


def _machines(records: Sequence[RunRecord]) -> list[str]:
    said = []
    for record in records:
        e = record.environment
        versions = ", ".join(f"{name} {version}" for name, version in e.versions.items())
        said.append(f"{e.device}; {e.platform}; Python {e.python}; tunewise {e.tunewise}; {versions}.")
    return list(dict.fromkeys(said))


def _data(records: Sequence[RunRecord]) -> DataFacts | None:
    return next((r.data for r in records if r.data), None)


def _with_digest(path: str, digest: str | None) -> str:
    return f"{path} (sha256 {digest[:16]}…)." if digest else f"{path}."


def _last(path: str) -> str:
    """The name that a person would use: of a path inside a package, what stands before a bare 'model' or 'data'."""
    if path.startswith("package:"):
        path = re.sub(r"/(model|data)(\.zip)?$", "", path.removeprefix("package:"))
    return path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or path


def _link(folder: str) -> str:
    """A relative address that can be nothing else: no scheme, no host."""
    if not folder:
        return ""
    parts = [part for part in folder.replace("\\", "/").split("/") if part not in ("", ".")]
    return "./" + quote("/".join(parts)) + "/"
