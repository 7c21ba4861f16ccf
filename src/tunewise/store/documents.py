"""JSON documents with a checksum of their own content, so that a changed digit in a result is noticed.

`{"schema_version": 2, ..., "checksum": "sha256 of the rest"}`
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tunewise.errors import SpecError, StoreError
from tunewise.store.files import write_atomically
from tunewise.store.records import SCHEMA

CHECKSUM = "checksum"


class OtherSchema(StoreError):
    """A document of another version of tunewise."""


Document = TypeVar("Document", bound=BaseModel)


def write_document(path: Path, document: BaseModel) -> None:
    """Write a document with its checksum, completely or not at all."""
    content = json.loads(document.model_dump_json())
    content[CHECKSUM] = checksum(content)
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_document(path: Path, kind: type[Document], remedy: str) -> Document:
    """Read what `write_document` wrote; `remedy` ends the message about damage.

    Raises:
        FileNotFoundError: there is none.
        StoreError: damaged, or written by another version of tunewise.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        written = content.pop(CHECKSUM, None)
        if written is not None and written != checksum(content):  # specs have none: they may be edited
            raise StoreError(f"{path} is not as it was written (its checksum differs); {remedy}")
        if "schema_version" in kind.model_fields:
            _check_schema(content.get("schema_version"), path)
        return kind.model_validate(content)
    except FileNotFoundError:
        raise
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise StoreError(f"{path} can't be read ({where}: {fault['msg']}); {remedy}") from None
    # No JSON, no UTF-8, an unknown method.
    except (OSError, ValueError, RecursionError, SpecError, LookupError, TypeError) as error:
        raise StoreError(f"{path} can't be read ({error}); {remedy}") from None


def _check_schema(version: object, path: Path) -> None:
    if version != SCHEMA:
        raise OtherSchema(
            f"{path} has schema {version}, and this tunewise reads schema {SCHEMA}; remove it to make it again"
        )


def checksum(content: dict[str, object]) -> str:
    """sha256 of the content; white space and the order of keys do not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
