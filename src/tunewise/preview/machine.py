"""What a machine has to have beyond the tensors that a forecast counts. Imports nothing heavy."""

from __future__ import annotations

PROCESS_BYTES = 500 * 2**20
"""About what Python, torch, transformers and peft take in a CPU process, whatever is trained."""
GLIBC_KEEPS = 1.8
"""The most that was seen of a process's memory above its libraries, over that of its tensors, with glibc's default
settings: it keeps freed blocks below 32 MB, and how many hangs on the order of a step."""


def beyond_tensors(device: str) -> str:
    """In words, for people."""
    if device == "cuda":
        return "Beside them a GPU holds its context, and what its allocator can't use of its blocks."
    return (
        f"A process takes about {PROCESS_BYTES / 2**30:.1f} GB more for its libraries, and with glibc's default "
        f"settings it may keep freed blocks: up to {GLIBC_KEEPS:g} times the memory above was seen. "
        "MALLOC_MMAP_THRESHOLD_=1048576 in the environment prevents that, and costs some time."
    )
