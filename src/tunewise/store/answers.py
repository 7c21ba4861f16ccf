"""The generated answers of a run: `predictions.jsonl`, one line an example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from tunewise.errors import StoreError
from tunewise.store.files import write_atomically


class Answer(BaseModel):
    """A generated text, what it answers, and its own score by each metric that scores single examples."""

    prompt: str
    reference: str
    prediction: str
    scores: dict[str, float]


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write them, completely or not at all."""
    write_atomically(path, "".join(answer.model_dump_json() + "\n" for answer in answers))


def read_answers(path: Path) -> list[Answer]:
    """The answers of a run; none where its task generates nothing. Raises `StoreError` for a damaged file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also split within texts
        return [Answer.model_validate_json(line) for line in lines if line]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} can't be read ({error}); remove that folder to run it again") from None
