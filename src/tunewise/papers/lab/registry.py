"""The experiments: what each theorem says, what is expected, and the module that tests it.

A module `tunewise.papers.lab.NAME` (`-` written `_`) holds `EXPERIMENT = experiment("NAME", run)`. Nothing here
imports torch, so that a list of the experiments costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers.lab.contract import Experiment, Outcome, Settings, Statement

_STATEMENTS = (
    Statement(
        name="random-factor",
        theorem="LoRA with a random frozen factor A: with high probability the gap of one run is of order sqrt(r / N).",
        source="arXiv 2506.14530 abstract",
        mark="text",
        expectation=(
            "The largest gap over ||b|| <= 1 on random labels has log-log slopes 1/2 in r and -1/2 in N with "
            "A ~ N(0, 1/d), slope 0 in r with A ~ N(0, 1/r), and a spread of 1/sqrt(2 r) over draws of A."
        ),
    ),
    Statement(
        name="spurious-minima",
        theorem=(
            "In the NTK regime, LoRA of a rank with r (r + 1) / 2 > K N and weight decay on both factors has no "
            "spurious local minimum."
        ),
        source="arXiv 2402.11867 abstract (ii)",
        mark="text",
        expectation=(
            "No start of a rank over the threshold ends above the convex optimum; some do at rank 1, and nothing need "
            "happen at the threshold, which is sufficient and not necessary."
        ),
    ),
    Statement(
        name="low-rank-solution",
        theorem="In the NTK regime, loss + lambda ||dW||_* has a minimiser of a rank r with r (r + 1) / 2 <= K N.",
        source="arXiv 2402.11867 abstract (i)",
        mark="text",
        expectation=(
            "On every problem a minimiser within that rank is found, by construction and by LoRA's descent; where K N "
            "numbers pin the minimiser, none of lower rank exists."
        ),
    ),
    Statement(
        name="lora-one-alignment",
        theorem=(
            "Gradient descent on LoRA from B0 = 0 and a small Gaussian A0 aligns with the top singular spaces of the "
            "one-step full gradient: the right space never leaves it, the left one comes up to theta."
        ),
        source="arXiv 2502.01235 Theorems 3.1 and 3.2",
        mark="text",
        expectation=(
            "The right space's misalignment stays at rounding along the whole run; the left space's falls with the "
            "size a of A0, for small a like a^(2 / (2 kappa + 1)) (derived), kappa the gradient's condition number."
        ),
    ),
    Statement(
        name="spectral-start",
        theorem=(
            "A start from the singular value decomposition of the one-step full gradient is already close to the "
            "target: ||A0 B0 - D|| <= eps ||D||."
        ),
        source="arXiv 2502.01235 Theorem 3.3",
        mark="text",
        expectation="The relative distance of the start to the target falls with the samples N, log-log slope -1/2.",
    ),
    Statement(
        name="preconditioner",
        theorem="With LoRA-One's preconditioner the number of steps does not depend on the target's condition number.",
        source="arXiv 2502.01235 Algorithm 1",
        mark="text",
        expectation=(
            "Steps to a fixed relative error stay the same from condition number 2 to 50 with the preconditioner, and "
            "grow in proportion to it without."
        ),
    ),
    Statement(
        name="step-size",
        theorem=(
            "A step of SGD on selected columns (cla) lowers the loss for every rate 0 < gamma < 2 r^2 / (L alpha^2), "
            "where L is the Lipschitz constant of the loss's gradient."
        ),
        source="arXiv 2606.13767 Theorems 2 and 3",
        mark="text",
        expectation=(
            "No step below the bound raises the loss; along the direction of largest curvature every step above it "
            "does, so that the first increase is at the bound itself."
        ),
    ),
    Statement(
        name="chain-coverage",
        theorem=(
            "A chain of k links of r columns touches min(m, k r) of a layer's m columns where links walk through them, "
            "in order or by a permutation, and m (1 - (1 - r / m)^k) in the mean where links are drawn afresh."
        ),
        source="arXiv 2606.13767 Proposition 1",
        mark="derived",
        expectation=(
            "Chains drawn with the real code touch what their formulae say; they can express all but 1 - k r / m of a "
            "target in the mean, and trained over all columns they have it if inputs are white."
        ),
    ),
    Statement(
        name="perturbation-tightness",
        theorem=(
            "Fine-tuning by dW moves the generalization gap by at most Phi, computed from the spectral norms of W0 and "
            "dW layer by layer (Theorem 1, its misprints mended)."
        ),
        source="arXiv 2606.13767 Theorem 1",
        mark="fixed",
        expectation=(
            "Phi is never below the true difference on random networks, is attained where layers line up, and gets "
            "looser with depth where they do not; the printed formula fails on a counterexample."
        ),
    ),
    Statement(
        name="equivalences",
        theorem=(
            "Training selected columns of W directly (PaCA) is training cla's B: the same with SGD at the rate "
            "(alpha / r)^2 gamma, and with Adam at the rate (alpha / r) gamma."
        ),
        source="arXiv 2606.13767",
        mark="derived",
        expectation=(
            "Both pairs of runs stay equal to rounding over many steps, eps and clipping scaled alike; with the "
            "other's factor, or with weight decay, they part."
        ),
    ),
)

STATEMENTS: dict[str, Statement] = {statement.name: statement for statement in _STATEMENTS}
"""Name -> statement, in the order of the list."""


def experiment(name: str, run: Callable[[Settings], Outcome]) -> Experiment:
    """The experiment of that name: for the module that tests it."""
    return Experiment(STATEMENTS[name], run)


def statement(name: str) -> Statement:
    """The statement of that name. Raises `SpecError` for an unknown one, with the nearest."""
    if name not in STATEMENTS:
        raise SpecError(f"unknown experiment {name!r}{suggest_nearest(name, STATEMENTS)}")
    return STATEMENTS[name]


def load(name: str) -> Experiment:
    """The experiment, its module imported. Raises `SpecError` for an unknown name, with the nearest."""
    module = import_module(f"tunewise.papers.lab.{statement(name).name.replace('-', '_')}")
    found: Experiment = module.EXPERIMENT
    return found
