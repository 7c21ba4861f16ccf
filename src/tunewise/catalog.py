"""The catalog: every method as a point on five axes. Plain data, no torch.

| axis | values |
| --- | --- |
| trained | everything, the head alone, A and B, B (A frozen), A (B frozen), columns of W themselves |
| where | the row space of dW: random A, the first r columns, r sampled columns, the gradient's SVD |
| chain | none, or a schedule of links: merge, draw the next factor, B = 0 |
| optimizer | one learning rate, two (B: ratio x A), preconditioned |
| start | dW = 0, or the best rank-r step of one full gradient |

Everything that takes a name takes a `Method(...)` too. The mathematics of a method is its adapter class, in
`tunewise.methods.adapters`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tunewise.errors import SpecError, suggest_nearest
from tunewise.peft_methods import PEFT_METHODS, PeftMethod

Trained = Literal["all", "head", "AB", "B", "A", "columns", "peft"]
Where = Literal["random", "selector", "sampled", "gradient"]
LoraAInit = Literal["kaiming", "normal", "orthonormal"]
Layout = Literal["permutation", "block"]
Scaling = Literal["alpha/r", "alpha/sqrt(r)", "one"]


@dataclass(frozen=True)
class Chain:
    """When the links of a chain end: at a number of links, or every so many epochs or steps.

    With k links over T steps link j + 1 starts before step floor(T / k) * j + 1, j = 1 .. k - 1: exactly k links, and
    the last one is trained too (2606.13767, Algorithm 3, corrected).

    Args:
        links: the number of links in the run.
        every: the length of a link, instead of `links`.
        unit: what `every` counts: `"epoch"` or `"step"`.

    Raises:
        SpecError: both or neither of `links` and `every`, or a number below 1.

    Example:
        >>> import tunewise
        >>> tunewise.Chain(links=4).restarts(total_steps=10)
        [2, 4, 6]
        >>> tunewise.Chain(every=3, unit="epoch").restarts(total_steps=20, steps_per_epoch=2)
        [6, 12, 18]
    """

    links: int | None = None
    every: int | None = None
    unit: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if (self.links is None) == (self.every is None):
            raise SpecError("a chain needs either links=k or every=n, not both and not neither")
        if self.links is not None and self.links < 1:
            raise SpecError(f"a chain of {self.links} links: at least 1 is needed")
        if self.every is not None and self.every < 1:
            raise SpecError(f"a chain restarted every {self.every} {self.unit}s: at least 1 is needed")

    def restarts(self, total_steps: int, steps_per_epoch: int | None = None) -> list[int]:
        """Numbers of finished optimizer steps after which the next link starts; sorted, each in 1 .. T - 1.

        Raises `SpecError` for fewer steps than links, or a chain counted in epochs without `steps_per_epoch`.
        """
        if self.links is not None:
            if self.links > total_steps:
                raise SpecError(
                    f"a chain of {self.links} links needs at least {self.links} optimizer steps, and the run has "
                    f"{total_steps}; use fewer links or train longer"
                )
            span = total_steps // self.links
            return [span * j for j in range(1, self.links)]
        assert self.every is not None
        if self.unit == "epoch":
            if steps_per_epoch is None:
                raise SpecError("a chain counted in epochs needs the number of steps in one; use unit='step'")
            span = self.every * steps_per_epoch
        else:
            span = self.every
        return list(range(span, total_steps, span))


@dataclass(frozen=True)
class OptimizerRule:
    """How an optimizer updates the trained tensors.

    Args:
        ratio: B's learning rate / A's learning rate (LoRA+).
        preconditioned: whether gradients are multiplied by the inverse Gram matrices of the factors (2502.01235).

    Example:
        >>> import tunewise
        >>> tunewise.CATALOG["lora+"].optimizer
        OptimizerRule(ratio=16.0, preconditioned=False)
    """

    ratio: float = 1.0
    preconditioned: bool = False


@dataclass(frozen=True)
class Method:
    """One point on the five axes.

    Args:
        trained: `"all"`, `"head"`, `"AB"`, `"B"` (A frozen), `"A"` (B frozen), `"columns"` of W themselves, or `"peft"`
            for a method of the PEFT library.
        where: the row space of dW: `"random"`, the first r columns (`"selector"`), `"sampled"` columns, `"gradient"`.
        chain: when links end; None without links.
        optimizer: learning-rate ratio and preconditioning.
        start: `"zero"`, or `"gradient"`: the best rank-r step of one full gradient.
        scaling: the scale s in dW = s B A: `"alpha/r"`, `"alpha/sqrt(r)"`, or `"one"`.
        lora_a_init: distribution of a random A: `"kaiming"`, `"normal"` (N(0, 0.02^2)), `"orthonormal"`.
        layout: sampled columns are runs of a `"permutation"`, or one contiguous `"block"`.
        adapter: name of the adapter class in `tunewise.registry.ADAPTERS`; chosen by the axes unless given.
        name: the method's name in tables.
        summary: one line for people.
        source: the paper.

    Raises:
        SpecError: axes that contradict each other.

    Example:
        >>> import tunewise
        >>> row = tunewise.Method("B", "sampled", chain=tunewise.Chain(links=2), name="two-links")
        >>> row.adapter_class, row.scale(rank=4, alpha=8)
        ('columns', 2.0)
    """

    trained: Trained
    where: Where | None = None
    chain: Chain | None = None
    optimizer: OptimizerRule = OptimizerRule()
    start: Literal["zero", "gradient"] = "zero"
    scaling: Scaling = "alpha/r"
    lora_a_init: LoraAInit = "kaiming"
    layout: Layout = "permutation"
    adapter: str | None = None
    name: str = "custom"
    summary: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.trained in ("all", "head", "peft"):
            if self.where is not None or self.chain is not None:
                raise SpecError(f"trained={self.trained!r} has no factors, so 'where' and 'chain' must be left out")
            return
        if self.where is None:
            raise SpecError(f"trained={self.trained!r} needs where='random', 'selector', 'sampled' or 'gradient'")
        selects = self.where in ("selector", "sampled")
        if self.trained == "columns" and not selects:
            raise SpecError("trained='columns' needs where='selector' (the first r) or 'sampled'")
        if self.trained == "A" and not selects:
            raise SpecError("trained='A' (B frozen) is offered with where='selector' or 'sampled' rows")
        if self.trained == "AB" and selects:
            raise SpecError("a trained A does not stay a selector; use trained='B', or where='random'")
        if (self.where == "gradient") != (self.start == "gradient"):
            raise SpecError("where='gradient' and start='gradient' go together")
        if self.start == "gradient" and self.chain is not None:
            raise SpecError("a chain restarts from B = 0; it can't be combined with start='gradient'")
        if self.trained == "A" and self.chain is not None:
            raise SpecError("chains of row methods are not offered; use trained='B'")

    @property
    def adapts(self) -> bool:
        """Whether there is an adapter at all (not for fft and head)."""
        return self.trained not in ("all", "head")

    @property
    def passed_through(self) -> bool:
        """Whether it is a method of the PEFT library under its own config (`peft:NAME`)."""
        return self.trained == "peft"

    @property
    def of_peft(self) -> PeftMethod:
        """How a method of the PEFT library is configured."""
        return PEFT_METHODS[self.name.removeprefix("peft:")]

    @property
    def refuses_rank(self) -> bool:
        """Whether it is a method of PEFT with nothing like a rank."""
        return self.passed_through and self.of_peft.fields_of_rank is None

    @property
    def takes_rank(self) -> bool:
        """Whether a rank means anything to the method."""
        return self.adapts and not self.refuses_rank

    def resolve_rank(self, rank: int | None) -> int:
        """The rank, or the method's default. Raises `SpecError` for one that is given to a method without."""
        if rank is not None and self.refuses_rank:
            raise SpecError(f"method {self.name!r} has no rank, so rank = {rank} means nothing to it; leave it out")
        default = self.of_peft.default_rank if self.passed_through else 8
        return default if rank is None else rank

    def describe_start(self, rank: int) -> str:
        """In words, how attaching changes the model's outputs; empty where it does not."""
        if self.start == "gradient":
            return "starts at a step of the gradient: attaching changes the model's outputs"
        if self.passed_through and self.of_peft.moves_outputs(rank):
            return "starts at a random update: attaching changes the model's outputs"
        return ""

    @property
    def selects_columns(self) -> bool:
        """Whether dW lives in r input columns of W at a time."""
        return self.trained in ("B", "columns") and self.where in ("selector", "sampled")

    @property
    def adapter_class(self) -> str:
        """Name of the adapter class in `tunewise.registry.ADAPTERS`."""
        if self.adapter is not None:
            return self.adapter
        return "columns" if self.selects_columns else "rows" if self.trained == "A" else "low-rank"

    def scale(self, rank: int, alpha: float) -> float:
        """The factor s in dW = s B A."""
        if self.scaling == "one":
            return 1.0
        return alpha / rank if self.scaling == "alpha/r" else alpha / rank**0.5


def _row(name: str, summary: str, source: str, axes: Method) -> Method:
    return replace(axes, name=name, summary=summary, source=source)


_CHAIN = Chain(links=4)
_ROOT: Scaling = "alpha/sqrt(r)"
_CLA = "arXiv 2606.13767"
_PACA = "arXiv 2503.01905"

_ROWS: list[Method] = [
    _row("fft", "full fine-tuning: every weight", "", Method("all")),
    _row("head", "the task head alone, the baseline", "", Method("head")),
    _row("lora", "dW = s B A", "arXiv 2106.09685", Method("AB", "random")),
    _row(
        "lora+",
        "LoRA with B stepped at 16 x the rate of A",
        "arXiv 2402.12354",
        Method("AB", "random", optimizer=OptimizerRule(ratio=16.0)),
    ),
    _row("rslora", "LoRA scaled by alpha / sqrt(r)", "arXiv 2312.03732", Method("AB", "random", scaling=_ROOT)),
    _row("asym", "LoRA with A frozen at random", "arXiv 2402.16842", Method("B", "random")),
    _row("cola", "chain of LoRA", "arXiv 2401.04151", Method("AB", "random", chain=_CHAIN)),
    _row("rac", "chain of asym", "arXiv 2410.08305", Method("B", "random", chain=_CHAIN)),
    _row("cla", "the first r columns of W, scaled", _CLA, Method("B", "selector")),
    _row("r-cla", "r sampled columns, scaled", _CLA, Method("B", "sampled")),
    _row("c3la", "chain of cla, block by block", _CLA, Method("B", "selector", chain=_CHAIN)),
    _row("r-c3la", "chain of r-cla over a permutation", _CLA, Method("B", "sampled", chain=_CHAIN)),
    _row("paca", "r sampled columns of W", _PACA, Method("columns", "sampled", scaling="one")),
    _row("d-paca", "the first r columns of W", _CLA, Method("columns", "selector", scaling="one")),
    _row(
        "c-paca",
        "chain of paca over a permutation",
        _CLA,
        Method("columns", "sampled", chain=_CHAIN, scaling="one"),
    ),
    _row("cla-rows", "the first r rows of W, scaled", "arXiv 2606.13767 App. B", Method("A", "selector")),
    _row(
        "lora-one",
        "LoRA started at the rank-r step of one full gradient",
        "arXiv 2502.01235",
        Method("AB", "gradient", start="gradient", scaling=_ROOT),
    ),
]

CATALOG: dict[str, Method] = {row.name: row for row in _ROWS}


def get_method(method: str | Method) -> Method:
    """The catalog row of a name, or the pass-through `peft:NAME`; a `Method` is returned as it is."""
    if isinstance(method, Method):
        return method
    if method.startswith("peft:"):
        name = method.removeprefix("peft:")
        if name not in PEFT_METHODS:
            raise SpecError(f"unknown method {method!r}{suggest_nearest(name, PEFT_METHODS)} (after 'peft:')")
        return Method("peft", name=method, summary="PEFT's own", source="the PEFT library")
    if method in CATALOG:
        return CATALOG[method]
    raise SpecError(f"unknown method {method!r}{suggest_nearest(method, CATALOG)}")
