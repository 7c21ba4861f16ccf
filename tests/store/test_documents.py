"""Documents: whole or not at all, no flipped byte believed, older schemas read, newer ones refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from stored_runs import record_of, stored_spec
from tunewise.errors import StoreError
from tunewise.store import documents
from tunewise.store.documents import read_document, write_document
from tunewise.store.records import SCHEMA, RunRecord


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, RunRecord]:
    record = record_of(stored_spec(), accuracy=0.1 + 0.2)
    write_document(tmp_path / "run.json", record)
    return tmp_path / "run.json", record


def test_what_is_read_is_what_was_written(written: tuple[Path, RunRecord]) -> None:
    file, record = written
    assert read_document(file, RunRecord, "") == record
    assert set(json.loads(file.read_text())) == {*RunRecord.model_fields, "checksum"}


def test_no_flipped_bit_is_believed(written: tuple[Path, RunRecord]) -> None:
    """A random bit of every fifth byte: an error of one line, or (in the space between values) the very same content."""
    file, record = written
    raw = file.read_bytes()
    generator = random.Random(0)
    noticed = 0
    places = range(0, len(raw), 5)
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            assert read_document(file, RunRecord, "do this") == record, place
        except StoreError as error:
            noticed += 1
            assert str(error).startswith(f"{file} ") and "do this" in str(error)
    assert noticed >= sum(not chr(raw[place]).isspace() for place in places) - len("checksum")


def test_a_changed_result_is_noticed_by_the_checksum_alone(written: tuple[Path, RunRecord]) -> None:
    file, _ = written
    text = file.read_text()
    assert text.count('"loss": 0.3') == 1
    file.write_text(text.replace('"loss": 0.3', '"loss": 0.2'))
    with pytest.raises(StoreError, match="not as it was written \\(its checksum differs\\); run it again"):
        read_document(file, RunRecord, "run it again")


def test_every_truncation_is_noticed(written: tuple[Path, RunRecord]) -> None:
    file, _ = written
    raw = file.read_bytes()
    for length in range(0, len(raw) - 2, 31):
        file.write_bytes(raw[:length])
        with pytest.raises(StoreError):
            read_document(file, RunRecord, "")


@pytest.mark.parametrize("version", [SCHEMA + 1, SCHEMA - 1, None, str(SCHEMA)])
def test_another_schema_and_none_are_refused_in_one_line(version: object, written: tuple[Path, RunRecord]) -> None:
    file, record = written
    content = json.loads(record.model_dump_json())
    content["a_field_of_the_future"] = content["schema_version"] = version
    file.write_text(json.dumps({**content, "checksum": documents.checksum(content)}))
    with pytest.raises(StoreError, match=f"has schema {version}, and this tunewise reads schema {SCHEMA}") as error:
        read_document(file, RunRecord, "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b'{"schema_version": 2}'])
def test_rubbish_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(StoreError, match="can't be read"):
        read_document(tmp_path / "f.json", RunRecord, "")


def test_a_method_that_is_no_more_is_a_record_that_cant_be_read(written: tuple[Path, RunRecord]) -> None:
    file, record = written
    content = json.loads(record.model_dump_json())
    content["spec"]["method"]["name"] = "lorra"
    file.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="unknown method 'lorra'"):
        read_document(file, RunRecord, "")
