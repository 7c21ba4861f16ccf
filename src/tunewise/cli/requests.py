"""What preset, spec file and flags ask for together; the later win over the earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewise.errors import SpecError, suggest_nearest
from tunewise.spec import ExecutionOptions, StudySpec, load_yaml, merge_specs, parse, split_options

PRESETS = Path(__file__).parent.parent / "presets"


def read_request(given: dict[str, Any], preset: str | None, spec: Path | None) -> tuple[ExecutionOptions, StudySpec]:
    """How to run, and the study. Raises `SpecError`."""
    content = load_yaml(_preset(preset)) if preset else {}
    content = merge_specs(merge_specs(content, load_yaml(spec) if spec else {}), given)
    content["methods"] = _without_overridden(content.get("methods"), given)
    for name in ("model", "data", "methods"):
        if not content.get(name):
            raise SpecError(f"{name!r} is missing: give --{name}, a --spec file, or --preset quickstart")
    source = str(spec) if spec else ""
    options, content = split_options(content, source)
    return options, parse(StudySpec, content, source)


def _without_overridden(methods: Any, given: dict[str, Any]) -> Any:
    """A flag for all methods wins over the setting of one method in a file."""
    flags = {*given, "learning_rate"} if given.get("training", {}).get("learning_rate") else {*given}
    if not isinstance(methods, list):
        return methods
    return [{k: v for k, v in m.items() if k not in flags} if isinstance(m, dict) else m for m in methods]


def _preset(name: str) -> Path:
    names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
    if name not in names:
        raise SpecError(f"unknown preset {name!r}{suggest_nearest(name, names)}")
    return PRESETS / f"{name}.yaml"
