"""Helpers for tests of experiments: deliberately wrong expectations, and a loop as the reference of a batch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils._pytree import tree_map

from tunewise.papers.lab.contract import Finding, Measurement, Verdict, overall


def the(outcome: Measurement, words: str) -> Finding:
    """The one finding whose title holds these words."""
    (found,) = [finding for finding in outcome.findings if words in finding.what]
    return found


def expecting(outcome: Measurement, words: str, wrong: float) -> Verdict:
    """The experiment's verdict had it expected `wrong` there, to the same tolerance."""
    finding = the(outcome, words)
    assert finding.expected is not None
    half = (finding.expected[1] - finding.expected[0]) / 2
    others = [other for other in outcome.findings if other is not finding]
    return overall([*others, replace(finding, expected=(wrong - half, wrong + half))])


def loop(run, *arguments):
    """The same as `batch`, one run after another."""
    results = [run(*(a[i] for a in arguments)) for i in range(len(arguments[0]))]
    return tree_map(lambda *parts: torch.stack(parts), *results)


class LinearModel(nn.Module):
    """y = W x as a module for `attach`: one layer `linear`, and the loss in the output as in transformers."""

    def __init__(self, weight):
        super().__init__()
        outputs, inputs = weight.shape
        self.linear = nn.Linear(inputs, outputs, bias=False, dtype=weight.dtype)
        self.linear.weight.data.copy_(weight)

    def forward(self, inputs, labels):
        predicted = self.linear(inputs)
        return SimpleNamespace(loss=0.5 * (predicted - labels).square().sum(-1).mean(), logits=predicted)
