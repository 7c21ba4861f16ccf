"""Chats and instructions: a model learns the assistant's turns, in its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunewise.errors import DataError, ModelError
from tunewise.locate import resolve
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.causal import IGNORED, CausalLanguage
from tunewise.tasks.chat_template import ChatTemplate
from tunewise.tasks.contract import Encoded, Split
from tunewise.tasks.conversations import LAYOUTS, Conversation, layout_of, read_conversation, read_prompt
from tunewise.tasks.files import digest_by_part, read_records
from tunewise.tasks.generation import Generation
from tunewise.tasks.splits import Record, Splits, make_splits, read_parts
from tunewise.text_format import pluralize

_SHOWN = 1200  # characters of an example


class Chat(Generation):
    """Conversations in one of the layouts of `LAYOUTS`. Targets are the tokens of the assistant's turns, with their end
    tokens. Answers to all but the last turn are generated where a metric or a setting asks for them.

    An example has its token ids, its labels, `prompt_ids`, and the texts `prompt` and `reference`.
    """

    metric = "perplexity"

    def _set_up(self, model: ModelSpec, data: DataSpec, max_length: int, labels: Sequence[str]) -> None:
        super()._set_up(model, data, max_length, labels)
        self.data = data
        self.dropped = self.shortened = 0
        try:
            self.template = ChatTemplate(self.tokenizer, data.chat_template)
        except ModelError as error:
            raise ModelError(f"model {model.path!r}: {error}") from None

    @classmethod
    def recognises(cls, data: DataSpec) -> bool:
        path = resolve(data.path)
        if path.is_dir() or not path.exists() or data.choices is not None:
            return False
        try:
            cells, _ = next(read_records(path, encoding=data.encoding))
        except DataError:
            return False  # the task that reads it says what is wrong
        return layout_of(cells) is not None and data.text not in cells

    @classmethod
    def digest(cls, data: DataSpec) -> str:
        digest = digest_by_part(data)
        if data.chat_template in (None, "plain"):
            return digest
        try:
            template = Path(str(data.chat_template)).expanduser().read_bytes()
        except OSError as error:
            raise DataError(f"chat_template {data.chat_template!r}: {error.strerror}") from None
        return hashlib.sha256(digest.encode() + template).hexdigest()

    @classmethod
    def read(cls, data: DataSpec) -> tuple[list[str], Splits]:
        """A record's content is (conversation, cells of the row)."""
        path = resolve(data.path)
        cells, where = next(read_records(path, encoding=data.encoding))
        layout = layout_of(cells)
        if layout is None:
            shown = "; ".join(layout.example for layout in LAYOUTS)
            raise DataError(f"{where}: the columns {', '.join(cells)} are no layout of a chat; write one of: {shown}")

        def read(path: Path) -> list[Record]:
            records = []
            for cells, where in read_records(path, encoding=data.encoding):
                conversation = read_conversation(cells, where, layout)
                key = json.dumps([conversation.messages[:-1], conversation.tools], default=str)
                answer = json.dumps(conversation.messages[-1], default=str)
                records.append(Record(key, answer, "", where, (conversation, cells)))
            return records

        splits = make_splits(data, read_parts(data, read), noun="conversation", many_targets=True)
        targets = {"assistant": "the assistant's turns", "last": "the assistant's last turn", "all": "all tokens"}
        kind = f"Chats in the layout {layout.name}; targets: {targets[data.loss_on]}."
        return [], Splits(splits.parts, [kind, *splits.notes])

    def encode(self, records: Sequence[Record]) -> Split:
        rows = [self._encode(record) for record in records]
        kept = [row for row in rows if row is not None]
        if not kept:
            raise DataError(f"no conversation has a token to learn within {self.max_length} tokens; raise --max-length")
        return kept

    def _encode(self, record: Record) -> Encoded | None:
        conversation: Conversation = record.content[0]
        rendered = self.template.render(conversation, record.where, self.data.loss_on)
        ids, trained = rendered.input_ids[: self.max_length], rendered.trained[: self.max_length]
        self.truncated += len(ids) < len(rendered.input_ids)
        self.shortened += sum(trained) < sum(rendered.trained)
        labels = [token if is_target else IGNORED for token, is_target in zip(ids, trained, strict=True)]
        labels[0] = IGNORED
        if all(label == IGNORED for label in labels):
            if not self.data.drop_too_long:
                raise DataError(
                    f"{record.where}: none of its {len(rendered.input_ids)} tokens to learn are within the first "
                    f"{self.max_length}; raise --max-length, or drop such rows (--drop-too-long)"
                )
            self.dropped += 1
            return None
        return {
            "input_ids": ids,
            "labels": labels,
            "prompt_ids": rendered.prompt_ids,
            "prompt": rendered.prompt,
            "reference": rendered.reply,
            "cells": record.content[1],
        }

    def encoding_notes(self, parts: Mapping[str, Split]) -> list[str]:
        notes = [*super().encoding_notes(parts), self.template.describe(), self._shown(parts["train"][0])]
        if self.shortened:
            notes.append(f"{pluralize(self.shortened, 'conversation')} lost tokens to learn at the cut.")
        if self.dropped:
            notes.append(
                f"{pluralize(self.dropped, 'conversation')} with no token to learn before the cut were dropped."
            )
        return notes

    def _shown(self, example: Encoded) -> str:
        """The first example with its targets in brackets."""
        pieces, inside = [], False
        for token, label in zip(example["input_ids"], example["labels"], strict=True):
            if (label != IGNORED) != inside:
                pieces.append("⟦" if not inside else "⟧")
                inside = not inside
            pieces.append(str(self.tokenizer.decode([token])))
        text = "".join(pieces) + ("⟧" if inside else "")
        text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
        return f"The first example, targets in ⟦brackets⟧: {text}"

    @property
    def metrics(self) -> Sequence[str]:  # type: ignore[override]
        """Those of answers only where answers are asked for."""
        return super().metrics if self._answers else CausalLanguage.metrics

    @property
    def _answers(self) -> bool:
        """Whether the main metric or a setting of the evaluation is one of answers."""
        return self.metric not in CausalLanguage.metrics or bool(self.evaluation.of_answers)

    def generated(self, split: Split) -> Sequence[int]:
        return super().generated(split) if self._answers else []

    def read_inputs(self, data: DataSpec) -> tuple[list[str], Split]:
        """Conversations without the answer; an answer that is there is left out."""
        places, examples = [], []
        for cells, where in read_records(resolve(data.path), encoding=data.encoding):
            text = self.template.render_prompt(read_prompt(cells, where), where)
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= self.token_limit:
                raise DataError(f"{where}: {len(ids)} tokens, and the model takes {self.token_limit}; shorten the row")
            places.append(where)
            examples.append({"input_ids": ids, "labels": []})
        return places, examples

    def plain_line(self, data: DataSpec) -> str:
        template = "" if data.chat_template is None else f", chat_template={self.tokenizer.chat_template!r}"
        ids = (
            "tokenizer.apply_chat_template([{'role': 'user', 'content': 'A question.'}], add_generation_prompt=True, "
            f"return_dict=True{template})['input_ids']"
        )
        return self.generating_line(ids, len(self.tokenizer("A question.")["input_ids"]))

    def prompt_ids(self, example: Encoded) -> list[int]:
        return list(example["prompt_ids"])


TASKS.register("chat", Chat)
