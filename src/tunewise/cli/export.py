"""`tunewise export`: a run's adapter as stock LoRA, merged into its model, or as compact columns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.found import RUN_OR_ADAPTER, run_or_adapter
from tunewise.errors import SpecError

_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def export(
    run: Annotated[Path, typer.Argument(help=RUN_OR_ADAPTER)],
    to: Annotated[str, typer.Option(help="lora (stock), merged (the whole model), or columns (compact).")] = "lora",
    out: Annotated[Path | None, typer.Option(help="Folder to write.  [default: RUN-FORM beside it]")] = None,
    dtype: Annotated[str | None, typer.Option(help="Precision of a merged model: fp32, bf16, fp16.")] = None,
    runs: Annotated[Path, typer.Option(help="The runs folder, for a run by its id.")] = Path("runs"),
) -> None:
    """Hand a trained adapter on in the form that the next tool wants."""
    if dtype is not None and dtype not in _PRECISIONS:
        raise SpecError(f"--dtype {dtype!r}; choose fp32, bf16 or fp16")
    run = run_or_adapter(run, runs)
    adapter = run / "adapter" if (run / "adapter").is_dir() else run
    target = out or run.parent / f"{run.name}-{to}"

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    import torch

    from tunewise.exporting import export as write
    from tunewise.models.load import load_model
    from tunewise.store.folders import RunStore
    from tunewise.tasks.build import task_class

    if to not in ("lora", "merged", "columns"):
        raise SpecError(f"--to {to!r}; choose lora, merged or columns")
    base = batch = None
    if to == "merged":
        record = RunStore(run.parent).record(run.name) if adapter != run else None
        if record is None:
            raise SpecError(f"{run} has no run.json, so its base model is not known; use tunewise.export in Python")
        assert record.data is not None
        found = task_class(record.spec.task).stand_in(record.spec.model, record.spec.data, record.data.labels)
        base = load_model(record.spec.model, found.head, seed=record.spec.seed, pad_token_id=found.pad_token_id)
        batch = found.inputs
    done = write(
        adapter,
        to,  # type: ignore[arg-type]
        target,
        base=base,
        batch=batch,
        dtype=getattr(torch, _PRECISIONS[dtype]) if dtype else None,
    )
    typer.echo(f"{done.path}  ({done.size / 1e6:.2f} MB)")
    if to == "merged":
        found.processor.save_pretrained(target)
    if done.max_logit_difference is not None:
        typer.echo(f"largest difference of logits, merged against unmerged: {done.max_logit_difference:.2g}")
    if done.warning:
        typer.echo(f"warning: {done.warning}", err=True)
