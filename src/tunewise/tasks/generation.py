"""Prompts with completions, scored by what a model generates from the prompts alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any
from unittest import mock

import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig

from tunewise.errors import DataError, ModelError, SpecError, suggest_nearest
from tunewise.locate import resolve
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, EvaluationSpec, ModelSpec
from tunewise.store.answers import Answer
from tunewise.tasks.causal import IGNORED, CausalLanguage
from tunewise.tasks.contract import Encoded, Prediction, Split
from tunewise.tasks.files import read_rows, refuse_blank
from tunewise.tasks.own_metric import OwnMetric
from tunewise.tasks.splits import Record, shuffled
from tunewise.tasks.text_metrics import TEXT_METRICS, TextScore, require_metric

_SLACK = 16  # tokens more than the longest reference: other tokens may spell the same text


class Generation(CausalLanguage):
    """As `CausalLanguage`, and answers to the prompts of validation and test are generated and compared with the
    completions, by all metrics of `tasks/text_metrics.py` and, where given, by a function of the user's own.

    The training split is not generated, which would take longer than the training; its loss is exact all the same.
    Beside its tokens an example has the texts `prompt` and `reference`, and `cells`, those of its row.
    """

    metric = "exact_match"

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        super().__init__(model, data, max_length)
        self.own_metric: OwnMetric | None = None
        self.ends: list[int] = []
        self.split_seed = data.split_seed
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"model {model.path!r}: its tokenizer has no end-of-text token, so a model can't say where a "
                "completion ends; score perplexity (--task causal)"
            )

    @classmethod
    def recognises(cls, data: DataSpec) -> bool:
        return False

    @classmethod
    def check_scores(cls, metric: str | None, evaluation: EvaluationSpec) -> None:
        if metric in TEXT_METRICS:
            require_metric(metric)
        elif metric is not None and metric not in CausalLanguage.metrics and OwnMetric.parse(metric) is None:
            known = [*TEXT_METRICS, *CausalLanguage.metrics]
            raise SpecError(f"unknown metric {metric!r}, and no FILE.py:FUNCTION{suggest_nearest(metric, known)}")

    @property
    def metrics(self) -> Sequence[str]:  # type: ignore[override]
        """Those of generated texts whose library is installed, the user's own, and those of all language models."""
        available = [name for name, metric in TEXT_METRICS.items() if metric.is_available]
        own = [self.own_metric.key] if self.own_metric else []
        return (*available, *own, *CausalLanguage.metrics)

    def set_scores(self, metric: str | None, evaluation: EvaluationSpec) -> None:
        super().set_scores(metric, evaluation)
        self.own_metric = OwnMetric.parse(metric)
        if self.own_metric is not None:
            self.metric = self.own_metric.key
        if evaluation.extract is not None:
            for example in (*self.validation, *self.test):
                if self._extract(example["reference"]) is None:
                    raise DataError(
                        f"extract {evaluation.extract!r} matches nothing in the reference "
                        f"{example['reference'][-60:]!r}; correct the expression, or the row"
                    )
        sizes = {part: (len(self.generated(split)), len(split)) for part, split in self._generated_parts().items()}
        if any(0 < drawn < size for drawn, size in sizes.values()):
            drawn_of = ", ".join(f"{part} {drawn:,} of {size:,}" for part, (drawn, size) in sizes.items())
            note = f"Answers are generated for a fixed sample: {drawn_of} (split seed {self.split_seed})."
            self.facts = self.facts.model_copy(update={"notes": [*self.facts.notes, note]})

    def try_metric(self) -> None:
        if self.own_metric is not None:
            examples = self.validation[:2]
            self.own_metric.try_out(
                [self._extract(e["reference"]) or "" for e in examples], [e["cells"] for e in examples]
            )

    def encode(self, records: Sequence[Record]) -> Split:
        if records and records[0].content[0] is None:
            raise DataError(
                f"{records[0].where}: generation needs prompts and completions; name the column of the completions "
                "as --label"
            )
        return [
            {**row, "prompt": record.content[0], "reference": record.content[1], "cells": record.content[2]}
            for row, record in zip(super().encode(records), records, strict=True)
        ]

    # --- generation -------------------------------------------------------------------------------

    def _generated_parts(self) -> dict[str, Split]:
        return {"validation": self.validation, "test": self.test}

    def generated(self, split: Split) -> Sequence[int]:
        """All of validation and of test, or the sample that `eval_samples` asks for; the same for all methods."""
        part = next((part for part, examples in self._generated_parts().items() if split is examples), None)
        if part is None:
            return []
        places = range(len(split))
        most = self.evaluation.eval_samples
        return sorted(shuffled(places, f"{self.split_seed}|generated|{part}")[:most])

    def prompt_ids(self, example: Encoded) -> list[int]:
        """The token ids that an answer is generated from: those before the first target."""
        first = next(place for place, label in enumerate(example["labels"]) if label != IGNORED)
        return list(example["input_ids"][:first])

    def new_tokens(self) -> int:
        """Tokens that are generated at most: as given, or as the longest reference, its end token and some more."""
        return self.evaluation.max_new_tokens or self.longest_reference + 1 + _SLACK

    @cached_property
    def longest_reference(self) -> int:
        """Tokens of the longest reference of validation and test."""
        texts = [example["reference"] for split in self._generated_parts().values() for example in split]
        return max(map(len, self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))

    def generate(self, model: nn.Module, examples: Sequence[Encoded]) -> list[str]:
        """The answers of a model: greedy, or sampled by draws that depend on the prompts alone."""
        prompts = [self.prompt_ids(example)[-(self.token_limit - 1) :] for example in examples]
        return [self._decode(ids) for ids in self._complete(model, prompts, self.new_tokens())]

    def _complete(self, model: nn.Module, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
        """Completions of at most `most` tokens, up to and with the token that ends one."""
        width = max(map(len, prompts))
        device = next(model.parameters()).device
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.ends = self._end_ids(base.generation_config)
        temperature = self.evaluation.temperature
        config = GenerationConfig(
            **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}),
            max_new_tokens=max(1, min(most, self.token_limit - width)),
            pad_token_id=padding,
            eos_token_id=self.ends,
            use_cache=True,
        )
        with torch.random.fork_rng(enabled=bool(temperature)), mock.patch.object(base, "generation_config", config):
            # Not with the penalties and the sampling that a checkpoint's own generation_config may name.
            if temperature:
                torch.manual_seed(sum(map(sum, prompts)))
            output = model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, generation_config=config
            )
        return [row[: self._end_of(row) + 1] for row in output[:, width:].tolist()]

    def _end_ids(self, config: GenerationConfig) -> list[int]:
        """The tokenizer's end-of-text token, and the ends of turns that a checkpoint names beside it."""
        named = config.eos_token_id
        ends = named if isinstance(named, list) else [] if named is None else [named]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *ends]))

    def _end_of(self, ids: list[int]) -> int:
        """The place of the first end; the length where there is none."""
        return next((place for place, token in enumerate(ids) if token in self.ends), len(ids))

    def _decode(self, ids: list[int]) -> str:
        """The text before the first end; all of it where there is none."""
        return str(self.tokenizer.decode(ids[: self._end_of(ids)], skip_special_tokens=True)).strip()

    # --- prediction of new data ---------------------------------------------------------------------

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
            {"prediction": self._decode(ids), "log_probability": -loss}
            for ids, loss in zip(completions, losses, strict=True)
        ]

    def plain_line(self, data: DataSpec) -> str:
        return self.generating_line(self.plain_prompt(), len(self.tokenizer("A prompt.")["input_ids"]))

    def generating_line(self, ids: str, length: int) -> str:
        """Python that prints the greedy completion of token ids; `ids` is an expression, `length` about how many."""
        most = min(self.max_length, self.token_limit - length)
        settings = f"do_sample=False, max_new_tokens={most}, eos_token_id={self.tokenizer.eos_token_id}"
        return (
            f"import torch; from transformers import GenerationConfig; ids = {ids}; "
            f"output = model.generate(torch.tensor([ids]), generation_config=GenerationConfig({settings})); "
            "print(tokenizer.decode(output[0, len(ids):], skip_special_tokens=True).strip())"
        )

    # --- scores -----------------------------------------------------------------------------------

    def grade(self, examples: Split, texts: Sequence[str]) -> tuple[dict[str, float], list[Answer]]:
        """The scores of answers to these examples, and the answers with what each of them scored."""
        predictions = [self._extract(text) or "" for text in texts]
        references = [self._extract(example["reference"]) or "" for example in examples]
        scores: dict[str, TextScore] = {
            name: metric.score(predictions, references) for name, metric in TEXT_METRICS.items() if metric.is_available
        }
        if self.own_metric is not None:
            cells = [example["cells"] for example in examples]
            scores[self.own_metric.key] = self.own_metric.score(predictions, references, cells)
        answers = [
            Answer(
                prompt=example["prompt"],
                reference=example["reference"],
                prediction=text,
                scores={name: score.by_example[place] for name, score in scores.items() if score.by_example},
            )
            for place, (example, text) in enumerate(zip(examples, texts, strict=True))
        ]
        return {name: score.value for name, score in scores.items()}, answers

    def constant_scores(self, split: Split) -> dict[str, float]:
        """Of the commonest reference as every answer."""
        examples = [split[place] for place in self.generated(split)]
        if not examples:
            return {}
        by_answer = {self._extract(example["reference"]): example["reference"] for example in examples}
        (commonest, _), *_ = Counter(self._extract(example["reference"]) for example in examples).most_common(1)
        return self.grade(examples, [by_answer[commonest]] * len(examples))[0]

    def _extract(self, text: str) -> str | None:
        """What is compared of a text: all of it, or the group of the last match of `extract`; None without one."""
        if self.evaluation.extract is None:
            return text
        matches = re.findall(self.evaluation.extract, text)
        return (str(matches[-1]).strip() or None) if matches else None


TASKS.register("generation", Generation)
