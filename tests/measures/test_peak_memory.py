"""The peak is measured in processes that have nothing of this one: neither its memory nor its script."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from tunewise.measures.cost.peak_memory import peak_memory
from tunewise.study.plan import make_plan
from tunewise.spec import StudySpec, parse
from tunewise.store.folders import RunStore

print("begun")
content = {{"model": {model!r}, "data": {data!r}, "methods": ["lora", "cla"], "rank": 4, "seeds": 1}}
spec = parse(StudySpec, {{**content, "training": {{"batch_size": 8, "max_length": 16}}}})
plan = make_plan(spec, RunStore({out!r}))
print(peak_memory(spec, plan.task, ["lora"]))
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_run_once(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(model=str(tiny_model), data=str(toy_csv), out=str(tmp_path / "runs")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=200)
    begun, found = [line for line in done.stdout.splitlines() if line][-2:]
    assert done.stdout.count("begun") == 1 and begun == "begun", done.stdout + done.stderr
    peaks = ast.literal_eval(found)
    assert peaks.keys() == {"lora"} and all(peak >= base > 10**7 for peak, base in peaks.values())
