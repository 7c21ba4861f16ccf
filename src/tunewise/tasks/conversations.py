"""The layouts in which chats and instructions are written, read into one: messages with roles, and tools."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunewise.errors import DataError

Message = dict[str, Any]
"""`role` and `content`, and of a call `tool_calls`, as chat templates take them."""

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "function_call": "call",
    "observation": "tool",
    "tool": "tool",
}


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant, and the tools that it may call."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way to write a conversation in a row of a file."""

    name: str
    columns: tuple[str, ...]
    example: str
    read: Callable[[Mapping[str, Any], str], list[Message]]


def layout_of(cells: Mapping[str, Any]) -> Layout | None:
    """The layout that has all of its columns in this row; None where no layout has."""
    return next((layout for layout in LAYOUTS if all(column in cells for column in layout.columns)), None)


def read_conversation(cells: Mapping[str, Any], where: str, layout: Layout) -> Conversation:
    """The conversation of a row. Raises `DataError` for another layout, an unknown role, roles out of order, an
    assistant's empty turn, or a last turn that is not the assistant's."""
    if any(column not in cells for column in layout.columns):
        raise DataError(
            f"{where}: the columns {', '.join(cells) or 'none'}, where the first row has {layout.name}; each needs "
            f"{' and '.join(layout.columns)}, as in {layout.example}"
        )
    messages = layout.read(cells, where)
    _check_order(messages, where)
    return Conversation(tuple(messages), tuple(_read_tools(cells.get("tools"), where)))


def read_prompt(cells: Mapping[str, Any], where: str) -> Conversation:
    """The conversation of a row up to the assistant's last turn, which may be absent. Raises `DataError`."""
    layout = next((layout for layout in LAYOUTS if layout.columns[0] in cells), None)
    if layout is None:
        names = ", ".join(layout.columns[0] for layout in LAYOUTS)
        raise DataError(f"{where}: the columns {', '.join(cells)} hold no conversation; give one of {names}")
    messages = layout.read({"completion": [], "output": "", **cells}, where)
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    _check_order([*messages, {"role": "assistant", "content": "answer"}], where)
    return Conversation(tuple(messages), tuple(_read_tools(cells.get("tools"), where)))


def _check_order(messages: list[Message], where: str) -> None:
    if not messages:
        raise DataError(f"{where}: a list of turns is expected, and it is empty; fill it in or remove the row")
    roles = [message["role"] for message in messages]
    turns = [role for role in roles if role not in ("system", "developer")]
    if not turns:
        raise DataError(f"{where}: no turn of a user; a conversation needs a user's turn and an assistant's")
    if len(turns) < len(roles) and roles[0] not in ("system", "developer"):
        raise DataError(f"{where}: a system message after the first turn; put it first")
    if turns[0] != "user":
        raise DataError(f"{where}: the first turn is the {turns[0]}'s; begin with a user's turn")
    for before, after in itertools.pairwise(turns):
        if before == after and before != "tool":
            raise DataError(f"{where}: two turns of the {before} one after another; join them, or remove one")
    if turns[-1] != "assistant":
        raise DataError(f"{where}: the last turn is the {turns[-1]}'s; end with the assistant's, which is learned")
    for message in messages:
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise DataError(f"{where}: an empty turn of the assistant; fill it in or remove the row")


def _messages(turns: object, where: str, role_key: str, content_key: str) -> list[Message]:
    if not isinstance(turns, list):
        raise DataError(f"{where}: a list of turns is expected; each is {{{role_key!r}: ..., {content_key!r}: ...}}")
    return [_message(turn, where, role_key, content_key) for turn in turns]


def _message(turn: object, where: str, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, Mapping) or role_key not in turn:
        raise DataError(f"{where}: a turn without {role_key!r}; write {{{role_key!r}: ..., {content_key!r}: ...}}")
    role = _ROLES.get(str(turn[role_key]))
    if role is None:
        raise DataError(f"{where}: unknown role {turn[role_key]!r}; known are {', '.join(_ROLES)}")
    content = _content(turn.get(content_key), where)
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(content, where)]}
    message = {"role": role, "content": content}
    calls = turn.get("tool_calls")
    return {**message, "tool_calls": calls} if calls else message


def _content(content: object, where: str) -> str:
    """A string, or the texts of a list of parts joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    raise DataError(f"{where}: the content of a turn is neither text nor a list of text parts; only text is trained on")


def _call(content: str, where: str) -> dict[str, object]:
    try:
        call = json.loads(content)
        return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f'{where}: a function_call is JSON with a name: {{"name": ..., "arguments": ...}}; it is {content[:60]!r}'
        ) from None


def _read_tools(tools: object, where: str) -> list[Any]:
    """A list of tools, also as JSON text; each in the form of OpenAI's functions."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except ValueError as error:
            raise DataError(f"{where}: column 'tools' is not valid JSON ({error}); give a list of tools") from None
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{where}: column 'tools' is no list of tools")
    return [dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools]


def _openai(cells: Mapping[str, Any], where: str) -> list[Message]:
    return _messages(cells["messages"], where, "role", "content")


def _sharegpt(cells: Mapping[str, Any], where: str) -> list[Message]:
    turns = cells["conversations"]
    first = turns[0] if isinstance(turns, list) and turns else None
    keys = ("role", "content") if isinstance(first, Mapping) and "role" in first else ("from", "value")
    system = cells.get("system")
    head = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [*head, *_messages(turns, where, *keys)]


def _pairs(cells: Mapping[str, Any], where: str) -> list[Message]:
    parts = [("prompt", "user"), ("completion", "assistant")]
    messages: list[Message] = []
    for column, role in parts:
        value = cells[column]
        messages += (
            _messages(value, where, "role", "content")
            if isinstance(value, list)
            else [{"role": role, "content": _content(value, where)}]
        )
    return messages


def _alpaca(cells: Mapping[str, Any], where: str) -> list[Message]:
    instruction, more = _content(cells["instruction"], where), _content(cells.get("input"), where)
    history = cells.get("history") or []
    turns = [pair for pair in history if isinstance(pair, list) and len(pair) == 2]
    system = _content(cells.get("system"), where)
    return [
        *([{"role": "system", "content": system}] if system.strip() else []),
        *({"role": role, "content": _content(text, where)} for pair in turns for role, text in _exchange(pair)),
        {"role": "user", "content": f"{instruction}\n\n{more}" if more.strip() else instruction},
        {"role": "assistant", "content": _content(cells["output"], where)},
    ]


def _exchange(pair: list[object]) -> list[tuple[str, object]]:
    return [("user", pair[0]), ("assistant", pair[1])]


LAYOUTS = (
    Layout(
        "messages",
        ("messages",),
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
        _openai,
    ),
    Layout(
        "conversations (ShareGPT)",
        ("conversations",),
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
        _sharegpt,
    ),
    Layout("prompts with completions", ("prompt", "completion"), '{"prompt": "Hi", "completion": "Hello!"}', _pairs),
    Layout(
        "instructions (Alpaca)",
        ("instruction", "output"),
        '{"instruction": "Translate", "input": "Hallo", "output": "Hello"}',
        _alpaca,
    ),
)
