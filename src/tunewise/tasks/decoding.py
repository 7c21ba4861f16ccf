"""From the bytes of a file to its text; faults become a `DataError` that names file and line."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from tunewise.errors import DataError, SpecError

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_GZIP_MAGIC = b"\x1f\x8b"
_CONTROL_BYTE = re.compile(rb"[\x80-\x9f]")  # punctuation in cp1252, control characters in latin-1
_LINE_END = re.compile(rb"\r\n|\r|\n")


def lines_of(text: str) -> Iterator[str]:
    """The lines of a text, split at \\n, \\r\\n and \\r alone, with their ends: as an editor shows them."""
    return iter(io.StringIO(text, newline=""))


def read_text(path: Path, encoding: str = "utf-8", name: str | None = None) -> str:
    """The text of a file (unpacked where its name ends in .gz) without byte-order mark, by the first codec of
    `encoding` that fits. Raises `DataError`, with the fault of the codec that got furthest, and `SpecError` for an
    unknown one."""
    candidates = _codecs(encoding)
    content = _content(path).removeprefix(codecs.BOM_UTF8)
    name = name or path.name
    faults = []
    for codec in candidates:
        try:
            text = _decode(content, codec).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            faults.append(error)
            continue
        _refuse_nul(text, name)
        return text
    at = max(fault.start for fault in faults)
    line, byte = len(_LINE_END.findall(content, 0, at)) + 1, at - max(content.rfind(end, 0, at) for end in b"\r\n")
    raise DataError(
        f"{name}, line {line}: byte {byte} of the line (0x{content[at]:02x}) is not {' or '.join(candidates)}; "
        f"{_encoding_advice(content)}"
    )


def _decode(content: bytes, codec: str) -> str:
    """Raises `UnicodeDecodeError`, also where latin-1 and its kin would read punctuation of cp1252 as a control
    character."""
    text = content.decode(codec)
    control = _CONTROL_BYTE.search(content) if codecs.lookup(codec).name.startswith("iso8859") else None
    if control:
        raise UnicodeDecodeError(codec, content, control.start(), control.end(), "a control character")
    return text


def _codecs(encoding: str) -> list[str]:
    names = [name.strip() for name in encoding.split(",") if name.strip()]
    for name in names:
        try:
            b"a".decode(name, errors="replace")  # codecs.lookup alone would let 'base64' pass
        except (LookupError, ValueError):
            raise SpecError(f"unknown encoding {name!r}; say utf-8, latin-1, cp1252 or utf-16") from None
    if not names:
        raise SpecError("no encoding given; say utf-8, or several to be tried in turn: utf-8,cp1252")
    return names


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except EOFError:
        raise DataError(f"{path.name}: the gzip file is cut short; fetch or copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path.name}: damaged, or not a gzip file ({error}); fetch or copy it again") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; check the path and its permissions") from None


def _encoding_advice(content: bytes) -> str:
    if content.startswith(_GZIP_MAGIC):
        return "the file is packed by gzip: end its name in .gz"
    if content.startswith(_UTF16_MARKS):
        return "say --encoding utf-16, or save the file as UTF-8"
    codec = "cp1252" if _CONTROL_BYTE.search(content) else "latin-1"
    return f"say --encoding {codec} (or the one that it has), or save the file as UTF-8"


def _refuse_nul(text: str, name: str) -> None:
    at = text.find("\0")
    if at >= 0:
        line = sum(1 for _ in lines_of(text[: at + 1]))
        raise DataError(
            f"{name}, line {line}: a NUL byte, so this is not plain text; say --encoding utf-16 if it is "
            "UTF-16, else correct or remove the line"
        )
