"""The wheel: built from a copy of the sources, installed into a fresh environment, used outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[1]


def run(*words: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    shutil.copytree(REPOSITORY / "src", sources / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", folder, sources, cwd=folder)
    (built,) = folder.glob("tunewise-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Path:
    """A fresh environment with the wheel; the libraries that it needs are this process's own."""
    home = wheel.parent / "environment"
    venv.create(home)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    # A plain path: the .pth files in it, such as that of an editable install, are not followed.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install")
    run(*pip, "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=wheel.parent)
    return home


def test_it_holds_every_file_of_the_package_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = REPOSITORY / "src"
    files = (p for p in source.glob("tunewise/**/*") if p.is_file() and "__pycache__" not in p.parts)
    assert not {p.relative_to(source).as_posix() for p in files} - names
    assert "tunewise/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)


def test_it_works_outside_the_repository(environment: Path, tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    where = run(environment / "bin" / "python", "-c", "import tunewise; print(tunewise.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    command = environment / "bin" / "tunewise"
    assert "compare" in run(command, "--help", cwd=tmp_path)
    flags = ("--model", tiny_model, "--data", toy_csv, "--text", "text", "--label", "label", "--methods", "lora,cla")
    plan = run(command, "compare", "--dry-run", *flags, "--out", tmp_path / "runs", cwd=tmp_path)
    assert "lora" in plan
    assert "cla" in plan
