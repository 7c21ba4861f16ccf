"""Saved files have the permissions that the user's umask gives to new files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tunewise
from test_run import make_spec
from tunewise.cache import cache_folder, hub_cache
from tunewise.errors import ModelError
from tunewise.models.load import model_folder
from tunewise.run import run
from tunewise.spec import ModelSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_a_run_and_its_exports_follow_the_umask(mask, tiny_model, toy_csv, tmp_path):
    before = os.umask(mask)
    try:
        spec = make_spec(tiny_model, toy_csv, "c3la", epochs=1)
        store = RunStore(tmp_path / "runs")
        folder = store.folder(run(spec, store).id)
        task = build_task(spec)
        batch = task.collate(list(task.test[:4]))
        tunewise.export(folder / "adapter", "lora", tmp_path / "lora")
        tunewise.export(folder / "adapter", "merged", tmp_path / "merged", base=task.load_model(0), batch=batch)
    finally:
        os.umask(before)
    entries = [e for root in (folder, tmp_path / "lora", tmp_path / "merged") for e in (root, *root.rglob("*"))]
    assert len(entries) > 12
    for entry in entries:
        expected = (0o777 if entry.is_dir() else 0o666) & ~mask
        assert entry.stat().st_mode & 0o777 == expected, entry


def test_without_a_home_the_cache_is_under_the_temporary_folder_and_says_so(monkeypatch, tmp_path):
    for name in ("TUNEWISE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", no_home)
    with pytest.warns(UserWarning, match="TUNEWISE_CACHE"):
        assert cache_folder() == tmp_path / f"tunewise-{os.getuid()}"


def test_without_a_home_files_of_the_hub_go_elsewhere_and_it_says_where(monkeypatch, tmp_path):
    """huggingface_hub's own cache is then '~/.cache/huggingface/hub', which would be a folder called ~ right here."""
    monkeypatch.setenv("HF_HOME", "restored after the test")
    monkeypatch.delenv("HF_HOME")
    for name in ("TUNEWISE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "locked")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).exists() and mode == os.F_OK)
    asked = []

    def snapshot_download(repo, *, cache_dir=None, **options):
        asked.append(cache_dir)
        raise PermissionError(13, "Permission denied", str(cache_dir))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with (
        pytest.warns(UserWarning, match="TUNEWISE_CACHE sets another, and HF_HOME"),
        pytest.raises(ModelError) as error,
    ):
        model_folder(ModelSpec(path="maker/tiny"))
    home = tmp_path / f"tunewise-{os.getuid()}" / "huggingface"
    assert asked == [home / "hub"] and os.environ["HF_HOME"] == str(home)
    assert str(error.value).endswith("Permission denied; HF_HOME moves the cache of the hub elsewhere")


def test_a_cache_of_the_hub_that_is_there_is_used_also_where_it_is_read_only(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)
    assert hub_cache() is None
