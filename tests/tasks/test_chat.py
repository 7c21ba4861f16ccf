"""Chats: layouts, chat templates, targets, faults; against transformers' own masks and a plain SFTTrainer of TRL."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import tunewise
from tiny import FILLER
from tiny_language import save_tiny_llama
from tunewise.errors import DataError, ModelError
from tunewise.predicting import plain_lines
from tunewise.run import run
from tunewise.spec import DataSpec, RunSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task, detect_task
from tunewise.tasks.causal import IGNORED
from tunewise.tasks.chat_template import ChatTemplate
from tunewise.tasks.conversations import Conversation, layout_of, read_conversation

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "my : BEGIN{{ message['content'] }}{{ eos_token }}END{% else %}the : {{ message['content'] }}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}my : {% endif %}"
)
PLAIN = TEMPLATE.replace("BEGIN", "").replace("END", "")
MARKED = TEMPLATE.replace("BEGIN", "{% generation %}").replace("END", "{% endgeneration %}")
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template without generation markers."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("llama") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = PLAIN
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats() -> list[dict[str, Any]]:
    """24 chats of one to three exchanges, none twice."""
    draw = random.Random(0)

    def words() -> str:
        return " ".join(draw.choices(sorted(FILLER), k=draw.randint(2, 5)))

    return [{"messages": turns(*(words() for _ in range(2 * (1 + place % 3))))} for place in range(24)]


@pytest.fixture
def written(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "chats.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        return path

    return write


def spec_of(model: Path, path: Path, **changes: Any) -> RunSpec:
    content = {
        "task": "chat",
        "model": {"path": str(model)},
        "data": {"path": str(path), "validation_size": 4, "test_size": 4, **changes.pop("data", {})},
        "method": {"name": "lora", "rank": 2, "learning_rate": 1e-2, "targets": "all-linear"},
        "training": {"epochs": 1, "batch_size": 4, **changes.pop("training", {})},
    }
    return RunSpec.model_validate({**content, **changes})


# --- layouts ----------------------------------------------------------------------------------------------

SAME = [
    {"messages": turns("Hi there", "Hello")},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]},
            {"role": "assistant", "content": "Hello"},
        ]
    },
    {"conversations": [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello"}]},
    {"conversations": turns("Hi there", "Hello")},
    {"prompt": "Hi there", "completion": "Hello"},
    {"prompt": turns("Hi there"), "completion": [{"role": "assistant", "content": "Hello"}]},
    {"instruction": "Hi there", "input": "", "output": "Hello"},
]


@pytest.mark.parametrize("row", SAME)
def test_all_layouts_are_the_same_conversation(row: dict[str, Any]) -> None:
    layout = layout_of(row)
    assert layout is not None
    assert read_conversation(row, "row 1", layout) == Conversation(tuple(turns("Hi there", "Hello")))


def test_calls_and_tools_of_sharegpt() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "2 * 3?"},
            {"from": "function_call", "value": '{"name": "multiply", "arguments": {"a": 2}}'},
            {"from": "observation", "value": "6"},
            {"from": "gpt", "value": "Six"},
        ],
        "tools": '[{"name": "multiply", "parameters": {}}]',
    }
    layout = layout_of(row)
    assert layout is not None
    conversation = read_conversation(row, "row 1", layout)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    (call,) = conversation.messages[1]["tool_calls"]
    assert call == {"type": "function", "function": {"name": "multiply", "arguments": {"a": 2}}}
    assert conversation.tools == ({"type": "function", "function": {"name": "multiply", "parameters": {}}},)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": turns("a", " ")}, "an empty turn of the assistant"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "begin with a user's turn"),
        ({"messages": turns("a")}, "end with the assistant's"),
        ({"messages": [*turns("a"), *turns("b", "c")]}, "two turns of the user one after another"),
        ({"messages": [*turns("a", "b"), {"role": "system", "content": "s"}]}, "put it first"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "unknown role 'robot'"),
        ({"messages": [{"content": "a"}]}, "a turn without 'role'"),
        ({"messages": []}, "a list of turns is expected"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, *turns("a", "b")[1:]]}, "only text"),
        ({"prompt": "a", "completion": "b"}, "every row needs|each needs messages"),
        ({"messages": turns("a", "b"), "tools": "{"}, "not valid JSON"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], message: str, llama: Path, written: Callable[..., Path]) -> None:
    path = written([ROW, row])
    with pytest.raises(DataError, match=r"chats.jsonl, line 2: .*" + f"({message})"):
        build_task(spec_of(llama, path))


def test_chats_are_recognised_by_their_columns(chats: list[dict[str, Any]], written: Callable[..., Path]) -> None:
    assert detect_task(DataSpec(path=str(written(chats)))) == "chat"
    assert detect_task(DataSpec(path=str(written([{"text": "a", "label": "b"}])))) == "text"


# --- templates and targets ----------------------------------------------------------------------------------


def labels_by_transformers(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return encoded["input_ids"], [bool(mark) for mark in encoded["assistant_masks"]]


def test_targets_are_those_of_a_template_with_markers(llama: Path, chats: list[dict[str, Any]]) -> None:
    """Found by what each turn adds, without any marker in the template."""
    template = ChatTemplate(AutoTokenizer.from_pretrained(llama))
    assert template.marked is None
    for row in chats:
        rendered = template.render(Conversation(tuple(row["messages"])), "row", "assistant")
        assert (rendered.input_ids, rendered.trained) == labels_by_transformers(template.tokenizer, row["messages"])
        last = template.render(Conversation(tuple(row["messages"])), "row", "last")
        assert last.input_ids[: len(last.prompt_ids)] == last.prompt_ids
        assert last.trained == [place >= len(last.prompt_ids) for place in range(len(last.input_ids))]
        assert last.reply == row["messages"][-1]["content"]
        assert all(template.render(Conversation(tuple(row["messages"])), "row", "all").trained)


def test_markers_decide_where_a_template_has_them(llama: Path, chats: list[dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = MARKED
    template = ChatTemplate(tokenizer)
    for row in chats:
        rendered = template.render(Conversation(tuple(row["messages"])), "row", "assistant")
        assert (rendered.input_ids, rendered.trained) == labels_by_transformers(tokenizer, row["messages"])


def test_a_template_that_rewrites_earlier_turns_is_refused(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] if loop.last or message['role'] == 'user' else 'the' }} "
        "{% endfor %}"
    )
    template = ChatTemplate(tokenizer)
    four = Conversation(tuple(turns("my", "and", "with", "my")))
    with pytest.raises(DataError, match="row 7: .*otherwise once it goes on"):
        template.render(four, "row 7", "assistant")
    assert sum(template.render(four, "row 7", "last").trained) == 1


def test_a_refusal_of_the_template_names_the_row(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    )
    system = Conversation(({"role": "system", "content": "s"}, *turns("a", "b")))
    with pytest.raises(DataError, match=r"row 3: .*refuses.*no system turn"):
        ChatTemplate(tokenizer).render(system, "row 3", "assistant")


def test_a_model_without_a_template_is_offered_a_plain_one(tmp_path: Path, written: Callable[..., Path]) -> None:
    base = save_tiny_llama(tmp_path / "base")
    path = written([{"messages": turns(f"my {word} with", "and and")} for word in sorted(FILLER)])
    with pytest.raises(ModelError, match="no chat template .*--chat-template plain"):
        build_task(spec_of(base, path))
    task: Any = build_task(spec_of(base, path, data={"chat_template": "plain"}))
    tokenizer: PreTrainedTokenizerFast = task.tokenizer
    row = task.train[0]
    assert row["input_ids"][0] == tokenizer.bos_token_id
    assert [token for token in row["labels"] if token != IGNORED][-1] == tokenizer.eos_token_id


def test_calls_that_a_template_has_no_form_for_become_text(llama: Path) -> None:
    call = {"type": "function", "function": {"name": "and", "arguments": {"with": 1}}}
    messages = (*turns("a"), {"role": "assistant", "content": "", "tool_calls": [call]})
    template = ChatTemplate(AutoTokenizer.from_pretrained(llama))
    rendered = template.render(
        Conversation(messages, ({"type": "function", "function": {"name": "and"}},)), "r", "last"
    )
    assert json.loads(rendered.reply) == call["function"]
    assert "written as JSON" in template.describe() and "does not show the tools" in template.describe()


def test_what_is_too_long_is_counted_and_never_silent(llama: Path, written: Callable[..., Path]) -> None:
    long = " ".join(["and"] * 30)
    rows = [{"messages": turns(f"my {word}", f"{word} and with")} for word in sorted(FILLER)]
    path = written([*rows, {"messages": turns(long, "my")}])
    with pytest.raises(DataError, match="raise --max-length, or drop such rows"):
        build_task(spec_of(llama, path, training={"max_length": 16}))
    task = build_task(spec_of(llama, path, training={"max_length": 16}, data={"drop_too_long": True}))
    assert any("1 conversation with no token to learn" in note for note in task.facts.notes)
    assert any("targets in ⟦brackets⟧" in note and "⟧" in note for note in task.facts.notes)


def test_real_chats_with_tools(shared_data: Path, llama: Path) -> None:
    """Every row of the two demos of LLaMA-Factory is read, and only the assistant's words are targets."""
    for name, count in (("alpaca_en_demo", 999), ("glaive_toolcall_en_demo", 300)):
        rows = json.loads(gzip.decompress((shared_data / "chat" / f"{name}.json.gz").read_bytes()))
        layout = layout_of(rows[0])
        assert layout is not None
        conversations = [read_conversation(row, "row", layout) for row in rows]
        assert len(conversations) == len(rows) and abs(len(rows) - count) <= 1
        assert all(c.messages[-1]["role"] == "assistant" for c in conversations)


# --- TRL ------------------------------------------------------------------------------------------------------


def test_a_run_is_that_of_a_plain_sft_trainer(
    llama: Path, chats: list[dict[str, Any]], written: Callable[..., Path], tmp_path: Path
) -> None:
    """The losses of eight steps, each after the updates before it, to 1e-6, with two batches a step."""
    path = written(chats)
    spec = spec_of(
        llama, path, training={"epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 2, "warmup_ratio": 0}
    )
    record = run(spec, RunStore(tmp_path / "runs"))
    assert record.status == "done", record.error
    lines = map(json.loads, (tmp_path / "runs" / spec.id / "history.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["kind"] == "step"]

    task: Any = build_task(spec)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = MARKED
    by_key = {json.dumps(row["messages"]): row for row in chats}
    train = [by_key[json.dumps(row["cells"]["messages"])] for row in task.train]
    model = tunewise.attach(task.load_model(0), "lora", rank=2, targets="all-linear", seed=0)
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=str(tmp_path / "sft"),
            num_train_epochs=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="linear",
            assistant_only_loss=True,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            seed=0,
            data_seed=0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=48,
        ),
        train_dataset=Dataset.from_list(train),
        processing_class=tokenizer,
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == len(theirs) == 8
    assert losses == pytest.approx(theirs, abs=1e-6)


def test_predictions_are_those_of_the_printed_lines(
    llama: Path, chats: list[dict[str, Any]], written: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    """A conversation without its answer is continued as by PEFT and transformers alone."""
    spec = spec_of(llama, written(chats), training={"max_length": 24})
    record = run(spec, RunStore(tmp_path / "runs"))
    assert record.status == "done", record.error
    new = tmp_path / "new.jsonl"
    new.write_text(json.dumps({"prompt": "A question."}) + "\n")
    (row,) = tunewise.predict(tmp_path / "runs" / spec.id, new)
    lines = plain_lines(tmp_path / "runs" / spec.id)
    assert len(lines) == 3
    capsys.readouterr()
    exec("\n".join(lines), {})
    assert capsys.readouterr().out.strip() == row["prediction"]
