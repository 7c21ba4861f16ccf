"""Offline pages: one file with its style, figures and scripts, and a policy that allows no request."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tunewise.errors import StoreError
from tunewise.pages import palette
from tunewise.pages.section import Panel, Section
from tunewise.store.files import write_atomically


def render_page(template: str, folder: Path | None = None, **values: object) -> str:
    """A page from a template, of this package or of `folder`; everything is escaped unless it is `Markup`."""
    found = _templates(folder)
    script = Markup(found.get_template("page.js.jinja").render(dark=palette.DARK))
    return found.get_template(template).render(
        style=Markup(_style_sheet()),
        plotly=Markup(_plotly_script()),
        script=script,
        policy=_content_policy([_plotly_script(), script]),
        **values,
    )


def write_page(path: Path, text: str) -> None:
    """Write the file atomically. Raises `StoreError` where that fails."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise StoreError(
            f"the report {path} can't be written: {error.strerror}; free space or choose another place"
        ) from None


def write_sections(path: Path, *, title: str, subject: str, sections: Sequence[Section]) -> None:
    """A page of sections alone."""
    write_page(path, render_page("sections.html.jinja", title=title, subject=subject, sections=sections, took=""))


def script_json(text: str) -> Markup:
    """JSON that can stand in a script element: no `<`, so nothing in it closes or opens one."""
    escaped = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(escaped.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


@cache
def _templates(folder: Path | None) -> Environment:
    """The report's templates, and those of `folder`."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader("tunewise", "pages"), FileSystemLoader(folder or [])]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["panel_json"] = _panel_json
    return found


def _panel_json(panel: Panel) -> Markup:
    """The figure's JSON, in one fixed form."""
    return script_json(json.dumps(json.loads(panel.json), sort_keys=True, separators=(",", ":"), ensure_ascii=False))


@cache
def _style_sheet() -> str:
    """CSS, both colour schemes."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


@cache
def _plotly_script() -> str:
    """plotly.js as it can stand in a script element."""
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _content_policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: just these scripts, and no request to anywhere."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"
