"""Files from a hub, with the hub's client replaced: what is asked for, what is recorded, what is said without it."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from command_line import invoke
from tiny import save_tiny_model, save_toy_csv
from tunewise.errors import ModelError, SpecError
from tunewise.hub import parse_hub_path, pinned
from tunewise.inspecting import inspect
from tunewise.locate import resolve
from tunewise.models.load import model_folder
from tunewise.spec import ModelSpec
from tunewise.store.folders import RunStore

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a model and a data set, in the folders that huggingface_hub's cache would have."""
    asked = []
    root = tmp_path / "cache"

    def snapshot_download(repo, *, repo_type, revision, allow_patterns):
        asked.append((repo, repo_type, revision, tuple(allow_patterns)))
        folder = root / repo.replace("/", "--") / "snapshots" / COMMIT
        if not folder.is_dir():
            raise LocalEntryNotFoundError("no connection, and not in the cache")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    save_tiny_model(root / "maker--tiny" / "snapshots" / COMMIT)
    data = root / "maker--toy" / "snapshots" / COMMIT / "main"
    data.mkdir(parents=True)
    save_toy_csv(data / "train.csv")
    return asked


def test_a_path_is_taken_apart_and_put_together():
    path = "hub:CogComp/trec@refs%2Fconvert%2Fparquet/default/train/0000.parquet"
    found = parse_hub_path(path)
    assert (found.repo, found.revision) == ("CogComp/trec", "refs/convert/parquet")
    assert found.inner == "default/train/0000.parquet"
    assert str(found) == path
    for wrong in ("hub:trec", "hub:a/b/../../etc/passwd", "hub:/etc/passwd"):
        with pytest.raises(SpecError, match="no path on a hub"):
            parse_hub_path(wrong)


def test_a_run_records_the_commits_and_is_the_run_of_the_local_files(hub, tmp_path, monkeypatch):
    words = ["--methods=cla", "--rank=2", "--seeds=1", "--epochs=1", "--no-costs", "--measures=none"]
    on_hub = ["--model=maker/tiny", "--data=hub:maker/toy@main/main/train.csv", "--trust-remote-code"]
    assert invoke(monkeypatch, "compare", "--no-tune", *words, *on_hub[:2], f"--out={tmp_path / 'runs'}") == 0
    [record] = RunStore(tmp_path / "runs").records()
    assert record.spec.model.revision == COMMIT
    assert record.spec.data.path == f"hub:maker/toy@{COMMIT}/main/train.csv"
    assert ("maker/toy", "dataset", "main", ("main/train.csv", "main/train.csv/*")) in hub
    assert not any("*.py" in patterns for _, _, _, patterns in hub)  # no code is fetched unless a flag says so
    cache = tmp_path / "cache"
    local = [f"--model={cache / 'maker--tiny/snapshots' / COMMIT}"]
    local += [f"--data={cache / 'maker--toy/snapshots' / COMMIT / 'main/train.csv'}"]
    before = (tmp_path / "runs" / record.id / "run.json").read_bytes()
    assert invoke(monkeypatch, "compare", "--no-tune", *words, *local, f"--out={tmp_path / 'runs'}") == 0
    assert (tmp_path / "runs" / record.id / "run.json").read_bytes() == before  # the same run, not done again
    assert len(RunStore(tmp_path / "runs").ids()) == 1
    model_folder(ModelSpec(path="maker/tiny", trust_remote_code=True))
    assert any("*.py" in patterns for _, _, _, patterns in hub)


def test_what_the_hub_does_not_give_is_one_line(hub, tmp_path):
    with pytest.raises(ModelError, match="model 'maker/other' is no local folder and can't be fetched from the hub"):
        model_folder(ModelSpec(path="maker/other"))
    with pytest.raises(ModelError, match="give a local folder$"):
        model_folder(ModelSpec(path="maker/other"))
    for words in ({"base": "maker/other", "model_b": "maker/tiny"}, {"base": "maker/tiny", "model_b": "maker/other"}):
        with pytest.raises(ModelError, match="'maker/other'.*give a local folder$"):
            inspect(**words)
    with pytest.raises(SpecError, match=r"data set 'maker/none' is no local folder.*\(--data\)$"):
        resolve("hub:maker/none/train.csv")
    with pytest.raises(SpecError, match="holds no such file"):
        resolve("hub:maker/toy/main/test.csv")
    assert pinned(str(tmp_path)) == str(tmp_path)
    assert json.loads((resolve("hub:maker/tiny") / "config.json").read_text())["model_type"] == "bert"
    assert resolve("hub:maker/toy/main") == Path(resolve("hub:maker/toy/main/train.csv")).parent
