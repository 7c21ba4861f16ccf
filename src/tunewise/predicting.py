"""Predict new data with a finished run, and the Python that does so without tunewise.

run -> its task, without its data -> inputs of the new file -> base model with the saved method -> predictions
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch

from tunewise.device import device_type
from tunewise.errors import SpecError, StoreError, out_of_memory_noted
from tunewise.methods.files import CHANGED
from tunewise.methods.loading import load
from tunewise.models.head import head_modules
from tunewise.models.load import load_config, meta_model, model_folder, torch_dtype
from tunewise.models.quantization import quantization_options
from tunewise.spec import DataSpec, ModelSpec, parse
from tunewise.store.files import sha256, write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.lookup import find_run
from tunewise.store.records import RunRecord
from tunewise.tasks.build import check_digests, task_class
from tunewise.tasks.contract import Prediction, Task
from tunewise.training.evaluation import batches_by_length

_BATCH_SIZE = 64


def predict(
    run: str | Path, data: str | Path, out: str | Path | None = None, *, runs: str | Path = "runs", **columns: str
) -> list[Prediction]:
    """Predict the rows of a file with a finished run, on the run's own base model. The file needs no labels.

    Args:
        run: a run's folder, or its id, or the beginning of it.
        data: a file or folder in any layout that the run's data may have; a folder may hold its files itself.
        out: a csv file to write; must not exist.
        runs: the runs folder, for a run by its id.
        **columns: what differs from the run's data: `text`, `text_pair`, `label`, `choices`, `image`, `encoding`.

    Returns:
        A dictionary for each row, in the order of the data. `row` says where it stands, `prediction` is the class, the
        number or the generated text; `probability_CLASS` or `log_probability` are scores. Of language models without
        generation it has the `loss` and `perplexity` of the row's `tokens`.

    Raises:
        SpecError: `out` exists, an unknown run or column.
        StoreError: the run is not finished, or its adapter is damaged.
        DataError: a row that can't be read.
        ModelError: the base model is not the one of the run.

    Example:
        >>> import tunewise
        >>> tunewise.predict("runs/0f3a5b7c9d1e2f40", "new.csv")  # doctest: +SKIP
        [{'row': 'new.csv, line 2', 'prediction': 'sport', 'probability_business': 0.1, 'probability_sport': 0.9}]
    """
    out = None if out is None else _new_file(Path(out))
    store, run_id = find_run(str(run), Path(runs))
    record = _finished(store, run_id)
    spec = record.spec
    new = parse(DataSpec, {**spec.data.model_dump(), "digest": None, **columns, "path": str(data)})
    task = reopen(record)
    places, examples = task.read_inputs(new)
    model = load(task.load_model(spec.seed), store.folder(run_id) / "adapter").eval()
    model.to(device_type())
    rows: list[Prediction] = [{} for _ in places]
    with torch.no_grad(), out_of_memory_noted(f"in a prediction of {_BATCH_SIZE} examples at a time"):
        for batch in batches_by_length(task, examples, _BATCH_SIZE):
            for place, row in zip(batch, task.predict(model, [examples[i] for i in batch]), strict=True):
                rows[place] = {"row": places[place], **row}
    if out is not None:
        _write(rows, out)
    return rows


def reopen(record: RunRecord) -> Task:
    """The task of a finished run, without its data. Raises `ModelError` where the base model is another one now."""
    spec, kind = record.spec, task_class(record.spec.task)
    check_digests(kind, spec.model)
    assert record.data is not None
    return kind.reopen(spec.model, spec.data, spec.training.max_length, record.data.labels)


def _finished(store: RunStore, run_id: str) -> RunRecord:
    record, folder = store.record(run_id), store.folder(run_id)
    if record is None or record.status != "done":
        status = "is not finished" if record is None else f"ended as {record.status!r}"
        raise StoreError(f"{folder} {status}, so there is nothing to predict with")
    if record.spec.training.linearised:
        raise SpecError(f"{folder} was trained linearised: its adapter alone does not compute what the run scored")
    for name, digest in record.files.items():
        if name.startswith("adapter/") and not ((folder / name).is_file() and sha256(folder / name) == digest):
            raise StoreError(f"{folder / name} is not what the run has written; train it again, or restore the file")
    return record


def _new_file(out: Path) -> Path:
    if out.suffix.lower() != ".csv":
        raise SpecError(f"{out}: predictions are written as csv; name a file that ends in .csv")
    if out.exists():
        raise SpecError(f"{out} is there already; name another file, or remove it")
    return out


def _write(rows: list[Prediction], out: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out, text.getvalue())


def plain_lines(run: Path) -> list[str]:
    """Three lines of Python that predict one input with the adapter in a run's folder, by PEFT and transformers alone;
    none for a task that does not say how."""
    record = RunStore(run.parent).record(run.name)
    assert record is not None
    task, spec = reopen(record), record.spec
    source = _source(spec.model)
    code = task.plain_code(source, spec.data)
    if code is None or spec.training.linearised:
        return []
    names, line = code
    options = "".join(f", {key}={value!r}" for key, value in _options(task, spec.model).items())
    base = f"{task.head.auto_class}.from_pretrained({source}{options})"
    imports = f"from transformers import {task.head.auto_class}, {names}"
    adapter = run.absolute() / "adapter"
    if not (adapter / CHANGED).exists():
        model = f"model = PeftModel.from_pretrained({base}, {str(adapter)!r})"
        return [f"from peft import PeftModel; {imports}", model, line]
    model = f"model = {base}; model.load_state_dict(load_file({str(adapter / CHANGED)!r}), strict=False)"
    return [f"from safetensors.torch import load_file; {imports}", model, line]


def _source(model: ModelSpec) -> str:
    """The arguments of `from_pretrained` for a local folder, or a model of a hub."""
    folder = model_folder(model)
    revision = f", revision={model.revision!r}" if model.revision else ""
    remote = ", trust_remote_code=True" if model.trust_remote_code else ""
    return f"{model.path if revision else str(folder.absolute())!r}{revision}{remote}"


def _options(task: Task, model: ModelSpec) -> dict[str, object]:
    """What the base model is built with."""
    head = task.head.config()
    options: dict[str, object] = {"dtype": str(torch_dtype(model)).removeprefix("torch.")}
    if model.attn_implementation is not None:
        options["attn_implementation"] = model.attn_implementation
    options |= {key: head[key] for key in ("num_labels", "id2label") if key in head}
    head_names = head_modules(meta_model(model, task.head))
    for key, config in quantization_options(model, head_names, torch_dtype(model)).items():
        settings = {name: value for name, value in config.to_diff_dict().items() if not name.startswith("_")}
        options[key] = {"quant_method": "bitsandbytes", **settings}
    if not task.head.pretrained:
        options["ignore_mismatched_sizes"] = True  # of a checkpoint with another head
        padding = getattr(getattr(task, "tokenizer", None), "pad_token_id", None)
        if padding != getattr(load_config(model), "pad_token_id", None):
            options["pad_token_id"] = padding
    return options
