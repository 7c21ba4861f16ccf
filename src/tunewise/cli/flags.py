"""The flags of a command, derived from the fields of the specs: type, description, default and group are theirs."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Group, Parameter
from cyclopts.validators import Number
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tunewise.spec import Flag
from tunewise.spec.reading import Content

GROUPS = {
    name: Group(name, sort_key=position)
    for position, name in enumerate(
        ("Model and data", "Methods", "Training", "Learning-rate search", "Measurements", "Execution", "Ray"), start=1
    )
}

Given = Content
"""What was given on the command line."""

# Types of flags that are not fields of a spec.
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Positive = Annotated[float, Parameter(validator=Number(gt=0))]
Json = Annotated[bool, Parameter("--json", negative=(), show_default=False, help="Print JSON instead of text.")]
RunsFolder = Annotated[Path, Parameter(help="The runs folder, for a run by its id.")]
Study = Annotated[Path, Parameter(help="A runs folder (its latest study is taken), or the folder of one study.")]
RunOrAdapter = Annotated[
    Path, Parameter(help="Folder of a run, or the beginning of its id; or the folder of any adapter.")
]
SpecFile = Annotated[Path | None, Parameter(help="YAML file with any of these settings; flags win over it.")]
DryRun = Annotated[
    bool, Parameter(negative=(), show_default=False, group=GROUPS["Execution"], help="Print the plan and stop.")
]
Command = Callable[..., object]


@dataclass(frozen=True)
class SpecFlag:
    """A flag, and the place in the spec that its value goes to."""

    path: tuple[str, ...]
    annotation: object


def flags_of(*specs: type[BaseModel]) -> dict[str, SpecFlag]:
    """The flags of the fields of `specs`, by name (`train_size`)."""
    return {name: flag for spec in specs for name, flag in _walk(spec, (), "Parameters")}


def spec_flags(
    *specs: type[BaseModel], only: Collection[str] = (), without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command the flags of `specs`. The command's first argument receives what was given on the command line, as
    a nested dictionary in the shape of the specs."""
    flags = {
        name: flag for name, flag in flags_of(*specs).items() if name not in without and (not only or name in only)
    }

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_flags(*args: object, **values: object) -> object:
            given: Given = {}
            for name, flag in flags.items():
                if (value := values.pop(name, None)) is not None:
                    _place(given, flag.path, value)
            return command(given, *args, **values)

        signature = inspect.signature(command, eval_str=True)
        own = list(signature.parameters.values())[1:]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flag.annotation)
            for name, flag in flags.items()
        ]
        parameters = [*own, *added]
        with_flags.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_flags

    return decorate


def _place(given: Given, path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        given = given.setdefault(key, {})
    given[path[-1]] = value


def _walk(spec: type[BaseModel], path: tuple[str, ...], group: str) -> Iterator[tuple[str, SpecFlag]]:
    group = getattr(spec, "flag_group", group)
    for key, field in spec.model_fields.items():
        flag = Flag.of(field)
        if flag.hidden:
            continue
        part, is_list = _part_of(field.annotation)
        if part is None or is_list:
            parameter = _parameter(flag.name or key, field, flag, flag.group or group)
            annotation = Annotated[_flag_type(field.annotation), parameter]  # type: ignore[valid-type]
            yield flag.name or key, SpecFlag((*path, key), annotation)
        if part is not None:  # what every item of a list may have stands beside the list
            for name, inner in _walk(part, path if is_list else (*path, key), group):
                if not (is_list and inner.path[-1] == "name"):
                    yield name, inner


def _parameter(name: str, field: FieldInfo, flag: Flag, group: str) -> Parameter:
    default = field.get_default(call_default_factory=True)
    text = flag.default
    if text is None:
        text = ",".join(map(str, default)) if isinstance(default, list) else str(default)
    unset = default is None or default is False or default is PydanticUndefined
    hidden = unset or not text or isinstance(default, BaseModel | dict)
    return Parameter(
        "--" + name.replace("_", "-"),
        help=field.description,
        group=GROUPS[group],
        negative=() if default is False else None,
        show_default=False if hidden else lambda _: text,
    )


def _part_of(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    """The spec that a field holds, and whether it holds a list of it."""
    for option in _options(annotation):
        items = get_args(option) if get_origin(option) is list else (option,)
        if isinstance(items[0], type) and issubclass(items[0], BaseModel):
            return items[0], get_origin(option) is list
    return None, False


def _flag_type(annotation: object) -> Any:
    """What the command line reads: numbers, switches and choices as they are, lists as text that the spec splits."""
    options = _options(annotation)
    if len(options) == 1 and (options[0] in (int, float, bool) or get_origin(options[0]) is Literal):
        return options[0] | None
    if get_origin(options[0]) is dict:
        return dict[str, dict[str, int | float | str]] | None
    return str | None


def _options(annotation: object) -> list[Any]:
    """The members of a union but None, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for option in get_args(annotation) if option is not type(None) for inner in _options(option)]
    return [annotation]
