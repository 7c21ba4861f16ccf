"""The fourteen data sets: the real files where they are at hand, and small ones in every other public form."""

from __future__ import annotations

import io
import json
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from labelled import load
from tiny import save_tiny_model
from tunewise.errors import DataError
from tunewise.papers.forms import TextItem
from tunewise.papers.prepare import halves, prepare
from tunewise.papers.sets import SETS, get_set
from tunewise.spec import ModelSpec, StudySpec
from tunewise.tasks.build import task_class


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWISE_CACHE", str(tmp_path / "cache"))


def rows(spec, part="path"):
    return [json.loads(line) for line in Path(getattr(spec, part)).read_text(encoding="utf-8").splitlines()]


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


# --- the real ones --------------------------------------------------------------------------------

COUNTS = {
    "mrpc": (3668, 408, 1725),
    "cola": (8551, 522, 521),
    "stsb": (5749, 1500, 1379),
    "trec": (5452, None, 500),
    "paws": (8000, None, 8000),
    "django": (16000, 1000, 1805),
    "openbookqa": (4936, 500, 500),
    "folio": (1004, 102, 102),
    "clutrr": (12064, 3019, 1048),
    "e2e": (42061, 4672, 4693),
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_files_have_the_published_counts(name, shared_data):
    spec = prepare(get_set({"trec": "trec50"}.get(name, name)), str(shared_data / name))
    parts = (spec.path, spec.validation, spec.test)
    assert tuple(Path(p).read_bytes().count(b"\n") if p else None for p in parts) == COUNTS[name]


def test_known_defects_are_mended_and_said(shared_data):
    trec = prepare(get_set("trec50"), str(shared_data / "trec"))
    assert any("0xF0" in note for note in trec.notes)
    assert len({row["label"] for row in rows(trec)}) == 50
    read = load(trec)
    assert any("68 exact duplicates dropped" in n or "exact duplicate" in n for n in read.notes)
    assert any("more than one label" in note for note in read.notes)
    assert any("removed, since the same text is in test" in note for note in read.notes)
    folio = prepare(get_set("folio"), str(shared_data / "folio"))
    assert {row["label"] for row in rows(folio)} == {"True", "False", "Uncertain"}
    assert "330 labels 'Unknown' are renamed to 'Uncertain'" in " ".join(folio.notes)
    book = prepare(get_set("openbookqa"), str(shared_data / "openbookqa"))
    assert "train: 14 questions removed, which test has with the answers in another order." in book.notes
    paws = prepare(get_set("paws"), str(shared_data / "paws"))
    assert all(row["text"] == row["text"].lower() for row in rows(paws, "test"))
    assert "Scores are not the paper's" in " ".join(paws.notes)


# --- forms that are not at hand, written small ----------------------------------------------------


def table(path: Path, classes: dict[str, list[str]] | None = None, **columns) -> None:
    """A parquet file as Hugging Face's datasets writes it, class names in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table(columns)
    features = {name: {"_type": "ClassLabel", "names": names} for name, names in (classes or {}).items()}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(made.replace_schema_metadata(metadata), path)


def test_rte_from_a_hub_has_no_labelled_test_part(tmp_path):
    for part, size, labels in (("train", 8, [0, 1]), ("validation", 6, [0, 1]), ("test", 4, [-1, -1])):
        texts = [f"{part} {n}" for n in range(size)]
        table(
            tmp_path / "rte" / f"{part}-00000-of-00001.parquet",
            {"label": ["entailment", "not_entailment"]},
            sentence1=texts, sentence2=[t + "?" for t in texts], label=[labels[n % 2] for n in range(size)],
            idx=list(range(size)),
        )  # fmt: skip
    spec = prepare(get_set("rte"), str(tmp_path))
    assert (len(rows(spec)), len(rows(spec, "validation")), len(rows(spec, "test"))) == (8, 3, 3)
    assert spec.text_pair == "text_pair" and rows(spec)[1] == {"text": "train 1", "text_pair": "train 1?", "label": "1"}
    assert "test: 4 examples without a published label left out" in " ".join(spec.notes)
    assert "halved, stratified by label" in " ".join(spec.notes)
    assert {r["label"] for r in rows(spec, "test")} == {"0", "1"}


def test_a_set_is_fetched_by_its_hub_id_and_names_the_commit(tmp_path, monkeypatch):
    commit, asked = "fedcba9876543210fedcba9876543210fedcba98", []
    snapshot = tmp_path / "snapshots" / commit

    def snapshot_download(repo, *, repo_type, revision, allow_patterns):
        asked.append((repo, repo_type, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for name in ("rte", "mrpc"):  # two sets of one repository share its snapshot
        for part in ("train", "validation", "test"):
            texts = [f"{name} {part} {n}" for n in range(4)]
            table(snapshot / name / f"{part}-00000-of-00001.parquet", sentence1=texts, sentence2=texts,
                  label=[0, 1, 0, 1])  # fmt: skip
    spec = prepare(get_set("rte"))
    assert asked == [("nyu-mll/glue", "dataset", None, ["rte/*"])]
    assert spec.notes[0] == f"RTE from the hub's nyu-mll/glue (rte/*) at commit {commit}."
    assert {row["text"].split()[0] for row in rows(spec)} == {"rte"}
    table(snapshot / "default" / "train" / "0000.parquet", text=["a", "b"], fine_label=["x", "y"])
    prepare(get_set("trec50"), None, "v2")
    prepare(get_set("trec50"))
    assert [(repo, at) for repo, _, at, _ in asked[1:]] == [
        ("CogComp/trec", "v2"),
        ("CogComp/trec", "refs/convert/parquet"),
    ]


def test_trec_from_a_hub_has_its_fine_classes_by_name(tmp_path):
    names = ["ABBR:abb", "NUM:date", "HUM:ind"]
    for part in ("train", "test"):
        table(tmp_path / "default" / part / "0000.parquet", {"fine_label": names}, text=[f"{part} {n} ?" for n in range(6)],
              coarse_label=[0, 1, 2] * 2, fine_label=[0, 1, 2] * 2)  # fmt: skip
    spec = prepare(get_set("trec50"), str(tmp_path))
    assert [row["label"] for row in rows(spec)] == names * 2
    assert spec.validation is None and spec.validation_size == 0.1


def test_logiqa_has_json_lines_also_in_txt(tmp_path):
    row = {"id": 1, "text": "All cats purr.", "question": "Which follows?", "answer": 2}
    row["options"] = ["No cat purrs.", "Dogs purr.", "Tom purrs.", "None."]
    line = json.dumps(row) + "\n"
    folder = write(tmp_path, MRC__train_DOT_txt=line * 2, MRC__dev_DOT_txt=line, MRC__test_DOT_txt=line)
    first = rows(prepare(get_set("logiqa"), str(folder)))[0]
    assert first["label"] == "C"
    assert first["text"] == (
        "Context: All cats purr.\nQuestion: Which follows?\nOptions:\nA) No cat purrs.\nB) Dogs purr.\nC) Tom purrs.\n"
        "D) None.\nAnswer:"
    )


def test_completions_from_a_hub(tmp_path):
    meaning = {"meaning_representation": "name[The Vaults], eatType[pub], priceRange[more than £30]"}
    lines = [{**meaning, "human_reference": "A pub."}, {**meaning, "references": ["The Vaults.", "It is a pub."]}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    spec = prepare(get_set("e2e"), str(write(tmp_path / "e2e", train_DOT_jsonl=text, test_DOT_jsonl=text)))
    prompt = "MR: eattype = pub ; name = The Vaults ; pricerange = more than £30\nTEXT:"
    assert [(r["text"], r["label"]) for r in rows(spec)] == [
        (prompt, " A pub."), (prompt, " The Vaults."), (prompt, " It is a pub."),
    ]  # fmt: skip
    code = "nl,code\nreturn x.,return x\n"
    files = write(tmp_path / "dj", train_DOT_csv=code, validation_DOT_csv=code, test_DOT_csv=code)
    assert rows(prepare(get_set("django"), str(files))) == [
        {"text": '"""Task: return x."""\n# Solution\n', "label": "return x"}
    ]


def test_openbook_and_clutrr_from_a_hub(tmp_path):
    table(tmp_path / "o" / "main" / "train-00000-of-00001.parquet", question_stem=["The sun is"], answerKey=["B"],
          choices=[{"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}])  # fmt: skip
    found = rows(prepare(get_set("openbookqa"), str(tmp_path / "o")))
    assert found == [{"text": "Question: The sun is\nOptions:\nA) a\nB) b\nC) c\nD) d\nAnswer:", "label": "B"}]
    table(tmp_path / "c" / "gen_train234_test2to10" / "train" / "0000.parquet", story=["[A] has a son [B]."],
          query=["('A', 'B')"], target_text=["son"])  # fmt: skip
    spec = prepare(get_set("clutrr"), str(tmp_path / "c"))
    assert rows(spec) == [{"text": "Story: [A] has a son [B].\nQuery: ('A', 'B')\nAnswer:", "label": "son"}]
    assert "a shift in length, by design" in " ".join(spec.notes)


def test_glue_files_by_tabs_in_which_quotes_mean_nothing(tmp_path):
    head = "index\tsentence1\tsentence2\tlabel\n"
    text = head + '0\ta "b\tc\tentailment\n1\td\te" f\tnot_entailment\n'
    spec = prepare(get_set("rte"), str(write(tmp_path, RTE__train_DOT_tsv=text)))
    assert [r["text"] for r in rows(spec)] == ['a "b', "d"]
    with pytest.raises(DataError, match=r"train.tsv, line 3: 2 fields where the header has 4"):
        prepare(get_set("rte"), str(write(tmp_path / "bad", train_DOT_tsv=head + "0\ta\tb\t1\n1\td\n")))


def picture(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (colour, 255 - colour, 99)).save(out, "PNG")
    return out.getvalue()


def test_cifar_in_shards_is_one_file_with_its_classes(tmp_path):
    for part, shards in (("train", 2), ("test", 1)):
        for shard in range(shards):
            cells = [{"bytes": picture(shard * 50 + n), "path": f"{n}.png"} for n in range(4)]
            table(tmp_path / f"{part}-{shard:05}-of-{shards:05}.parquet", {"label": ["airplane", "cat"]}, img=cells,
                  label=[0, 1, 0, 1])  # fmt: skip
    spec = prepare(get_set("cifar10"), str(tmp_path))
    assert task_class("image").read_labels(spec) == ["airplane", "cat"]
    assert parquet.read_table(spec.path).num_rows == 8 and spec.validation_size == 0.05


def test_what_is_missing_is_one_line(tmp_path):
    for name in SETS:
        with pytest.raises(DataError):
            prepare(get_set(name), str(tmp_path))
    with pytest.raises(DataError, match="give the folder with the files of RTE"):
        prepare(get_set("rte"), str(tmp_path / "absent"))


def test_halves_are_disjoint_whole_and_stratified():
    items = [TextItem(str(n), None, "a" if n % 3 else "b", "") for n in range(60)]
    first, second = halves(items)
    assert sorted([*first, *second], key=lambda i: int(i.text)) == items
    assert [sum(i.label == "b" for i in half) for half in (first, second)] == [10, 10]
    assert first == halves(items)[0] and [i.text for i in first] != [i.text for i in items[:30]]


def bare(spec):
    return spec.model_copy(update={"notes": []})


def test_notes_reach_the_record_and_not_the_name_of_a_run(tmp_path):
    folder = write(
        tmp_path, train_DOT_tsv="sentence\tlabel\n" + "".join(f"the old cat {n}\t{n % 2}\n" for n in range(30))
    )
    spec = prepare(get_set("cola"), str(folder))
    model = ModelSpec(path=str(save_tiny_model(tmp_path / "model")))
    runs = [StudySpec(model=model, data=data, methods=["cla"], seeds=[0]).runs()[0] for data in (spec, bare(spec))]
    assert spec.notes and runs[0].id == runs[1].id
    assert task_class("text").digest(spec) == task_class("text").digest(spec.model_copy(update={"notes": []}))
    from tunewise.tasks.build import build_task

    task = build_task(StudySpec(model=model, data=spec, methods=["cla"], task="text"))
    assert task.facts.notes[0] == "CoLA from local files."
