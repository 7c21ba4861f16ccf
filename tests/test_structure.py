"""The structure of the source tree stays within its limits; `python benchmarks/structure.py` prints the figures."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", REPOSITORY / "benchmarks" / "structure.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _script()
structure = script.measure()


def test_the_source_tree_does_not_grow() -> None:
    assert structure.lines <= 36_000  # lower this number with every deletion


def test_no_file_is_longer_than_400_lines_and_the_median_is_100_to_250() -> None:
    assert structure.longest_file[0] <= 400, structure.longest_file
    assert 100 <= structure.median_file <= 250


def test_no_function_is_longer_than_80_lines() -> None:
    assert structure.longest_function[0] <= 80, structure.longest_function


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not structure.module_cycles


def test_no_packages_import_each_other_in_a_circle() -> None:
    assert not structure.package_cycles


def test_isinstance_is_asked_of_our_own_classes_in_at_most_10_places() -> None:
    assert len(structure.isinstance_checks) <= 10, "\n".join(structure.isinstance_checks)


def test_no_task_is_recognised_by_its_name_outside_the_tasks() -> None:
    assert not structure.task_name_tests, "\n".join(structure.task_name_tests)


def test_any_is_not_used_more_than_today() -> None:
    assert structure.any_per_thousand_lines <= 8


def test_there_is_one_scheduling_loop() -> None:
    assert len(structure.scheduling_loops) == 1, structure.scheduling_loops


PLANTED = {
    "tunewise/__init__.py": "",
    "tunewise/a/__init__.py": "",
    "tunewise/a/one.py": "from tunewise.b import two\nclass Thing: pass\ndef f(x):\n    return isinstance(x, Thing)\n",
    "tunewise/b/__init__.py": "",
    "tunewise/b/two.py": (
        "from typing import Any\n"
        "def g(x: Any, task):\n"
        "    from tunewise.a.one import Thing\n"
        "    while x.waiting:\n"
        "        while x.running: pass\n"
        "    return isinstance(x, Thing) and task == 'image'\n"
    ),
    "tunewise/b/three.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tunewise.b import four\nimport tunewise.b.two\n"
    ),
    "tunewise/b/four.py": "from . import three\n",
}


def test_the_measurement_sees_what_was_planted(tmp_path: Path) -> None:
    for name, text in PLANTED.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    seen = script.measure(tmp_path)
    assert (seen.files, seen.lines) == (7, 15)
    assert seen.module_cycles == ["tunewise.a.one tunewise.b.two"]
    assert seen.package_cycles == ["tunewise.a tunewise.b"]
    assert [check.partition(" ")[0] for check in seen.isinstance_checks] == ["tunewise.b.two:6:"]
    assert [check.partition(" ")[0] for check in seen.task_name_tests] == ["tunewise.b.two:6:"]
    assert seen.scheduling_loops == ["tunewise.b.two:4"]
    assert seen.longest_function == (5, "tunewise.b.two:g")
    assert seen.any_per_thousand_lines == pytest.approx(1000 / 15)
