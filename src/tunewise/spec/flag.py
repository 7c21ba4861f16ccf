"""How a field of a spec appears on the command line, where it is not simply a flag of the field's own name."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Flag:
    """Stands in a field's `Annotated[...]`. `name`: of the flag, instead of the field's; `group`: of the help page;
    `default`: what the help page shows as the default, nothing where it is empty."""

    name: str | None = None
    group: str | None = None
    default: str | None = None
    hidden: bool = False

    @staticmethod
    def of(field: FieldInfo) -> Flag:
        """The `Flag` of a field, or the default."""
        return next((item for item in field.metadata if isinstance(item, Flag)), Flag())
