"""Language models: the next token of texts, or of completions of prompts; scored by perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tunewise.errors import DataError, ModelError
from tunewise.locate import resolve
from tunewise.models.head import Head
from tunewise.models.load import load_config, load_model, load_tokenizer
from tunewise.spec import DataSpec, ModelSpec
from tunewise.store.records import DataFacts
from tunewise.tasks.classification import check_columns, refuse_blank
from tunewise.tasks.contract import Encoded, Split, StandIn
from tunewise.tasks.files import read_rows, table_columns
from tunewise.tasks.splits import PARTS, Record, check_fractions, make_splits

IGNORED = -100  # the label of a token that is no target, as transformers has it
_LARGEST_EXPONENT = 700.0  # e to more than this is infinite in double precision


class CausalLanguage:
    """Texts whose every token but the first is a target, or prompts with completions, whose tokens are the targets.

    An example has its token ids and, as labels, the ids of its targets in their places. A completion ends in the
    tokenizer's end-of-text token, where it has one.
    """

    metric = "perplexity"
    metrics: Sequence[str] = ("perplexity", "token_accuracy")
    lower_is_better: Sequence[str] = ("perplexity",)

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        self.model_spec = model
        _refuse_bidirectional(model)
        self.tokenizer = load_tokenizer(model)
        self.positions = int(min(self.tokenizer.model_max_length, _positions(model)))
        self.max_length = min(max_length, self.positions)
        self.labels: list[str] = []
        self._cut = {"prompts": 0, "texts": 0, "completions": 0}
        parts, notes = _load(data)
        self.train, self.validation, self.test = (self._encode(parts[part]) for part in PARTS)
        self.facts = DataFacts(
            train=len(self.train),
            validation=len(self.validation),
            test=len(self.test),
            labels=[],
            notes=[*notes, *self._notes()],
        )

    def _encode(self, records: Sequence[Record]) -> Split:
        prompts: list[str | None] = [record.content[0] for record in records]
        texts: list[str] = [record.content[1] for record in records]
        whole = prompts[0] is None
        starts = [] if whole else self.tokenizer([p or "" for p in prompts], verbose=False)["input_ids"]
        bodies = self.tokenizer(texts, add_special_tokens=whole, verbose=False)["input_ids"]
        rows: list[dict[str, Any]] = []
        for place, (record, body) in enumerate(zip(records, bodies, strict=True)):
            row = self._whole(body) if whole else self._completion(self._without_end(starts[place]), body)
            if all(label == IGNORED for label in row["labels"][1:]):
                raise DataError(f"{record.where}: no token is left to predict; remove the row, or check the tokenizer")
            rows.append(row)
        return rows

    def _whole(self, body: list[int]) -> dict[str, Any]:
        self._cut["texts"] += len(body) > self.max_length
        body = body[: self.max_length]
        return {"input_ids": body, "labels": [IGNORED, *body[1:]]}

    def _completion(self, start: list[int], body: list[int]) -> dict[str, Any]:
        """What is too long loses the beginning of its prompt, and where that is not enough the end of its completion:
        a cut completion has no end-of-text token."""
        end = self.tokenizer.eos_token_id
        body = body if end is None else [*body, end]
        first = start[:1] or ([] if end is None else [end])  # something has to stand before the first target
        room = self.max_length - len(first)
        self._cut["completions"] += len(body) > room
        body = body[:room]
        rest = start[1:]
        left = room - len(body)
        self._cut["prompts"] += len(rest) > left
        ids = [*first, *rest[max(0, len(rest) - left) :], *body]
        return {"input_ids": ids, "labels": [IGNORED] * (len(ids) - len(body)) + body}

    def _without_end(self, start: list[int]) -> list[int]:
        ends = len(start) > 1 and start[-1] == self.tokenizer.eos_token_id
        return start[:-1] if ends else start

    def _notes(self) -> list[str]:
        total = len(self.train) + len(self.validation) + len(self.test)
        where = {
            "texts": "are longer than {} tokens and were cut there",
            "prompts": "lost their beginning, so that prompt and completion fit into {} tokens",
            "completions": "are longer than the {} tokens that fit and were cut there",
        }
        notes = [
            f"{count:,} of {total:,} {what} {where[what].format(self.max_length)}."
            for what, count in self._cut.items()
            if count
        ]
        tokens = {part: int(self.targets(getattr(self, part)).sum()) for part in PARTS}
        said = ", ".join(f"{part} {count:,}" for part, count in tokens.items())
        return [*notes, f"Target tokens: {said}; loss, gap and perplexity are means over them."]

    @property
    def head(self) -> Head:
        """What the model ends in."""
        return Head("causal")

    def describe(self, batch: dict[str, Tensor]) -> str:
        count, longest = batch["input_ids"].shape
        return f"{count} texts ({count * longest:,} tokens with padding, at most {self.max_length} each)"

    def length(self, example: Encoded) -> int:
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """Padded on the right, whatever the tokenizer does when it generates."""
        padding = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        rows = [{**example, "attention_mask": [1] * len(example["input_ids"])} for example in examples]
        longest = max(map(self.length, examples))
        return {
            key: torch.tensor([[*row[key], *[fill] * (longest - len(row[key]))] for row in rows])
            for key, fill in padding.items()
        }

    def load_model(self, seed: int) -> nn.Module:
        model: Any = load_model(self.model_spec, self.head, seed=seed, pad_token_id=self.tokenizer.pad_token_id)
        model.config.use_cache = False  # of keys and values, for generating
        return model

    def keep(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of each example: summed loss of its targets in nats, how many were predicted right, how many there are."""
        rows = []
        for one, row in zip(logits, labels, strict=True):  # one by one: in double precision a batch is large
            losses, targets = _token_losses(one[None].double(), row[None]), row[1:]
            right = (one[:-1].argmax(-1) == targets) & (targets != IGNORED)
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

    def weights(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Target tokens."""
        if outputs.dim() == 3:
            return (labels[:, 1:] != IGNORED).sum(1).double()
        return outputs[:, 2].double()

    def score(self, kept: Tensor, targets: Tensor) -> dict[str, float]:
        """Perplexity, e to the mean loss over all target tokens of the split, and the share of them that is right."""
        loss, right, count = (float(column) for column in kept.double().sum(0))
        perplexity = math.exp(min(loss / count, _LARGEST_EXPONENT))
        return {"perplexity": perplexity, "token_accuracy": right / count}

    def confusion(self, kept: Tensor, targets: Tensor) -> None:
        return None


def causal_stand_in(model: ModelSpec, data: DataSpec, labels: list[str]) -> StandIn:
    """Two sentences for any language model."""
    tokenizer = load_tokenizer(model)
    tokenizer.padding_side = "right"
    probe = ["The same text, for both.", "A second and rather longer one, so that there is padding too."]
    inputs = dict(tokenizer(probe, padding=True, return_tensors="pt", return_token_type_ids=False))
    return StandIn(Head("causal"), inputs, tokenizer, tokenizer.pad_token_id)


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch, length - 1) nats: each position against the token after it; 0 where that is no target."""
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED)


def _positions(model: ModelSpec) -> int:
    return int(getattr(load_config(model), "max_position_embeddings", None) or 10**9)


def _refuse_bidirectional(model: ModelSpec) -> None:
    config = load_config(model)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"model {model.path!r}: a {config.model_type} sees the tokens that it should predict, so it is no causal "
            "language model; take one that was pretrained on the next token"
        )


def _load(spec: DataSpec) -> tuple[dict[str, list[Record]], list[str]]:
    """The three parts; a record's content is (prompt, completion), or (None, text)."""
    check_fractions(spec)
    path = resolve(spec.path)
    prompted = not path.is_dir() and _has_completions(spec)
    if prompted:
        check_columns({"text": spec.text, "label": spec.label})
    columns = [spec.text, spec.label] if prompted else [spec.text]
    paths = {"train": spec.path, "validation": spec.validation, "test": spec.test}
    read = {part: _records(spec, one, columns) for part, one in paths.items() if one is not None}
    noun = "prompt" if prompted else "text"
    splits = make_splits(spec, read.pop("train"), read, noun=noun, many_targets=prompted)
    kind = (
        f"Completions (column {spec.label!r}) of prompts (column {spec.text!r}), of which only the completions' tokens "
        "are learned and scored."
        if prompted
        else f"Texts (column {spec.text!r}) of which every token but the first is learned and scored."
    )
    return {part: getattr(splits, part) for part in PARTS}, [kind, *splits.notes]


def _has_completions(spec: DataSpec) -> bool:
    """Whether there is a column of completions: the label column, which is optional under its usual name alone."""
    if not spec.label:
        return False
    columns = table_columns(resolve(spec.path), spec.encoding)
    return spec.label in columns or spec.label != DataSpec.model_fields["label"].default


def _records(spec: DataSpec, path: str, columns: Sequence[str]) -> list[Record]:
    records = []
    for row in read_rows(resolve(path), columns, encoding=spec.encoding):
        refuse_blank(row, columns)
        text = row.values[spec.text]
        prompt, body = (text, row.values[columns[1]]) if len(columns) > 1 else (None, text)
        records.append(Record(text, body if prompt else "", "", row.where, (prompt, body)))
    return records
