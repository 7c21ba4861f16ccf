"""Language models: the next token of texts, or of completions of prompts; scored by perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tunewise.errors import DataError, ModelError
from tunewise.locate import resolve
from tunewise.models.head import Head
from tunewise.models.language import has_causal_head
from tunewise.models.load import load_config
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.contract import Encoded, Prediction, Split
from tunewise.tasks.files import Row, as_text, read_records, refuse_blank
from tunewise.tasks.labels import check_columns
from tunewise.tasks.splits import Record, Splits, make_splits, read_parts
from tunewise.tasks.text_inputs import TokenTask

IGNORED = -100  # the label of a token that is no target, as in transformers
_LARGEST_EXPONENT = 700.0  # e to more than this is infinite in double precision


class CausalLanguage(TokenTask):
    """Texts whose every token but the first is a target, or prompts with completions, whose tokens are the targets.

    An example has its token ids and, as labels, the ids of its targets in their places. A completion ends in the
    tokenizer's end-of-text token, where it has one.
    """

    default_length = 1024
    default_targets = "all-linear"  # attention alone learns less: arXiv 2602.04998
    metric = "perplexity"
    metrics: Sequence[str] = ("perplexity", "token_accuracy")
    lower_is_better: Sequence[str] = ("perplexity",)
    rate_regime = "language"

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        _refuse_bidirectional(model)
        super().__init__(model, data, max_length)

    @classmethod
    def recognises(cls, data: DataSpec) -> bool:
        return data.choices is None and data.path.lower().removesuffix(".gz").endswith(".txt")

    @classmethod
    def recognises_model(cls, config: PretrainedConfig) -> bool:
        return has_causal_head(config)

    @classmethod
    def make_head(cls, labels: Sequence[str], data: DataSpec | None = None) -> Head:
        return Head("AutoModelForCausalLM", "a causal language model", pretrained=True)

    @classmethod
    def load_processor(cls, model: ModelSpec, data: DataSpec) -> PreTrainedTokenizerBase:
        tokenizer = super().load_processor(model, data)
        tokenizer.padding_side = "right"
        return tokenizer

    @classmethod
    def sample_labels(cls, ids: Tensor, head: Head) -> Tensor:
        return ids

    @classmethod
    def read(cls, data: DataSpec) -> tuple[list[str], Splits]:
        """A record's content is (prompt, completion, all cells of its row), or (None, text, cells)."""
        prompted = _has_completions(data)
        if prompted:
            check_columns({"text": data.text, "label": data.label})
        records = read_parts(data, lambda path: _records(data, path, prompted))
        splits = make_splits(data, records, noun="prompt" if prompted else "text", many_targets=prompted)
        kind = (
            f"Completions (column {data.label!r}) of prompts (column {data.text!r}), of which only the completions' "
            "tokens are learned and scored."
            if prompted
            else f"Texts (column {data.text!r}) of which every token but the first is learned and scored."
        )
        return [], Splits(splits.parts, [kind, *_layout_note(records), *splits.notes])

    def encode(self, records: Sequence[Record]) -> Split:
        prompts = [record.content[0] for record in records]
        texts = [record.content[1] for record in records]
        prompted = prompts[0] is not None
        starts = self.tokenizer(prompts, verbose=False)["input_ids"] if prompted else []
        bodies = self.tokenizer(texts, add_special_tokens=not prompted, verbose=False)["input_ids"]
        rows: list[dict[str, list[int]]] = []
        for place, (record, body) in enumerate(zip(records, bodies, strict=True)):
            row = self._completion(self._without_end(starts[place]), body) if prompted else self._text(body)
            if all(label == IGNORED for label in row["labels"][1:]):
                raise DataError(f"{record.where}: no token is left to predict; remove the row, or check the tokenizer")
            rows.append(row)
        return rows

    def _text(self, body: list[int]) -> dict[str, list[int]]:
        self.truncated += len(body) > self.max_length
        body = body[: self.max_length]
        return {"input_ids": body, "labels": [IGNORED, *body[1:]]}

    def _completion(self, start: list[int], body: list[int]) -> dict[str, list[int]]:
        """What is too long loses the beginning of its prompt, and where that is not enough the end of its completion:
        a cut completion has no end-of-text token."""
        end = self.tokenizer.eos_token_id
        body = body if end is None else [*body, end]
        first = start[:1] or ([] if end is None else [end])  # something has to stand before the first target
        room = self.max_length - len(first)
        self.truncated += len(start[1:]) + len(body) > room
        body = body[:room]
        rest = start[1:]
        ids = [*first, *rest[max(0, len(rest) - room + len(body)) :], *body]
        return {"input_ids": ids, "labels": [IGNORED] * (len(ids) - len(body)) + body}

    def _without_end(self, start: list[int]) -> list[int]:
        ends = len(start) > 1 and start[-1] == self.tokenizer.eos_token_id
        return start[:-1] if ends else start

    def encoding_notes(self, parts: Mapping[str, Split]) -> list[str]:
        notes = super().encoding_notes(parts)
        tokens = ", ".join(f"{part} {int(self.targets(split).sum()):,}" for part, split in parts.items())
        return [*notes, f"Target tokens: {tokens}; loss, gap and perplexity are means over them."]

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        padding = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        rows = [{**example, "attention_mask": [1] * len(example["input_ids"])} for example in examples]
        longest = max(map(self.length, examples))
        return {
            key: torch.tensor([[*row[key], *[fill] * (longest - len(row[key]))] for row in rows])
            for key, fill in padding.items()
        }

    def load_model(self, seed: int) -> nn.Module:
        model = super().load_model(seed)
        model.config.use_cache = False  # type: ignore[union-attr]
        return model

    def reduce_outputs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of each example: summed loss of its targets in nats, how many were predicted right, how many there are."""
        rows = []
        for scores, row in zip(logits, labels, strict=True):  # example by example: in double precision a batch is large
            losses, targets = _token_losses(scores[None].double(), row[None]), row[1:]
            right = (scores[:-1].argmax(-1) == targets) & (targets != IGNORED)
            rows.append(torch.stack([losses.sum(), right.sum(), (targets != IGNORED).sum()]))
        return torch.stack(rows).double()

    def targets(self, split: Split) -> Tensor:
        """How many target tokens each example has."""
        return torch.tensor([sum(label != IGNORED for label in example["labels"][1:]) for example in split])

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each example over its target tokens, fp64, in nats."""
        if outputs.dim() == 3:
            return _token_losses(outputs.double(), labels).sum(1) / (labels[:, 1:] != IGNORED).sum(1)
        return outputs[:, 0] / outputs[:, 2]

    def units(self, labels: Tensor) -> int:
        """Target tokens."""
        return int((labels[:, 1:] != IGNORED).sum())

    def weights(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Target tokens."""
        if outputs.dim() == 3:
            return (labels[:, 1:] != IGNORED).sum(1).double()
        return outputs[:, 2].double()

    def read_inputs(self, data: DataSpec) -> tuple[list[str], Split]:
        """Texts, or prompts with the completions that are to be scored, by the columns of the new data."""
        records = _records(data, resolve(data.path), _has_completions(data), flat=True)
        return [record.where for record in records], self.encode(records)

    def predict(self, model: nn.Module, examples: Split) -> list[Prediction]:
        """`loss`: nats a target token; `perplexity`; `tokens`: how many are targets."""
        outputs = self.outputs(model, examples)
        return [
            {"loss": loss, "perplexity": _perplexity(loss), "tokens": int(count)}
            for loss, count in zip((outputs[:, 0] / outputs[:, 2]).tolist(), outputs[:, 2].tolist(), strict=True)
        ]

    def plain_line(self, data: DataSpec) -> str:
        if not _has_completions(data):
            encoding = f"tokenizer('A text.', truncation=True, max_length={self.max_length}, return_tensors='pt')"
            return f"ids = {encoding}['input_ids']; print(model(input_ids=ids, labels=ids).loss.item())"
        end = "" if self.tokenizer.eos_token_id is None else f" + [{self.tokenizer.eos_token_id}]"
        completion = "tokenizer('A completion.', add_special_tokens=False)['input_ids']"
        batch = f"input_ids=torch.tensor([start + end]), labels=torch.tensor([[{IGNORED}] * len(start) + end])"
        return f"import torch; start, end = {self.plain_prompt()}, {completion}{end}; print(model({batch}).loss.item())"

    def plain_prompt(self) -> str:
        """Python for the token ids of a prompt."""
        ids = self.tokenizer("A prompt.")["input_ids"]
        return "tokenizer('A prompt.')['input_ids']" + ("" if self._without_end(ids) == ids else "[:-1]")

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Perplexity, e to the mean loss over all target tokens of the split, and the share of them that is right."""
        loss, right, count = (float(column) for column in outputs.double().sum(0))
        return {"perplexity": _perplexity(loss / count), "token_accuracy": right / count}


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, _LARGEST_EXPONENT))


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch, length - 1) nats: each position against the token after it; 0 where that is no target."""
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED)


def _refuse_bidirectional(model: ModelSpec) -> None:
    config = load_config(model)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"model {model.path!r}: a {config.model_type} sees the tokens that it should predict, so it is no causal "
            "language model; take one that was pretrained on the next token"
        )


def _has_completions(spec: DataSpec) -> bool:
    """Whether there is a column of completions: the label column, which is optional under its usual name alone."""
    path = resolve(spec.path)
    if path.is_dir() or not spec.label:
        return False
    cells, _ = next(read_records(path, encoding=spec.encoding))
    return spec.label in cells or spec.label != DataSpec.model_fields["label"].default


def _records(spec: DataSpec, path: Path, prompted: bool, *, flat: bool = False) -> list[Record]:
    """Prompts with completions, or texts. Raises `DataError` for the first row with the layout of the other."""
    columns = [spec.text, spec.label] if prompted else [spec.text]
    records: list[Record] = []
    for cells, where in read_records(path, columns, encoding=spec.encoding, flat=flat):
        if not prompted and spec.label in cells and not path.is_dir():
            raise DataError(
                f"{where}: a completion (column {spec.label!r}), where the first row of {spec.path} has none; "
                "give all rows one, or none"
            )
        first = records[0].content[2] if records else cells
        added = [column for column, cell in cells.items() if column not in first and cell is not None]
        if added and not prompted:
            raise DataError(
                f"{where}: the column {added[0]!r}, which the first row of {path.name} does not have; if it holds "
                f"completions, give all rows one and say --label {added[0]}; else give all rows the same columns"
            )
        row = Row({column: as_text(cells[column], column, where) for column in columns}, where)
        refuse_blank(row, columns)
        text, body = row.values[spec.text], row.values[columns[-1]]
        records.append(Record(text, body if prompted else "", "", where, (text if prompted else None, body, cells)))
    return records


def _layout_note(records: Mapping[str, Sequence[Record]]) -> list[str]:
    """A sentence on the first row with other columns than the first of train, of which no more is read."""
    first = list(records["train"][0].content[2])
    for record in (record for part in records.values() for record in part):
        columns = list(record.content[2])
        if set(columns) != set(first):
            return [
                f"Warning: {record.where} has the columns {', '.join(columns)}, where the first training row has "
                f"{', '.join(first)}; see that nothing to learn is in a column that is not named."
            ]
    return []


TASKS.register("causal", CausalLanguage)
