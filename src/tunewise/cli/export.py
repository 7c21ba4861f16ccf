"""`tunewise export`: an adapter as stock LoRA, or merged into its model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.cli.locating import run_or_adapter
from tunewise.errors import SpecError

_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def export(
    run: flags.RunOrAdapter,
    /,
    *,
    to: Annotated[Literal["lora", "merged"], Parameter(help="Stock LoRA, or the whole model.")] = "lora",
    out: Annotated[Path | None, Parameter(help="Folder to write; RUN-FORM beside the run unless given.")] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None, Parameter(help="Precision of a merged model; the base model's own.")
    ] = None,
    runs: flags.RunsFolder = Path("runs"),
) -> None:
    """Write the adapter in the form that the next tool reads."""
    run = run_or_adapter(run, runs)
    adapter = run / "adapter" if (run / "adapter").is_dir() else run
    target = out or run.parent / f"{run.name}-{to}"

    import torch

    from tunewise.exporting import export as write
    from tunewise.models.load import load_model
    from tunewise.store.folders import RunStore
    from tunewise.tasks.build import check_digests, task_class

    base = batch = None
    if to == "merged":
        record = RunStore(run.parent).record(run.name) if adapter != run else None
        if record is None:
            raise SpecError(f"{run} has no run.json, so its base model is not known; use tunewise.export in Python")
        assert record.data is not None
        spec, task = record.spec, task_class(record.spec.task)
        check_digests(task, spec.model)
        processor = task.load_processor(spec.model, spec.data)
        head = task.make_head(record.data.labels, spec.data)
        base = load_model(spec.model, head, seed=spec.seed, pad_token_id=getattr(processor, "pad_token_id", None))
        batch = task.sample_inputs(base, head, batch=2, length=8)
    precision = getattr(torch, _PRECISIONS[dtype]) if dtype else None
    exported = write(adapter, to, target, base=base, batch=batch, dtype=precision)
    print(f"{exported.path}  ({exported.size / 1e6:.2f} MB)")
    if to == "merged":
        processor.save_pretrained(target)
    if exported.max_logit_difference is not None:
        print(f"largest difference of logits, merged against unmerged: {exported.max_logit_difference:.2g}")
    if exported.warning:
        print(f"warning: {exported.warning}", file=sys.stderr)
