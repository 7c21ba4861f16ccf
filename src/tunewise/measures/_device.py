"""The device that measures run on."""

from __future__ import annotations

import torch


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait for the device's queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
