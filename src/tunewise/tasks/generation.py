"""Prompts with completions, scored by what a model generates from the prompts alone: greedily, and then compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from tunewise.errors import DataError, ModelError
from tunewise.locate import resolve
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.causal import IGNORED, CausalLanguage
from tunewise.tasks.contract import Encoded, Prediction, Split
from tunewise.tasks.files import read_rows, refuse_blank
from tunewise.tasks.splits import Record

_SLACK = 16  # tokens more than the longest reference of a batch: other tokens may spell the same text


class Generation(CausalLanguage):
    """As `CausalLanguage`, and validation and test are generated too: `exact_match` is the share of examples whose
    generated completion is the reference, white space aside.

    The training split is not generated, which would take longer than the training; its loss is exact all the same.
    """

    metric = "exact_match"
    metrics: Sequence[str] = ("exact_match", "perplexity", "token_accuracy")

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        super().__init__(model, data, max_length)
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"model {model.path!r}: its tokenizer has no end-of-text token, so a model can't say where a "
                "completion ends; score perplexity (--task causal)"
            )

    @classmethod
    def recognises(cls, data: DataSpec) -> bool:
        return False

    def encode(self, records: Sequence[Record]) -> Split:
        if records and records[0].content[0] is None:
            raise DataError(
                f"{records[0].where}: generation needs prompts and completions; name the column of the completions "
                "as --label"
            )
        rows = super().encode(records)
        references = [normalize_spaces(record.content[1]) for record in records]
        return [{**row, "reference": text} for row, text in zip(rows, references, strict=True)]

    def generate(self, model: nn.Module, examples: Sequence[Encoded]) -> Tensor:
        """(examples, 1): 1 where the model's greedy completion of the prompt is the reference, else 0."""
        prompts = [prompt_of(example) for example in examples]
        longest = max(len(e["input_ids"]) - len(p) for e, p in zip(examples, prompts, strict=True))
        completions = self._complete(model, prompts, longest + _SLACK)
        right = [self._is_reference(ids, e["reference"]) for ids, e in zip(completions, examples, strict=True)]
        return torch.tensor(right, dtype=torch.float64)[:, None]

    def read_inputs(self, data: DataSpec) -> tuple[list[str], Split]:
        """Prompts; what is too long loses its beginning."""
        room = self.max_length - min(_SLACK, self.max_length // 2)
        places, examples = [], []
        for row in read_rows(resolve(data.path), [data.text], encoding=data.encoding, flat=True):
            refuse_blank(row, [data.text])
            ids = self._without_end(self.tokenizer(row.values[data.text], verbose=False)["input_ids"])
            if not ids:
                raise DataError(f"{row.where}: the prompt has no tokens; remove the row, or check the tokenizer")
            places.append(row.where)
            examples.append({"input_ids": ids if len(ids) <= room else [*ids[:1], *ids[1 - room :]], "labels": []})
        return places, examples

    def predict(self, model: nn.Module, examples: Split) -> list[Prediction]:
        """`prediction`: the greedy completion; `log_probability`: of its tokens, in nats."""
        prompts = [example["input_ids"] for example in examples]
        completions = self._complete(model, prompts, self.max_length)
        scored = [
            {"input_ids": [*prompt, *ids], "labels": [IGNORED] * len(prompt) + ids}
            for prompt, ids in zip(prompts, completions, strict=True)
        ]
        losses = self.outputs(model, scored)[:, 0].tolist()
        return [
            {"prediction": self._decode(ids).strip(), "log_probability": -loss}
            for ids, loss in zip(completions, losses, strict=True)
        ]

    def plain_line(self, data: DataSpec) -> str:
        most = min(self.max_length, self.token_limit - len(self._without_end(self.tokenizer("A prompt.")["input_ids"])))
        settings = f"do_sample=False, max_new_tokens={most}, eos_token_id={self.tokenizer.eos_token_id}"
        return (
            f"import torch; from transformers import GenerationConfig; ids = {self.plain_prompt()}; "
            f"output = model.generate(torch.tensor([ids]), generation_config=GenerationConfig({settings})); "
            "print(tokenizer.decode(output[0, len(ids):], skip_special_tokens=True).strip())"
        )

    def _complete(self, model: nn.Module, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
        """Greedy completions of at most `most` tokens, up to and with the end-of-text token."""
        width = max(map(len, prompts))
        device = next(model.parameters()).device
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max(1, min(most, self.token_limit - width)),
                pad_token_id=padding,
                eos_token_id=self.tokenizer.eos_token_id,
                use_cache=True,
            ),
        )
        end = self.tokenizer.eos_token_id
        rows = output[:, width:].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def constant_scores(self, split: Split) -> dict[str, float]:
        """Of the commonest reference."""
        (_, count), *_ = Counter(example["reference"] for example in split).most_common(1)
        return {"exact_match": count / len(split)}

    def _is_reference(self, ids: list[int], reference: str) -> bool:
        """Whether a completion is the reference, and ended by the end-of-text token."""
        return ids[-1] == self.tokenizer.eos_token_id and normalize_spaces(self._decode(ids)) == reference

    def _decode(self, ids: list[int]) -> str:
        ended = ids[-1] == self.tokenizer.eos_token_id
        return str(self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True))

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Perplexity and token accuracy, and the share of exact matches where the split was generated."""
        scores = super().score(outputs[:, :3], targets)
        return {"exact_match": float(outputs[:, 3].mean()), **scores} if outputs.shape[1] > 3 else scores


def normalize_spaces(text: str) -> str:
    """The text with every run of white space as one blank and none at its ends."""
    return " ".join(text.split())


def prompt_of(example: Encoded) -> list[int]:
    """The token ids before the first target."""
    first = next(place for place, label in enumerate(example["labels"]) if label != IGNORED)
    return list(example["input_ids"][:first])


TASKS.register("generation", Generation)
