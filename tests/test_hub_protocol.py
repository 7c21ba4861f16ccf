"""Models and data from a hub over HTTP: huggingface_hub's own client against a server on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_server import Hub, serving
from tiny import WORDS as BY_CLASS
from tiny import save_tiny_model, save_toy_csv
from tunewise.store.folders import RunStore

WORDS = [
    "compare",
    "--no-tune",
    "--methods=cla",
    "--rank=2",
    "--seeds=1",
    "--epochs=1",
    "--no-costs",
    "--measures=none",
]

CODE = """
import pathlib
from transformers import BertConfig
pathlib.Path(__file__).with_name("ran").touch()
class Own(BertConfig):
    model_type = "own"
"""


@pytest.fixture
def hub(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    save_toy_csv(tmp_path / "toy.csv")
    with serving() as found:
        found.commit("models/maker/tiny", files_of(model))
        found.commit("datasets/maker/toy", {"main/train.csv": (tmp_path / "toy.csv").read_bytes(), "README.md": b"-"})
        yield found


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def run(hub: Hub, home: Path, *words: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """A process of its own: the client reads where the hub is when it is imported."""
    here = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    here["HF_HUB_OFFLINE"] = "1" if offline else "0"
    return subprocess.run([sys.executable, *words], env=here, capture_output=True, text=True, timeout=120)


def python(hub: Hub, home: Path, code: str) -> list[str]:
    done = run(hub, home, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if line.startswith(">")]


def test_files_of_a_commit_are_fetched_once_and_no_code_unless_asked(hub, tmp_path):
    """The client's own cache; what is printed, in order: the commits, a pinned file of the first commit after a second
    one, what is refused, and whether code of a repository ran."""
    ((first, files),) = hub.repositories["datasets/maker/toy"]
    config = {**json.loads(hub.at("models/maker/tiny", None)[1]["config.json"]), "model_type": "own"}
    config["auto_map"] = {"AutoConfig": "configuration_own.Own"}
    coded = {"config.json": json.dumps(config).encode(), "configuration_own.py": CODE.encode()}
    hub.commit("models/maker/coded", coded)
    second = hub.commit("datasets/maker/toy", {"main/train.csv": b"text,label\nother,1\n"})
    code = f"""
from tunewise.errors import TunewiseError
from tunewise.hub import hub_file, pinned
from tunewise.models.load import load_config, load_tokenizer, model_folder, pinned_model
from tunewise.spec import ModelSpec
print(">", pinned("hub:maker/toy/main/train.csv"))
print(">", len(hub_file("hub:maker/toy@{first}/main/train.csv").read_bytes()))
tiny = ModelSpec(path="maker/tiny")
print(">", pinned_model(tiny).revision, load_config(tiny).hidden_size, load_tokenizer(tiny)("cat")["input_ids"][1] > 3)
for work in (
    lambda: hub_file("hub:maker/toy@gone/main/train.csv"),
    lambda: hub_file("hub:maker/toy/main/test.csv"),
    lambda: model_folder(ModelSpec(path="maker/none")),
    lambda: load_config(ModelSpec(path="maker/coded")),
):
    try:
        work()
    except TunewiseError as error:
        print(">", str(error).count("\\n"), str(error)[:120])
print(">", [f.name for f in model_folder(ModelSpec(path="maker/coded")).iterdir()])
print(">", load_config(ModelSpec(path="maker/coded", trust_remote_code=True)).model_type)
"""
    lines = python(hub, tmp_path / "home", code)
    commit = hub.repositories["models/maker/tiny"][0][0]
    assert lines[0] == f"> hub:maker/toy@{second}/main/train.csv"
    assert lines[1] == f"> {len(files['main/train.csv'])}"
    assert lines[2] == f"> {commit} 32 True"
    assert lines[3].startswith("> 0 data set 'maker/toy' is no local folder and can't be fetched from the hub")
    assert lines[4].endswith("the repository holds no such file or folder")
    assert lines[5].startswith("> 0 model 'maker/none' is no local folder and can't be fetched from the hub")
    assert lines[6].startswith("> 0 model 'maker/coded': its config.json can't be used")
    assert lines[7] == "> ['config.json']" and lines[8] == "> own"
    fetched = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert len(fetched) == len(set(fetched))  # nothing twice
    assert not any(line.endswith("README.md") for line in fetched)


@pytest.mark.slow
def test_a_comparison_from_a_hub_then_from_its_cache_and_after_a_new_commit(hub, tmp_path):
    runs, home = tmp_path / "runs", tmp_path / "home"
    words = ["-m", "tunewise", *WORDS, "--model=maker/tiny", f"--out={runs}"]
    first = hub.repositories["datasets/maker/toy"][0][0]
    done = run(hub, home, *words, "--data=hub:maker/toy/main/train.csv")
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = RunStore(runs).records()
    assert record.spec.data.path == f"hub:maker/toy@{first}/main/train.csv"
    assert record.spec.model.revision == hub.repositories["models/maker/tiny"][0][0]

    asked = len(hub.asked)
    assert run(hub, home, *words, "--data=hub:maker/toy/main/train.csv", offline=True).returncode == 0
    assert len(hub.asked) == asked and len(RunStore(runs).ids()) == 1  # the same run, of what the cache has

    save_toy_csv(tmp_path / "new.csv", seed=1)
    hub.commit("datasets/maker/toy", {"main/train.csv": (tmp_path / "new.csv").read_bytes()})
    assert run(hub, home, *words, f"--data=hub:maker/toy@{first}/main/train.csv").returncode == 0
    assert len(RunStore(runs).ids()) == 1  # pinned: still that run
    assert run(hub, home, *words, "--data=hub:maker/toy/main/train.csv").returncode == 0
    assert len(RunStore(runs).ids()) == 2  # other data, another run


@pytest.mark.slow
def test_an_experiment_of_the_paper_from_its_hub_ids(hub, tmp_path):
    """TREC's branch of parquet files and DeBERTa's repository, tiny; the commits in the records and in the table."""
    hub.commit("models/microsoft/deberta-v3-base", hub.at("models/maker/tiny", None)[1])
    files = {}
    for part, rows in (("train", 60), ("test", 20)):
        texts = [f"{part} {list(BY_CLASS.values())[n % 3][n % 8]} with {n} ?" for n in range(rows)]
        columns = {"text": pa.array(texts), "fine_label": pa.array([n % 3 for n in range(rows)])}
        pq.write_table(pa.table(columns), buffer := io.BytesIO())
        files[f"default/{part}/0000.parquet"] = buffer.getvalue()
    commit = hub.commit("datasets/CogComp/trec", files, branch="refs/convert/parquet")
    runs, home = tmp_path / "runs", tmp_path / "home"
    words = [
        "-m",
        "tunewise",
        "paper",
        "run",
        "deberta-v3-base/trec50",
        "--methods=lora,cla",
        "--seeds=1",
        "--epochs=1",
        "--no-costs",
    ]
    done = run(hub, home, *words, "--measures=none", "--max-length=16", f"--out={runs}")
    assert done.returncode == 0, done.stderr[-2000:]
    records = RunStore(runs).records()
    assert {record.spec.method.name for record in records} == {"lora", "cla"}
    assert any(commit in note for note in records[0].data.notes)
    assert records[0].spec.model.revision == hub.at("models/microsoft/deberta-v3-base", None)[0]
    table = run(hub, home, "-m", "tunewise", "paper", "table", "2", f"--from={runs}", f"--out={tmp_path / 't.csv'}")
    assert table.returncode == 0 and "lora" in (tmp_path / "t.csv").read_text().lower()
