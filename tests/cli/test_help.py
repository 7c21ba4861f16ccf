"""What `--help` says of a verb."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tunewise.cli.main import app


@pytest.mark.parametrize(
    ("verb", "flag", "default"),
    [
        (["compare"], "--rank", "8"),
        (["train"], "--learning-rate", "each method's own"),
        (["plan"], "--targets", "qv"),
        (["paper", "run"], "--image-size", "the model's own"),
        (["runs", "ls"], "--sort", "started"),
    ],
    ids=["compare", "train", "plan", "paper run", "runs ls"],
)
def test_help_names_the_defaults(verb: list[str], flag: str, default: str) -> None:
    """Those that a help text gives in words, too: Rich takes "[default: 8]" for a style where it is let."""
    shown = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    rows = [" ".join(row.strip("│ ").split()) for row in shown.splitlines()]
    (at,) = [i for i, row in enumerate(rows) if row.startswith(f"{flag} ")]
    assert f"[default: {default}]" in f"{rows[at]} {rows[at + 1]}"
