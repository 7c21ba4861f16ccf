"""The page templates of this package, made ready once."""

from __future__ import annotations

import json
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tunewise.report.panels import Panel


@cache
def templates(*packages: str) -> Environment:
    """The templates of tunewise's `packages` (names like "lab"), then the report's own. Everything is escaped unless it
    is `Markup`, and a name that is not given is an error, not an empty place."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader("tunewise", name) for name in (*packages, "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["panel_json"] = _panel_json
    return found


def script_json(text: str) -> Markup:
    """JSON that can stand in a script element: no `<`, so nothing in it closes or opens one."""
    escaped = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(escaped.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _panel_json(panel: Panel) -> Markup:
    """The figure's JSON, in one fixed form."""
    return script_json(json.dumps(json.loads(panel.json), sort_keys=True, separators=(",", ":"), ensure_ascii=False))
