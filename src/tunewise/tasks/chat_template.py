"""Conversations as the tokens of a model's chat template, and which of them are the assistant's.

Where a template marks the assistant's turns itself (`{% generation %}`), or TRL has such a version of it, the marks
decide. For every other template the turns are found by rendering the conversation up to each of them: the text that a
turn adds is the assistant's, up to and with its end token. That needs a template that renders the beginning of a
conversation the same however it goes on, and each conversation is checked for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from tunewise.errors import DataError, ModelError, first_line
from tunewise.tasks.conversations import Conversation, Message

PLAIN = (
    "{% for message in messages %}{{ '### ' + (message['role'] | capitalize) + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""For models without a template of their own: headings, and the end-of-text token after the assistant's turns."""

_PROBE_NAME = "probed_function"
_PROBE_CALL: list[Message] = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": _PROBE_NAME, "arguments": {}}}],
    },
]
_PROBE_TOOLS = [
    {"type": "function", "function": {"name": _PROBE_NAME, "description": "b", "parameters": {"type": "object"}}}
]

LossOn = Literal["assistant", "last", "all"]


def _as_text(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message["tool_calls"]]
    return {"role": message["role"], "content": "\n".join(filter(None, [message["content"], *calls]))}


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens: `trained` says of each whether it is a target."""

    input_ids: list[int]
    trained: list[bool]
    prompt_ids: list[int]
    """Everything before the last turn of the assistant, with the heading of that turn."""
    prompt: str
    reply: str
    """The last turn of the assistant, without its end token."""


class ChatTemplate:
    """Renders conversations for one tokenizer. `choice`: None for its own template, `plain`, or a Jinja file.

    Raises `ModelError` where there is no template, or one that can't be used."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, choice: str | None = None) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.is_fast:
            raise ModelError("chats need a fast tokenizer, and this model has none; convert it by transformers")
        self.own = tokenizer.chat_template if choice is None else None
        tokenizer.chat_template = self._template(choice)
        self.marked = self._with_marks()
        self.shows_calls = self._shows(messages=_PROBE_CALL)
        self.shows_tools = self._shows(messages=_PROBE_CALL[:1], tools=_PROBE_TOOLS)
        self.calls_as_text = self.tools_left_out = False

    def describe(self) -> str:
        """What the loss is found by, in a sentence."""
        source = "its own marks" if self.marked else "the text that each turn adds"
        name = "The model's own chat template" if self.own else "A chat template that the model does not have itself"
        words = f"{name} is used; the assistant's turns are found by {source}."
        if self.calls_as_text:
            words += " It has no form for calls of tools: they are written as JSON."
        if self.tools_left_out:
            words += " It does not show the tools of a conversation, so the model does not see them."
        return words

    def render(self, conversation: Conversation, where: str, loss_on: LossOn) -> Rendered:
        """Raises `DataError` for a conversation that the template refuses."""
        conversation = self._supported(conversation)
        messages = list(conversation.messages)
        full = self._text(conversation, messages, where)
        start = self._text(conversation, messages[:-1], where, add_generation_prompt=True)
        begins = full.startswith(start)
        reply = full[len(start) :] if begins else messages[-1]["content"]
        spans: list[tuple[int, int]] | None = None
        if loss_on == "all":
            spans = [(0, len(full))]
        elif loss_on == "last" and begins:
            spans = [(len(start), len(full.rstrip()))]
        elif self.marked is None:
            spans = self._turns(conversation, messages, full, where)
        ids, trained = self._tokens(full, spans) if spans is not None else self._marked_tokens(conversation, where)
        return Rendered(
            input_ids=ids,
            trained=trained,
            prompt_ids=self.tokenizer(start, add_special_tokens=False, verbose=False)["input_ids"],
            prompt=start,
            reply=self._without_end(reply),
        )

    def render_prompt(self, conversation: Conversation, where: str) -> str:
        """The text that an answer is generated from. Raises `DataError` where the template refuses the conversation."""
        conversation = self._supported(conversation)
        return self._text(conversation, conversation.messages, where, add_generation_prompt=True)

    def _template(self, choice: str | None) -> str:
        if choice is None:
            own = self.tokenizer.chat_template
            if isinstance(own, dict):
                own = own.get("default")
            if not own:
                raise ModelError(
                    "the model has no chat template (a base model); say chat_template plain (--chat-template plain) "
                    "for one of headings, or give a Jinja file"
                )
            return str(own)
        if choice == "plain":
            first = self.tokenizer("a")["input_ids"][:1]
            begins = self.tokenizer.bos_token_id is not None and first == [self.tokenizer.bos_token_id]
            return ("{{ bos_token }}" if begins else "") + PLAIN
        try:
            return Path(choice).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"chat_template {choice!r} is neither plain nor a readable file ({error})") from None

    def _with_marks(self) -> str | None:
        template = str(self.tokenizer.chat_template)
        if has_generation_markers(template):
            return template
        try:
            return get_training_chat_template(self.tokenizer)
        except (ValueError, TemplateError):  # a template that TRL does not know
            return None

    def _shows(self, **options: Any) -> bool:
        """Whether the name of a probe's function is in the rendered text."""
        try:
            text = self.tokenizer.apply_chat_template(
                tokenize=False, chat_template=self.marked or self.tokenizer.chat_template, **options
            )
        except (TemplateError, TypeError, KeyError, ValueError):
            return False
        return _PROBE_NAME in str(text)

    def _supported(self, conversation: Conversation) -> Conversation:
        """With what the template has no form for as text, so that nothing is lost unseen."""
        messages, tools = conversation.messages, conversation.tools
        if not self.shows_calls and any(message.get("tool_calls") for message in messages):
            self.calls_as_text = True
            messages = tuple(map(_as_text, messages))
        if tools and not self.shows_tools:
            self.tools_left_out, tools = True, ()
        return Conversation(messages, tools)

    def _text(self, conversation: Conversation, messages: Sequence[Message], where: str, **options: Any) -> str:
        template = self.marked or self.tokenizer.chat_template
        tools = list(conversation.tools) or None
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, chat_template=template, **options
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"{where}: the model's chat template refuses this conversation ({first_line(error)}); change the row, "
                "or give another template (--chat-template)"
            ) from None
        return str(text)

    def _turns(
        self, conversation: Conversation, messages: Sequence[Message], full: str, where: str
    ) -> list[tuple[int, int]]:
        """First and last character of every turn of the assistant in the rendered text."""
        spans = []
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._text(conversation, messages[:place], where, add_generation_prompt=True)
                after = self._text(conversation, messages[: place + 1], where)
                if not (after.startswith(before) and full.startswith(after.rstrip())):
                    raise DataError(
                        f"{where}: the model's chat template renders the beginning of this conversation otherwise once "
                        "it goes on, so the assistant's turns can't be found; give a template with generation markers "
                        "(--chat-template), or train on the last turn (--loss-on last)"
                    )
                spans.append((len(before), len(after.rstrip())))
        return spans

    def _tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        trained = [
            any(first <= start and end <= last for first, last in spans) and start < end
            for start, end in encoded["offset_mapping"]
        ]
        return encoded["input_ids"], trained

    def _marked_tokens(self, conversation: Conversation, where: str) -> tuple[list[int], list[bool]]:
        encoded: Any = self.tokenizer.apply_chat_template(
            list(conversation.messages),
            tools=list(conversation.tools) or None,
            chat_template=self.marked,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]

    def _without_end(self, reply: str) -> str:
        text = reply.rstrip()
        for end in (self.tokenizer.eos_token, *self.tokenizer.all_special_tokens):
            text = text.removesuffix(end) if end else text
        return text.strip()
