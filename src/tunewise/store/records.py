"""The documents of a run and of its costs: everything in tables, statistics and reports is made from these."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tunewise.spec import RunSpec, TuningSpec

SCHEMA = 2

Status = Literal["done", "running", "failed", "diverged", "oom"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scores(_Record):
    """Scores of a split, in eval mode with the selected weights; of the training split those of a fixed sample."""

    loss: float = Field(description="mean loss in nats, over examples or, of a language model, over target tokens")
    metrics: dict[str, float] = Field(description="'accuracy', 'macro_f1', ...: shares, unless a lower value is better")
    examples: int = Field(description="that were scored")


class Floor(_Record):
    """The score of no learning: the best that one constant prediction reaches, or the model before its training where
    that can answer already."""

    score: float
    of: Literal["best constant prediction", "untrained model"]


class FloorReport(_Record):
    """What runs of one model, data set and way of scoring have in common, kept for all of them."""

    schema_version: int = SCHEMA
    floors: dict[str, Floor] = Field(description="by test metric")


class EpochLosses(_Record):
    epoch: float = Field(description="passes over the training data before the evaluation")
    train: float | None = Field(description="mean over the steps since the last one, dropout on and weights moving")
    validation: float = Field(description="after it")


class Results(_Record):
    metric: str = Field(description="the main metric's key in Scores.metrics, e.g. 'accuracy'")
    lower_is_better: list[str] = Field([], description="metrics for which a lower value is better: 'perplexity'")
    selected_epoch: float = Field(description="passes over the training data before the kept evaluation")
    selected_by: str = Field(description="in words: 'lowest validation loss'")
    train: Scores
    validation: Scores
    test: Scores
    floor: dict[str, Floor] = Field(default={}, description="test metrics of no learning, where a metric has one")
    epochs: list[EpochLosses] = Field(default=[], description="in order")
    items: int | None = Field(None, description="items behind the main test metric, where not all test examples are")
    confusion: list[list[int]] | None = Field(None, description="test: rows true class, columns predicted")

    @property
    def higher_is_better(self) -> bool:
        """Of the main metric."""
        return self.metric not in self.lower_is_better

    @property
    def gap(self) -> float:
        """Generalization gap: mean test loss - mean train loss (nats), same weights, eval mode."""
        return self.test.loss - self.train.loss


class Coverage(_Record):
    """How much of a model's blocks an adapter is on. Weights are those of matrices: no biases, norms, embeddings."""

    weights: int = Field(description="in the repeated blocks")
    adapted: int = Field(description="of these, in adapted rows")
    left_out: dict[str, int] = Field(description="the others by name within a block, largest first")

    @property
    def share(self) -> float:
        """Of the weights, the part that is adapted; 0 to 1."""
        return self.adapted / (self.weights or 1)

    def describe(self, most: int = 3) -> str:
        """In words: `13.0 % of the block weights are adapted; not mlp.experts.gate_up_proj (58.0 %), ...`."""
        others = [f"{name} ({n / self.weights:.1%})" for name, n in list(self.left_out.items())[:most]]
        more = ", ..." if len(self.left_out) > most else ""
        rest = f"; not {', '.join(others)}{more}" if others else ""
        return f"{self.share:.1%} of the block weights are adapted{rest}"


class ModelFacts(_Record):
    parameters: int = Field(description="all parameters of the adapted base model, head included")
    trainable: int = Field(description="parameters that the optimizer updates")
    adapter: int = Field(description="of these, in the adapter (or the changed weights)")
    head: int = Field(description="of these, in the task head")
    layers: list[str] = Field(description="names of the adapted layers")
    coverage: Coverage | None = None


class DataFacts(_Record):
    train: int
    validation: int
    test: int
    labels: list[str]
    input_size: str = Field("", description="in words: 'at most 128 tokens'")
    notes: list[str] = Field(default=[], description="sentences: duplicates dropped, splits cut, labels unseen")


class Environment(_Record):
    tunewise: str
    python: str
    platform: str
    device: str = Field(description="'cpu: Intel(R) Xeon(R), 2 threads' or 'cuda: NVIDIA H100'")
    versions: dict[str, str] = Field(description="torch, transformers, peft, ...")


class Check(_Record):
    """The saved folder, reloaded by stock PEFT onto a fresh base, against the model in memory."""

    max_logit_difference: float
    examples: int
    loader: str = Field(description="'peft.PeftModel.from_pretrained' or 'safetensors'")


class RunRecord(_Record):
    """`run.json`, written last: with status 'done' the folder is complete."""

    schema_version: int = SCHEMA
    id: str
    status: Status
    spec: RunSpec
    environment: Environment
    started: str = Field(description="ISO 8601, UTC")
    seconds: float
    model: ModelFacts | None = None
    data: DataFacts | None = None
    results: Results | None = None
    check: Check | None = None
    error: str | None = Field(None, description="one line, where status is failed, diverged or oom")
    processes: int = Field(1, description="the most that trained it together; equal to one up to rounding")
    files: dict[str, str] = Field(default={}, description="file name relative to the folder -> sha256")

    @property
    def gap_source(self) -> str | None:
        """The training examples that the gap is taken from, in words; None without results."""
        if self.results is None or self.data is None:
            return None
        drawn, size = self.results.train.examples, self.data.train
        of_all = f"all {size:,}" if drawn >= size else f"a fixed sample of {drawn:,} of the {size:,}"
        return f"{of_all} training examples"


class Measured(_Record):
    """`measures/NAME.json`: the result of a measure on a run, or why there is none."""

    name: str
    version: int
    seconds: float
    settings: dict[str, object] = Field(default={}, description="of a measure that can be set; all of them")
    values: dict[str, object] | None = None
    error: str | None = Field(None, description="one line, where there are no values")


class StepTime(_Record):
    """Seconds of one optimizer step (forward, backward, update)."""

    median: float
    low: float = Field(description="95 % interval of the median, by order statistics")
    high: float
    steps: int


class CostRecord(_Record):
    """What one method costs on one batch shape, from the separate, interleaved probe."""

    method: str = Field(description="MethodSpec.label, or 'frozen floor', or 'fft' as the other reference line")
    step: StepTime
    ratio_to_floor: float = Field(description="median of paired ratios of step times to the frozen floor's")
    ratio_low: float
    ratio_high: float
    samples_per_second: float
    saved_bytes: int = Field(description="exact bytes that autograd keeps for the backward of one batch")
    peak_bytes: int | None = Field(
        description="peak memory: RSS of a fresh process that gives back what it frees, or the device allocator's"
    )
    base_bytes: int | None = Field(description="the same before the first step: what the loaded model takes")
    trainable: int
    reference_line: bool = Field(False, description="frozen floor, or fft where it is not among the methods")


class CostReport(_Record):
    """`costs.json` of a comparison."""

    schema_version: int = SCHEMA
    device: str
    batch_size: int
    max_length: int
    tokens: int = Field(description="tokens in the probe's batch, padding included; 0 where there are none")
    batch: str = Field("", description="the probe's batch in words: '16 images of 112 x 112 pixels'")
    rows: list[CostRecord]


class Trial(_Record):
    """One learning rate of a search: a run at the tuning seed, scored on validation alone."""

    rate: float
    run: str = Field(description="id of its folder")
    status: Status
    epochs: int = Field(description="evaluated on the validation split")
    value: float | None = Field(description="the objective at the selected epoch")


class MethodTuning(_Record):
    """The learning-rate search of one method."""

    method: str = Field(description="MethodSpec.label")
    middle: float = Field(description="the middle of the grid, or the rate that was given")
    given: bool = Field(False, description="the rate was given and not tuned")
    trials: list[Trial] = Field([], description="in the order in which they were run")
    chosen: float = Field(description="the rate that the runs were made with")
    edge: Literal["lowest", "highest"] | None = Field(None, description="where the best rate ends the grid")
    note: str | None = None

    @property
    def failed(self) -> bool:
        """Whether no trial came to its end, so that the rate is the default."""
        return bool(self.trials) and all(trial.value is None for trial in self.trials)


class TuningReport(_Record):
    """`tuning.json` of a comparison."""

    schema_version: int = SCHEMA
    settings: TuningSpec
    seed: int = Field(description="of the trials")
    objective: str = Field(description="in words: 'validation loss'")
    lower_is_better: bool = True
    methods: list[MethodTuning]
