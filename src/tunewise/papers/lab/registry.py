"""The experiments: what each theorem says and what is expected.

The module `tunewise.papers.lab.NAME` (`-` written `_`) has the code: `run(settings) -> Measurement`. Nothing here
imports torch, so that listing the experiments is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from tunewise.errors import SpecError, suggest_nearest
from tunewise.theory.bound import Mark

if TYPE_CHECKING:
    from tunewise.papers.lab.contract import LabSettings, Measurement


@dataclass(frozen=True)
class Statement:
    """A theorem, and what its experiment is expected to show."""

    name: str
    theorem: str
    source: str
    mark: Mark
    expectation: str


_STATEMENTS = (
    Statement(
        "random-factor",
        "LoRA with a random frozen factor A: with high probability the gap of one run is of order sqrt(r / N).",
        "arXiv 2506.14530 abstract",
        "text",
        "The largest gap over ||b|| <= 1 on random labels has log-log slopes 1/2 in r and -1/2 in N with A ~ N(0, "
        "1/d), slope 0 in r with A ~ N(0, 1/r), and a spread of 1/sqrt(2 r) over draws of A.",
    ),
    Statement(
        "spurious-minima",
        "In the NTK regime, LoRA of a rank with r (r + 1) / 2 > K N and weight decay on both factors has no spurious "
        "local minimum.",
        "arXiv 2402.11867 abstract (ii)",
        "text",
        "No start of a rank above the threshold ends above the convex optimum; some starts of rank 1 do. The threshold "
        "is sufficient, not necessary: nothing needs to change exactly there.",
    ),
    Statement(
        "low-rank-solution",
        "In the NTK regime, loss + lambda ||dW||_* has a minimizer of a rank r with r (r + 1) / 2 <= K N.",
        "arXiv 2402.11867 abstract (i)",
        "text",
        "On every problem a minimizer within that rank is found, by construction and by LoRA's descent; where K N "
        "numbers determine the minimizer, none of lower rank exists.",
    ),
    Statement(
        "lora-one-alignment",
        "Gradient descent on LoRA from B0 = 0 and a small Gaussian A0 aligns with the top singular spaces of the "
        "one-step full gradient: the right space never leaves it, the left space comes as close as theta.",
        "arXiv 2502.01235 Theorems 3.1 and 3.2",
        "text",
        "The misalignment of the right space stays at rounding error along the run; that of the left space falls with "
        "the size a of A0, for small a like a^(2 / (2 kappa + 1)) (derived), kappa the gradient's condition number.",
    ),
    Statement(
        "spectral-start",
        "A start from the singular value decomposition of the one-step full gradient is already close to the target: "
        "||A0 B0 - D|| <= eps ||D||.",
        "arXiv 2502.01235 Theorem 3.3",
        "text",
        "The relative distance of the start to the target falls with the samples N, log-log slope -1/2.",
    ),
    Statement(
        "preconditioner",
        "With LoRA-One's preconditioner the number of steps does not depend on the target's condition number.",
        "arXiv 2502.01235 Algorithm 1",
        "text",
        "Steps to a fixed relative error stay the same from condition number 2 to 50 with the preconditioner, and grow "
        "in proportion to it without.",
    ),
    Statement(
        "step-size",
        "A step of SGD on selected columns (cla) lowers the loss for every rate 0 < gamma < 2 r^2 / (L alpha^2), where "
        "L is the Lipschitz constant of the loss's gradient.",
        "arXiv 2606.13767 Theorems 2 and 3",
        "text",
        "No step below the bound raises the loss; along the direction of largest curvature every step above it does, "
        "so that the first increase is at the bound itself.",
    ),
    Statement(
        "chain-coverage",
        "A chain of k links of r columns touches min(m, k r) of a layer's m columns where links take columns in order "
        "or by a permutation, and m (1 - (1 - r / m)^k) on average where each link draws its columns independently.",
        "arXiv 2606.13767 Proposition 1",
        "derived",
        "Chains drawn with the package's code touch as many columns as the formulas say; they can express all but "
        "1 - k r / m of a target on average, and after training on all columns they reach it if inputs are white.",
    ),
    Statement(
        "perturbation-tightness",
        "Fine-tuning by dW moves the generalization gap by at most Phi, computed from the spectral norms of W0 and dW "
        "layer by layer (Theorem 1, its misprints corrected).",
        "arXiv 2606.13767 Theorem 1",
        "fixed",
        "Phi is never below the true difference on random networks, is attained where layers are aligned, and gets "
        "looser with depth where they are not; the printed formula fails on a counterexample.",
    ),
    Statement(
        "equivalences",
        "Training selected columns of W directly (PaCA) is training cla's B: the same with SGD at the rate "
        "(alpha / r)^2 gamma, and with Adam at the rate (alpha / r) gamma.",
        "arXiv 2606.13767",
        "derived",
        "Both pairs of runs stay equal to rounding over many steps, eps and clipping scaled alike; with the factor of "
        "the other optimizer, or with weight decay, they diverge.",
    ),
)

STATEMENTS: dict[str, Statement] = {statement.name: statement for statement in _STATEMENTS}


def get_statement(name: str) -> Statement:
    """Raises `SpecError` for an unknown name, with the nearest name."""
    if name not in STATEMENTS:
        raise SpecError(f"unknown experiment {name!r}{suggest_nearest(name, STATEMENTS)}")
    return STATEMENTS[name]


def load(name: str) -> Callable[[LabSettings], Measurement]:
    """The experiment's `run`. Raises `SpecError` for an unknown name."""
    module = import_module(f"tunewise.papers.lab.{get_statement(name).name.replace('-', '_')}")
    run: Callable[[LabSettings], Measurement] = module.run
    return run
