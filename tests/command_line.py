"""The command line, in this process."""

from __future__ import annotations

import sys

import pytest

from tunewise.cli.main import run as tunewise


def invoke(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """`tunewise WORDS` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["tunewise", *words])
    with pytest.raises(SystemExit) as stop:
        tunewise()
        raise SystemExit(0)
    return int(stop.value.code or 0)
