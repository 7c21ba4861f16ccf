"""A metric of the user's own: a function in a file, `my_metrics.py:score`.

It gets all predictions, all references and all examples (the cells of their rows) of a split, and returns a number, or
a list with a number for each example. A larger number is better.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from tunewise.errors import SpecError, TunewiseError, first_line
from tunewise.locate import digest
from tunewise.spec import EvaluationSpec
from tunewise.spec.evaluation import is_harness_file
from tunewise.tasks.text_metrics import TextScore

_SECONDS = 300
"""How long a function may take for two examples."""


@dataclass(frozen=True)
class OwnMetric:
    """A function of a file; plain data, so that it can be sent to another process."""

    file: Path
    function: str

    @classmethod
    def parse(cls, metric: str | None) -> OwnMetric | None:
        """The function that `FILE.py:FUNCTION` names; None for the name of a built-in metric."""
        file, _, function = (metric or "").rpartition(":")
        if not file.endswith(".py"):
            return None
        own = cls(Path(file).expanduser().absolute(), function)
        if not own.file.is_file():
            raise SpecError(f"metric {metric!r}: no such file; give FILE.py:FUNCTION")
        return own

    @property
    def key(self) -> str:
        """Its name in tables and records."""
        return f"{self.file.name}:{self.function}"

    @property
    def path(self) -> str:
        """`FILE.py:FUNCTION` with an absolute path."""
        return f"{self.file}:{self.function}"

    def score(
        self, predictions: Sequence[str], references: Sequence[str], examples: Sequence[dict[str, Any]]
    ) -> TextScore:
        """Call the function. Raises `SpecError` where it fails, or returns something else than it should."""
        function = _load(self.file, self.function)
        try:
            result = function(list(predictions), list(references), list(examples))
        except Exception as error:
            raise self._fault(error) from error
        if (value := _number(result)) is not None:
            return TextScore(value, [])
        listed = hasattr(result, "__iter__") and not isinstance(result, str | dict)
        scores = [score for one in (result if listed else []) if (score := _number(one)) is not None]
        if not listed or not len(result) == len(scores) == len(predictions):
            raise SpecError(
                f"metric {self.key}: it returned {str(result)[:60]} for {len(predictions)} examples; return a finite "
                "number, or a list with one for each example"
            )
        return TextScore(fmean(scores), scores)

    def try_out(self, references: Sequence[str], examples: Sequence[dict[str, Any]]) -> None:
        """Call it in a fresh process, with the first reference as a prediction and then an empty one. Raises
        `SpecError`."""
        predictions = [*references[:1], *("" for _ in references[1:])]
        call = json.dumps([self.path, predictions, list(references), list(examples)], default=str)
        command = [sys.executable, "-m", "tunewise.tasks.own_metric"]
        try:
            done = subprocess.run(command, input=call, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise SpecError(f"metric {self.key}: it took more than {_SECONDS} s for two examples") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"it ended its process (exit code {done.returncode})"]
            raise SpecError(said[-1] if said[-1].startswith("metric ") else f"metric {self.key}: {said[-1]}")

    def _fault(self, error: BaseException) -> SpecError:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.file)
        ]
        where = f", line {lines[-1]}" if lines else ""
        return SpecError(f"metric {self.key}{where}: {type(error).__name__}: {first_line(error)}")


def scoring_digest(metric: str | None, evaluation: EvaluationSpec) -> str | None:
    """sha256 over the user's own files that score: of a metric, and of a task of lm-evaluation-harness."""
    own = OwnMetric.parse(metric)
    files = [own.file] if own else []
    if evaluation.harness and is_harness_file(evaluation.harness):
        files.append(Path(evaluation.harness).expanduser())
    return digest(files) if files else None


def _number(value: Any) -> float | None:
    """The finite number that a value is: of Python, numpy or torch; None for anything else."""
    if isinstance(value, str):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # torch raises the last for several values
        return None
    return number if math.isfinite(number) else None


@lru_cache(maxsize=8)
def _load(file: Path, name: str) -> Callable[..., Any]:
    """The function, its file run as a module that finds those beside it."""
    own = OwnMetric(file, name)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise own._fault(error) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise SpecError(f"metric {own.key}: {file.name} has no function {name!r}")
    loaded: Callable[..., Any] = function
    return loaded


def _answer_call() -> int:
    """Answer `try_out`: call the function that standard input names, and say in one line what is wrong."""
    path, predictions, references, examples = json.load(sys.stdin)
    own = OwnMetric.parse(path)
    assert own is not None
    try:
        own.score(predictions, references, examples)
    except TunewiseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_answer_call())
