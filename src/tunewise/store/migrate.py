"""Documents of older schemas, brought to the present one when they are read.

A step is a function from the content of one schema version to that of the next; `STEPS[kind][n]` goes from n to n + 1.
A field that is added with a default needs no step and no new version: old files stay readable as they are. Files are
never rewritten for this; what is read is as if it had been written today.

To change a shape in another way: raise `records.SCHEMA` and add one step per kind that changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunewise.errors import StoreError
from tunewise.store.records import SCHEMA

Content = dict[str, Any]
Step = Callable[[Content], Content]

STEPS: dict[str, dict[int, Step]] = {"RunRecord": {}, "CostReport": {}, "TuningReport": {}}
"""By the record's class, then by the version that a step starts from. A kind without a step from one version to the
next did not change there."""
OLDEST = 1
"""The oldest schema that the steps start from."""


class NewerSchema(StoreError):
    """A document that is sound, but not for this version to read."""


def migrated(content: Content, kind: str, source: Path) -> Content:
    """The content of a document of class `kind` in the present schema.

    Raises `StoreError` for one without a version, of a newer tunewise, or older than `OLDEST`.
    """
    version = content.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise StoreError(f"{source} does not say which schema it has (schema_version); tunewise did not write it")
    if version > SCHEMA:
        raise NewerSchema(
            f"{source} was written by a newer tunewise (schema {version}, and this one reads up to {SCHEMA}); "
            "install that one: pip install -U tunewise"
        )
    if version < OLDEST:
        raise StoreError(f"{source} has schema {version}, and this tunewise reads {OLDEST} to {SCHEMA}")
    for older in range(version, SCHEMA):
        step = STEPS[kind].get(older)
        content = {**(step(dict(content)) if step else content), "schema_version": older + 1}
    return content
