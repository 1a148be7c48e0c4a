"""A command's options as people read them: names, kinds of values, defaults and topics, from their one definition."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import docstring_parser
import tyro
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

_WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Entry:
    """An option or an argument.

    Attributes:
        name: As it is written, without dashes before it.
        value: What stands behind it, such as ``N``, ``FILE|URI`` or ``a|b``; empty for a switch.
        about: What it does.
        topic: What it is about: the first line of its group's class, or of the class that declares it.
        default: What holds where it is not given; None where nothing does.
        choices: The values that it may have, where these are listed.
        positional: Whether it is written without its name.
        required: Whether a line without it is a mistake.
        switched_on: Whether it is a switch that is on, and is turned off by ``--no-NAME``.
        several: Whether several values may stand behind it.
    """

    name: str
    value: str
    about: str
    topic: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    positional: bool = False
    required: bool = False
    switched_on: bool = False
    several: bool = False

    @property
    def written(self) -> str:
        """As it stands on a command line."""
        if self.positional:
            return self.value
        group, dot, last = self.name.rpartition(".")
        return f"--{group}{dot}{'no-' * self.switched_on}{last} {self.value}".strip()


def entries_of(kind: Callable[..., Any] | type[Any], prefix: str = "") -> list[Entry]:
    """The options of a pydantic class, those of its groups after its own, or of a function, by its docstring."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return list(_of_function(kind))
    own: list[Entry] = []
    groups: list[Entry] = []
    for name, field in kind.model_fields.items():
        dashed = f"{prefix}{name.replace('_', '-')}"
        if tyro.conf.Suppress in field.metadata:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            groups += entries_of(field.annotation, f"{dashed}.")
            continue
        default = _REQUIRED if field.default is PydanticUndefined else field.default
        about = " ".join((field.description or "").split())
        own.append(
            _entry(dashed, field.annotation, field.metadata, about, _topic(kind, None if prefix else name), default)
        )
    return own + groups


def _of_function(function: Callable[..., Any]) -> Iterator[Entry]:
    says = {
        one.arg_name: one.description or "" for one in docstring_parser.parse(inspect.getdoc(function) or "").params
    }
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        default = _REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
        about = " ".join(says.get(name, "").split())
        yield _entry(name.replace("_", "-"), parameter.annotation, [], about, "", default)


_REQUIRED = object()


def _entry(name: str, annotation: Any, metadata: list[Any], about: str, topic: str, default: Any) -> Entry:
    inner, marks = _bare(annotation)
    marks = [*metadata, *marks]
    # tyro's own mark of an option that is called otherwise than its field.
    name = next((one.name for one in marks if hasattr(one, "prefix_name") and one.name), name)
    several = get_origin(inner) is tuple
    positional = any(one is tyro.conf.Positional for one in marks)
    if inner is bool:
        return Entry(name, "", about, topic, switched_on=default is True)
    value, choices = _kind(inner, marks)
    if positional:
        value = name.upper() + (" ..." if several else "")
    required = default is _REQUIRED
    shown = None if required else _shown(default)
    return Entry(name, value, about, topic, shown, choices, positional, required, several=several)


def _bare(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without what is around it, ``| None`` and ``Annotated``, and what the latter says."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        below, more = _bare(inner)
        return below, [*marks, *more]
    if get_origin(annotation) in (Union, types.UnionType):
        others = [one for one in get_args(annotation) if one is not types.NoneType]
        # An option that takes one value or several is one that takes several.
        return _bare(next((one for one in others if get_origin(_bare(one)[0]) is tuple), others[0]))
    return annotation, []


def _kind(inner: Any, marks: list[Any]) -> tuple[str, tuple[str, ...]]:
    """How a type's values are called, and which there are."""
    spec = next((one for one in marks if isinstance(one, tyro.constructors.PrimitiveConstructorSpec)), None)
    if spec is not None:
        return spec.metavar, ()
    if get_origin(inner) is Literal:
        choices = tuple(str(one) for one in get_args(inner))
        return "|".join(choices), choices
    if get_origin(inner) is tuple:
        parts = get_args(inner)
        if parts[-1] is Ellipsis:
            one, choices = _kind(*_bare(parts[0]))
            return f"{one} ...", choices
        return " ".join(_kind(*_bare(part))[0] for part in parts), ()
    return _WORDS.get(inner, "TEXT"), ()


def _shown(default: Any) -> str | None:
    if default is None or default == ():
        return None
    if isinstance(default, tuple):
        return " ".join(str(one) for one in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


@functools.cache
def _topic(kind: type[BaseModel], name: str | None) -> str:
    """The first line of a group's class; of a field of no group, that of the topmost class which declares it."""
    declaring = [one for one in kind.__mro__ if name in inspect.get_annotations(one)]
    lines = inspect.cleandoc((declaring[-1] if declaring else kind).__doc__ or "").splitlines()
    return lines[0].rstrip(".") if lines else ""
