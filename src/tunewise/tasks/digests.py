"""What the files of a data set hold, as one digest that does not depend on where they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from tunewise.locate import digest, resolve
from tunewise.spec import DataSpec
from tunewise.tasks.files import data_files


def text_digest(path: Path) -> str:
    """sha256 over a file, or the files of a folder of class folders. Raises `DataError` where there is none."""
    return digest(data_files(path), root=path if path.is_dir() else None)


def digest_by_role(spec: DataSpec, of: Callable[[Path], str] = text_digest) -> str:
    """sha256 (64 hex digits) over the files that `spec` names, with their roles: train, validation, test."""
    roles = {"train": spec.path, "validation": spec.validation, "test": spec.test}
    content = {role: of(resolve(path)) for role, path in roles.items() if path is not None}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
