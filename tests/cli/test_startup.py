"""The command line answers without loading what it does not need."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "numpy", "scipy", "plotly", "datasets")


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after running `code`."""
    script = f"import sys\n{code}\nprint(','.join(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.strip().splitlines()[-1].split(","))


def test_help_and_wrong_words_import_nothing_heavy() -> None:
    loaded = imported_by(
        "sys.argv = ['tunewise', 'compare', '--help']\n"
        "from tunewise.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass"
    )
    assert not loaded & set(HEAVY)


def test_a_bad_spec_is_refused_before_torch_is_imported() -> None:
    loaded = imported_by(
        "sys.argv = ['tunewise', 'compare', '--model=x', '--data=y', '--methods=clla']\n"
        "from tunewise.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as stop:\n    assert stop.code == 2"
    )
    assert not loaded & set(HEAVY)


def test_importing_tunewise_is_free() -> None:
    loaded = imported_by("import tunewise")
    assert not loaded & {*HEAVY, "pydantic", "cyclopts", "rich"}
