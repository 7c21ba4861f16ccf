"""The device that runs are computed on: the GPU where there is one, unless `TUNEWISE_DEVICE` says another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tunewise.errors import SpecError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
_VARIABLE = "TUNEWISE_DEVICE"


def asked_device() -> DeviceName:
    """The device that was asked for."""
    return os.environ.get(_VARIABLE, "auto")  # type: ignore[return-value]


def device_type() -> Literal["cpu", "cuda", "mps"]:
    """The kind of the device."""
    import torch

    asked = asked_device()
    if asked in ("cpu", "mps"):
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_gpu() -> bool:
    """Whether the device is a GPU of CUDA."""
    return device_type() == "cuda"


def gpus() -> list[str]:
    """The GPUs that runs may take, as `CUDA_VISIBLE_DEVICES` names them; none where the device is another."""
    import torch

    count = 0 if asked_device() in ("cpu", "mps") else torch.cuda.device_count()
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[:count] if len(visible) >= count else [str(number) for number in range(count)]


@contextmanager
def use_device(name: DeviceName) -> Iterator[None]:
    """Compute on this device within the block, in processes that are started there too. Raises `SpecError` where there
    is none of its kind."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, True):
        raise SpecError(f"device {name}: this machine has none that torch can use; leave it out, or give cpu")
    before = os.environ.get(_VARIABLE)
    if name != "auto":
        os.environ[_VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
