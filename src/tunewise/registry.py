"""Names of tasks, measures and adapter classes, known before any of their modules is imported. Plain data, no torch.

A built-in entry is imported when it is first used. A plug-in registers itself when its own file is imported:

    from tunewise.registry import TASKS

    TASKS.register("my-task", MyTask)

Command line, spec files and worker processes know it as `MODULE:my-task`, and import the module where they read that.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from tunewise.errors import SpecError, suggest_nearest

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name. `builtin` maps each built-in name to the module that registers it when imported."""

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._modules = dict(builtin)
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry, or replace the one of the same name. Returns the entry."""
        self._entries[name] = entry
        return entry

    def unregister(self, name: str) -> None:
        """Remove an entry that a plug-in has added."""
        del self._entries[name]

    def names(self) -> list[str]:
        """All names: built-in ones in their order, then those of plug-ins."""
        return list(dict.fromkeys([*self._modules, *self._entries]))

    def check(self, name: str) -> str:
        """Return the name. Raises `SpecError` with the nearest name where it is unknown. Of `MODULE:NAME` the module is
        imported, of any other name nothing."""
        module, _, plugin = name.rpartition(":")
        if module and name not in self._entries:
            try:
                content = vars(importlib.import_module(module))
            except ImportError as error:
                raise SpecError(f"{self.kind} {name!r}: its module can't be imported ({error})") from None
            entry = self._entries.get(plugin)
            if entry is None or not (entry.__module__ == module or entry in content.values()):
                raise SpecError(f"{self.kind} {name!r}: the module {module!r} registers no {self.kind} {plugin!r}")
            self._entries[name] = entry
        if name not in self._modules and name not in self._entries:
            raise SpecError(f"unknown {self.kind} {name!r}{suggest_nearest(name, self.names())}")
        return name

    def get(self, name: str) -> Entry:
        """The entry, its module imported if necessary. Raises `SpecError` where the name is unknown."""
        self.check(name)
        if name not in self._entries:
            importlib.import_module(self._modules[name])
        return self._entries[name]


TASKS: Registry[Any] = Registry(
    "task",
    {
        "text": "tunewise.tasks.text",
        "image": "tunewise.tasks.image",
        "causal": "tunewise.tasks.causal",
        "generation": "tunewise.tasks.generation",
        "chat": "tunewise.tasks.chat",
        "regression": "tunewise.tasks.regression",
        "choice": "tunewise.tasks.choice",
    },
)
MEASURES: Registry[Any] = Registry(
    "measure",
    {
        "forgetting": "tunewise.measures.forgetting.section",
        "spectrum": "tunewise.measures.spectrum.section",
        "intruders": "tunewise.measures.intruders.section",
        "sharpness": "tunewise.measures.sharpness.section",
        "landscape": "tunewise.measures.landscape.section",
        "bounds": "tunewise.measures.bounds.section",
        "alignment": "tunewise.measures.alignment.section",
        "laziness": "tunewise.measures.laziness.section",
    },
)
"""In the order of the report."""

DEFAULT_MEASURES = ("forgetting", "spectrum", "intruders", "bounds")
"""Those that every comparison computes unless told otherwise: they cost little next to training."""

ADAPTERS: Registry[Any] = Registry(
    "adapter class",
    {
        "low-rank": "tunewise.methods.adapters.low_rank",
        "columns": "tunewise.methods.adapters.columns",
        "rows": "tunewise.methods.adapters.rows",
    },
)
