"""The machine and the versions of packages, for the record of a run."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from tunewise.device import on_gpu
from tunewise.store.records import Environment

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Device, versions and platform of this process."""
    return Environment(
        tunewise=metadata.version("tunewise"),
        python=platform.python_version(),
        platform=platform.platform(),
        device=device_name(),
        versions={name: metadata.version(name) for name in _PACKAGES},
    )


def device_name() -> str:
    """'cuda: NVIDIA H100', or 'cpu: Intel(R) Xeon(R) Processor, 2 threads'."""
    import torch  # here: who lists runs must not wait for it

    if on_gpu():
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
