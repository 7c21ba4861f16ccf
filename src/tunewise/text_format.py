"""Numbers and names in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def pluralize(number: int, noun: str) -> str:
    """`1 text`, `1,234 texts`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8; the names of files in other encodings can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def join_names(names: Sequence[str], most: int = 10) -> str:
    """The first few of many names, with commas."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def format_duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.2 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


_LATEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"×": r"$\times$", "−": "$-$", "<": "$<$", ">": "$>$", "±": r"$\pm$", "†": r"$^\dagger$", "–": "--"}
_LATEX |= {character: "\\" + character for character in "&%$#_"}


def escape_markdown(text: str) -> str:
    """On one line, also within a table's cell."""
    for character in "\\`*_|<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def escape_latex(text: str) -> str:
    """For text mode."""
    return "".join(_LATEX.get(character, character) for character in text)
