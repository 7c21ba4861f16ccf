"""The device that measures run on."""

from __future__ import annotations

import torch

from tunewise.device import device_type, on_gpu


def device() -> torch.device:
    return torch.device(device_type())


def synchronize() -> None:
    """Wait for the device's queue."""
    if on_gpu():
        torch.cuda.synchronize()
