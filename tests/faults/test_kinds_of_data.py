"""Data of forms that are easily read wrongly in silence: what is read is right, or the fault is named."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    IBertConfig,
    IBertModel,
    OPTConfig,
    OPTModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from tiny import save_tiny_model, save_toy_csv
from tiny_language import save_tiny_llama
from tunewise.errors import DataError, ModelError, SpecError
from tunewise.models.load import model_folder, position_limit
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, ModelSpec, StudySpec
from tunewise.tasks.build import task_class
from tunewise.tasks.causal import CausalLanguage
from tunewise.tasks.choice import MultipleChoice
from tunewise.tasks.files import read_records, read_rows
from tunewise.tasks.generation import Generation
from tunewise.tasks.image_files import read_images
from tunewise.tasks.regression import TextRegression
from tunewise.tasks.text import TextClassification

COLUMNS = ["text", "label"]
NO_LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return ModelSpec(path=str(save_tiny_model(tmp_path_factory.mktemp("bert") / "model")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return ModelSpec(path=str(save_tiny_llama(tmp_path_factory.mktemp("llama") / "model")))


def write(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return path


def write_lines(path, records):
    return write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


# --- lines and encodings --------------------------------------------------------------------------


@pytest.mark.parametrize("character", NO_LINE_ENDS)
def test_a_line_ends_where_an_editor_ends_it_in_every_format(tmp_path, character):
    text = f"one{character}two"
    assert [r.values["text"] for r in read_rows(write(tmp_path / "a.txt", f"{text}\nb\r\n\rc\r"), ["text"])] == [
        text,
        "b",
        "c",
    ]
    for name, content in {
        "a.csv": f"text,label\n{text},1\n",
        "a.tsv": f"text\tlabel\n{text}\t1\n",
        "a.jsonl": json.dumps({"text": "?", "label": "1"}).replace("?", text) + "\n",
    }.items():
        if name != "a.jsonl" or character > "\x1f":
            assert [r.values for r in read_rows(write(tmp_path / name, content), COLUMNS)] == [
                {"text": text, "label": "1"}
            ]


def test_80_lines_of_which_20_hold_a_line_separator_are_80_examples(tmp_path, llama):
    lines = [f"red apple {i}" + ("\u2028" if i % 4 == 0 else " ") + "sweet" for i in range(80)]
    task = CausalLanguage(llama, DataSpec(path=str(write(tmp_path / "a.txt", "\n".join(lines)))), 32)
    assert sum(map(len, (task.train, task.validation, task.test))) == 80


def test_a_line_separator_in_the_first_line_of_json_is_no_fault(tmp_path, llama):
    rows = [{"text": f"red\u2028apple {i}", "label": f"sweet {i}"} for i in range(20)]
    task = Generation(llama, DataSpec(path=str(write_lines(tmp_path / "a.jsonl", rows))), 32)
    assert sum(map(len, (task.train, task.validation, task.test))) == 20


@pytest.mark.parametrize(("byte", "codec"), [(0x85, "cp1252"), (0x92, "cp1252"), (0xE9, "latin-1")])
def test_the_advised_encoding_is_the_one_that_has_the_byte(tmp_path, byte, codec):
    lines = [bytes([byte]) + b" fish %d" % i for i in range(80)]
    path = tmp_path / "a.txt"
    path.write_bytes(b"\r".join(lines))
    with pytest.raises(DataError, match=rf"a.txt, line 1: byte 1 of the line .*say --encoding {codec} "):
        read_rows(path, ["text"])
    rows = read_rows(path, ["text"], encoding=codec)
    assert [row.values["text"] for row in rows] == [line.decode(codec) for line in lines]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8,latin-1", "iso8859-1", "L1", "iso-8859-15"])
def test_bytes_that_latin_1_reads_as_control_characters_are_refused(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\ncaf\xe9,1\nso \x85,2\n")
    with pytest.raises(DataError, match=r"a.csv, line 3: byte 4 of the line \(0x85\) is not .*say --encoding cp1252 "):
        read_rows(path, COLUMNS, encoding=encoding)
    texts = [row.values["text"] for row in read_rows(path, COLUMNS, encoding="utf-8,cp1252")]
    assert texts == ["caf\u00e9", "so \u2026"]


def test_a_wrong_byte_is_counted_in_lines_of_any_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\rb\r\nc\nd\xe9")
    with pytest.raises(DataError, match="line 4: byte 2 "):
        read_rows(tmp_path / "a.txt", ["text"])


# --- layouts --------------------------------------------------------------------------------------


def test_every_row_has_the_layout_of_the_first(tmp_path, llama):
    texts, completions = [{"text": f"a {i}"} for i in range(9)], [{"text": f"a {i}", "label": "b"} for i in range(9)]
    for rows, fault in (
        (texts[:1] + completions, "line 2: a completion"),
        (completions + texts[:1], "line 10: no col"),
    ):
        with pytest.raises(DataError, match=f"a.jsonl, {fault}"):
            CausalLanguage(llama, DataSpec(path=str(write_lines(tmp_path / "a.jsonl", rows))), 32)
    train, test = write_lines(tmp_path / "a.jsonl", texts), write_lines(tmp_path / "test.jsonl", completions)
    with pytest.raises(DataError, match="test.jsonl, line 1: a completion"):
        CausalLanguage(llama, DataSpec(path=str(train), test=str(test)), 32)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects_is_read_as_the_lines_are(tmp_path, suffix, indent):
    records = [{"text": "a\u2028b", "label": 1.50}, {"text": "c", "label": True}]
    listed = write(tmp_path / f"a.{suffix}", "\n" + json.dumps(records, indent=indent))
    rows = read_rows(listed, COLUMNS)
    assert [row.values for row in rows] == [
        r.values for r in read_rows(write_lines(tmp_path / "b.json", records), COLUMNS)
    ]
    assert [row.where for row in rows] == [f"a.{suffix}, row 1", f"a.{suffix}, row 2"]


def test_faults_of_a_list_name_row_or_line(tmp_path):
    for content, fault in {
        '[{"text": "a", "label": 1}, {"text": "b"}]': "a.json, row 2: no column 'label'",
        '[{"text": "a", "label": 1},\n {"text": "b"': "a.json, line 2: not valid JSON",
        '{"data": [{"text": "a", "label": 1}]}': "a.json, line 1: no column 'text'; choose one of: data",
        "[]": "a.json: the file",
    }.items():
        with pytest.raises(DataError, match=fault):
            read_rows(write(tmp_path / "a.json", content), COLUMNS)


def test_a_list_of_questions_is_read_as_it_is(tmp_path, bert):
    records = [{"text": f"is it {i}?", "choices": ["yes", f"no {i}"], "label": i % 2} for i in range(12)]
    task = MultipleChoice(
        bert, DataSpec(path=str(write(tmp_path / "a.json", json.dumps(records))), choices="choices"), 32
    )
    assert len(task.train) + len(task.validation) + len(task.test) == 12


def test_labels_of_choices_are_read_alike_in_all_rows(tmp_path, bert):
    """1 is the text of an answer in some rows, and the place of the second answer in all of them."""
    sums = [{"text": f"which {i}?", "choices": [str(1 + i % 3), str(7 + i % 2)], "label": 1} for i in range(12)]
    spec = DataSpec(path=str(write_lines(tmp_path / "a.jsonl", sums)), choices="choices")
    _, splits = MultipleChoice.read(spec)
    assert {record.content[2] for part in splits.parts.values() for record in part} == {1}
    mixed = [{"text": f"q{i}", "choices": ["yes", "no"], "label": "B" if i == 7 else i % 2} for i in range(12)]
    spec = DataSpec(path=str(write_lines(tmp_path / "b.jsonl", mixed)), choices="choices")
    with pytest.raises(DataError, match="b.jsonl, line 8: the right answer is given as 'B'"):
        MultipleChoice.read(spec)


# --- keys and numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x", "label": "y"}\n', "line 2"),
        ('[{"text": "a", "label": "x"}, {"text": "b", "label": "x", "label": "y"}]', "row 2"),
        ('{"text": "a", "label": "x", "more": [{"label": 1, "label": 1}]}\n', "line 1"),
    ],
)
def test_a_repeated_key_is_refused_with_its_row(tmp_path, text, where):
    path = write(tmp_path / "twice.jsonl", text)
    with pytest.raises(DataError, match=f"twice.jsonl, {where}: the key 'label' occurs twice in one object"):
        list(read_records(path, ["text", "label"]))


@pytest.mark.parametrize("number", ["1_0", "１２", "inf", "nan", "1,5", "0x1A", "1;2", ""])
def test_what_is_no_number_is_no_target(tmp_path, bert, number):
    path = write(tmp_path / "a.csv", "text,label\n" + "x,1\n" * 3 + f'y,"{number}"\n')
    with pytest.raises(DataError, match="line 5: column 'label' is"):
        TextRegression(bert, DataSpec(path=str(path)), 32)


def test_numbers_in_every_spelling_are_targets(tmp_path):
    spellings = ["1", "-2.5", "+3.", ".5", "1e-3", " 7 "]
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t{i},{s}\n" for i, s in enumerate(spellings * 3)))
    _, splits = TextRegression.read(DataSpec(path=str(path)))
    assert {float(r.label) for part in splits.parts.values() for r in part} == {1.0, -2.5, 3.0, 0.5, 0.001, 7.0}


# --- pairs and lengths ----------------------------------------------------------------------------


def characters(folder, **tokens):
    """A tokenizer of one token a character, without a pair template."""
    alphabet = ["<unk>", "<end>", "<sep>", *"abcdefghijklmnopqrstuvwxyz \n?0123456789"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", **tokens)
    fast.save_pretrained(folder)
    return fast


def bert_with(folder, positions=64, **tokens):
    folder.mkdir(exist_ok=True)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**shape, vocab_size=64, max_position_embeddings=positions)).save_pretrained(folder)
    return characters(folder, **tokens), ModelSpec(path=str(folder))


@pytest.mark.parametrize(("tokens", "mark"), [({}, "\n"), ({"sep_token": "<sep>"}, "<sep>")])
def test_without_a_pair_template_texts_are_kept_apart(tmp_path, tokens, mark):
    tokenizer, model = bert_with(tmp_path / "model", **tokens)
    pairs = [("the cat", "sat on"), ("the c", "atsat on")]
    rows = "".join(f"{a},{b},{i % 2}\n" for i, (a, b) in enumerate(pairs)) + "".join(
        f"x{i},y,{i % 2}\n" for i in range(9)
    )
    path = write(tmp_path / "a.csv", f"text,pair,label\n{rows}")
    task = TextClassification(model, DataSpec(path=str(path), text_pair="pair"), 64)
    ids = {tuple(e["input_ids"]) for part in (task.train, task.validation, task.test) for e in part}
    for first, second in pairs:
        expected = (*tokenizer(first)["input_ids"], *tokenizer(mark)["input_ids"], *tokenizer(second)["input_ids"])
        assert expected in ids
    assert any(repr(mark) in note and "before each second text" in note for note in task.facts.notes)


def test_answers_are_kept_apart_from_their_question(tmp_path):
    tokenizer, model = bert_with(tmp_path / "model")
    records = [{"text": f"who {i}?", "choices": ["me", "you"], "label": i % 2} for i in range(10)]
    spec = DataSpec(path=str(write_lines(tmp_path / "a.jsonl", records)), choices="choices")
    ids = MultipleChoice(model, spec, 64).train[0]["input_ids"]
    assert [tokenizer.decode(answer) for answer in ids][1].replace(" ", "").endswith("?\nyou")


def test_a_pair_template_is_left_alone(tmp_path, bert):
    path = write(tmp_path / "a.csv", "text,pair,label\n" + "".join(f"red {i},apple,{i % 2}\n" for i in range(10)))
    task = TextClassification(bert, DataSpec(path=str(path), text_pair="pair"), 64)
    assert task.separator == "" and not any("second text" in note for note in task.facts.notes)


def test_texts_are_cut_at_the_positions_of_the_model(tmp_path):
    _, model = bert_with(tmp_path / "model", positions=32)
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"{'a' * 50}{i},{i % 2}\n" for i in range(10)))
    task = TextClassification(model, DataSpec(path=str(path)), 128)
    assert task.max_length == 32
    batch = task.collate(task.train)
    assert batch["input_ids"].shape[1] == 32
    assert torch.isfinite(task.load_model(0)(**batch).logits).all()


def test_the_position_limit_is_the_longest_input_that_the_model_takes():
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    small_bert = BertModel(BertConfig(**shape, intermediate_size=32, max_position_embeddings=32))
    roberta = RobertaModel(RobertaConfig(**shape, intermediate_size=32, max_position_embeddings=34, pad_token_id=1))
    opt = OPTModel(OPTConfig(**shape, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=32))
    ibert = IBertModel(IBertConfig(**shape, intermediate_size=32, max_position_embeddings=34, pad_token_id=1))
    for model in (small_bert, roberta, opt, ibert):
        limit = position_limit(model)
        assert limit == 32
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


# --- names ----------------------------------------------------------------------------------------

LATIN = os.fsdecode(b"caf\xe9")


def test_a_name_that_is_not_utf8_is_a_fault_of_one_line(tmp_path):
    for name in ("path", "validation", "test"):
        with pytest.raises(SpecError, match=f"{name} .*udce9.* is not UTF-8; rename"):
            DataSpec(**{"path": "a.csv", name: LATIN + ".csv"})
    with pytest.raises(SpecError, match="not UTF-8"):
        ModelSpec(path=LATIN)
    (tmp_path / LATIN).mkdir()
    (tmp_path / LATIN / "1.txt").write_text("x")
    (tmp_path / LATIN / "1.png").write_text("x")
    for read in (lambda: read_rows(tmp_path, COLUMNS), lambda: read_images(tmp_path, None, "label")):
        with pytest.raises(DataError, match="is not UTF-8; rename it"):
            read()


def test_home_is_expanded_for_data_and_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tiny_model(tmp_path / "model")
    save_toy_csv(tmp_path / "toy.csv")
    assert model_folder(ModelSpec(path="~/model")) == tmp_path / "model"
    assert TextClassification(ModelSpec(path="~/model"), DataSpec(path="~/toy.csv"), 16).train
    with pytest.raises(ModelError, match="'~/absent': there is no such folder"):
        model_folder(ModelSpec(path="~/absent"))


def test_a_plugin_is_known_by_its_module_before_anybody_imports_it(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        "from tunewise.registry import TASKS\nfrom tunewise.tasks.text import TextClassification\n"
        "class Mine(TextClassification):\n    pass\nTASKS.register('mine', Mine)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    content = {"task": "my_package:mine", "model": {"path": "m"}, "data": {"path": "d"}, "methods": "lora"}
    try:
        spec = StudySpec.model_validate(content)
        assert (spec.task, task_class(spec.task).__name__) == ("my_package:mine", "Mine")
    finally:
        for name in ("mine", "my_package:mine"):
            TASKS.unregister(name)
        del sys.modules["my_package"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("no_such_module:tags", "its module can't be imported"),
        ("json:tags", "the module 'json' registers no task 'tags'"),
    ],
)
def test_an_unknown_plugin_is_a_fault_of_one_line(name, fault):
    with pytest.raises(SpecError, match=fault):
        TASKS.check(name)
