"""Deliberately wrong expectations: what an experiment measured, set beside another value than the theorem's."""

from __future__ import annotations

from dataclasses import replace

from tunewise.papers.lab.contract import Finding, Outcome, Verdict, overall


def the(outcome: Outcome, words: str) -> Finding:
    """The one finding whose title holds these words."""
    (found,) = [finding for finding in outcome.findings if words in finding.what]
    return found


def expecting(outcome: Outcome, words: str, wrong: float) -> Verdict:
    """The experiment's verdict had it expected `wrong` there, to the same tolerance."""
    finding = the(outcome, words)
    assert finding.expected is not None
    half = (finding.expected[1] - finding.expected[0]) / 2
    others = [other for other in outcome.findings if other is not finding]
    return overall([*others, replace(finding, expected=(wrong - half, wrong + half))])
