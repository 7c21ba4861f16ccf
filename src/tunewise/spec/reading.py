"""From files and flags to specs: YAML, what stands above what, and faults told in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tunewise.errors import SpecError, suggest_nearest

Spec = TypeVar("Spec", bound=BaseModel)
Content = dict[str, Any]
"""What a file or a command line says, nested like the specs, before it is checked."""


def parse(kind: type[Spec], content: object, source: str = "") -> Spec:
    """Checks `content` against a spec class. Raises `SpecError`: one line that names key, fault and way out."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise SpecError(_explain(error, kind, source)) from None
    except SpecError as error:  # raised by a validator of ours: already one line
        raise SpecError(f"{source}: {error}" if source else str(error)) from None


def _explain(error: ValidationError, kind: type[BaseModel], source: str = "") -> str:
    """The first fault of a pydantic error in one line, with the nearest valid key for an unknown one."""
    fault = error.errors()[0]
    where = ".".join(str(p) for p in fault["loc"])
    prefix = f"{source}: " if source else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        fields = _fields_at(kind, fault["loc"][:-1])
        return f"{prefix}unknown key {where!r}{suggest_nearest(str(fault['loc'][-1]), fields)}{more}"
    if fault["type"] == "missing":
        return f"{prefix}{where!r} is missing{more}"
    if fault["type"] == "value_error":
        return f"{prefix}{where + ': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}{more}"
    return f"{prefix}{where} = {_short(fault['input'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}{more}"


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for key in path:
        if isinstance(key, int):
            continue
        annotation = kind.model_fields[key].annotation if key in kind.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return []
        kind = found[0]
    return [*kind.model_fields, *getattr(kind, "short_keys", ())]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def merge_specs(base: Content, over: Content) -> Content:
    """`base` with what `over` says; None says nothing, mappings are merged key by key (`model: DIR` is one)."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, dict):
            below = result.get(key)
            if isinstance(below, str):
                below = {"path": below}
            value = merge_specs(below if isinstance(below, dict) else {}, value)
            if value:
                result[key] = value
        elif value is not None:
            result[key] = value
    return result


def load_yaml(path: Path) -> Content:
    """A spec file as a dictionary. Raises `SpecError` where it is absent or not a YAML mapping."""
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 wants a dot in 1e-3; everybody else reads it as a number."""

    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise SpecError(f"spec file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"spec file {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise SpecError(f"spec file {path}: a mapping is expected at the top (model:, data:, methods:, ...)")
    return content
