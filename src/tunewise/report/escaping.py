"""Any text as Markdown and LaTeX show it letter for letter."""

from __future__ import annotations

_LATEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"×": r"$\times$", "−": "$-$", "<": "$<$", ">": "$>$", "±": r"$\pm$", "†": r"$^\dagger$", "–": "--"}
_LATEX |= {character: "\\" + character for character in "&%$#_"}


def for_markdown(text: str) -> str:
    """On one line, also within a table's cell."""
    for character in "\\`*_|<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def for_latex(text: str) -> str:
    """For text mode."""
    return "".join(_LATEX.get(character, character) for character in text)
