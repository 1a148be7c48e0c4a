"""``--settings NAME=VALUE``: what no tensor of a file tells, and the sizes of what a published system adds anew.

Every argument of a system's parts is a setting under its name. Beside them are the three of CLIP's towers that no
tensor tells: ``quick_gelu``, ``vision_heads`` and ``text_heads``.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from zar_ray.errors import ConfigError, suggestion
from zar_ray.models.systems.base import System
from zar_ray.models.systems.registry import known_parts
from zar_ray.options.layers import parse_yaml

Settings = Mapping[str, Any]

QUICK_GELU, VISION_HEADS, TEXT_HEADS = TOWERS = ("quick_gelu", "vision_heads", "text_heads")
"""The settings of CLIP's towers."""


def parsed(words: Collection[str]) -> dict[str, Any]:
    """The values of ``NAME=VALUE`` words, as YAML reads each; a later one of the same name holds.

    Raises:
        ConfigError: A word is none.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name.strip() or not value.strip():
            raise ConfigError(f"--settings {word}: give NAME=VALUE, such as frames=16")
        found[name.strip()] = parse_yaml(value, f"--settings {word}")
    return found


def of_towers(settings: Settings) -> dict[str, Any]:
    """Those of CLIP's towers."""
    return {name: value for name, value in settings.items() if name in TOWERS}


def of_parts(settings: Settings) -> dict[str, Any]:
    """Those of what a system adds."""
    return {name: value for name, value in settings.items() if name not in TOWERS}


def has_parts(architecture: Mapping[str, Any]) -> bool:
    """Whether an architecture has a part of any system's."""
    return not known_parts().keys().isdisjoint(architecture)


def takes(system: System | None, name: str) -> bool:
    """Whether new weights of a system are made by a setting."""
    return system is not None and name in _places(system.additions)


def with_settings(architecture: Mapping[str, Any], settings: Settings, place: str) -> dict[str, Any]:
    """An architecture with other settings; whether tensors fit them is seen where they are loaded.

    Args:
        architecture: As open_clip's configs, with its parts under their words; or such parts alone.
        settings: By name.
        place: What it is of, for messages.

    Raises:
        ConfigError: It has no setting of that name, or a value does not fit.
    """
    places = _places(architecture)
    made = {word: dict(value) if isinstance(value, Mapping) else value for word, value in architecture.items()}
    for name, value in settings.items():
        if name not in places:
            raise ConfigError(f"--settings {name}={value}: {place} has no such setting{suggestion(name, places)}")
        word, kind = places[name]
        fitting = _fitting(name, value, kind)
        if name == QUICK_GELU:
            made[QUICK_GELU] = fitting
        elif name == VISION_HEADS:
            made[word]["head_width"] = _shared(made[word], fitting, name)
        elif name == TEXT_HEADS:
            _shared(made[word], fitting, name)
            made[word]["heads"] = fitting
        else:
            made[word][name] = fitting
    return made


def told(architecture: Mapping[str, Any], names: Collection[str]) -> str:
    """Some settings of an architecture as words that `parsed` reads."""
    words = [f"{name}={_value(architecture, name)}" for name in names]
    return " ".join(words).replace("=None", "=null")


def tower_settings(architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of those settings of towers that an architecture has: a ResNet's heads are not among them."""
    return tuple(name for name in TOWERS if name in _places(architecture))


def _value(architecture: Mapping[str, Any], name: str) -> object:
    if name == QUICK_GELU:
        return str(bool(architecture.get(QUICK_GELU))).lower()
    word, _ = _places(architecture)[name]
    part = architecture[word]
    if name == VISION_HEADS:
        return part.get("width", 768) // part.get("head_width", 64)
    if name == TEXT_HEADS:
        return part.get("heads", 8)
    value = part.get(name, inspect.signature(known_parts()[word]).parameters[name].default)
    return str(value).lower() if isinstance(value, bool) else value


def _places(architecture: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """For each setting the word under which an architecture has it, and its type."""
    found: dict[str, tuple[str, Any]] = {}
    if isinstance(text := architecture.get("text_cfg"), Mapping):
        found[QUICK_GELU] = (QUICK_GELU, bool)
        vision = architecture.get("vision_cfg")
        if (
            isinstance(vision, Mapping)
            and isinstance(vision.get("layers", 12), int)
            and "timm_model_name" not in vision
        ):
            found[VISION_HEADS] = ("vision_cfg", int)
        if not text.get("hf_model_name"):
            found[TEXT_HEADS] = ("text_cfg", int)
    for word, attach in known_parts().items():
        if isinstance(architecture.get(word), Mapping):
            types = typing.get_type_hints(attach)
            names = [*inspect.signature(attach).parameters][1:]  # the first is the CLIP
            found |= {name: (word, types.get(name, Any)) for name in names if name != "generator"}
    return found


def _fitting(name: str, value: object, kind: Any) -> Any:
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"--settings {name}={value}: {error.errors()[0]['msg']}") from error


def _shared(tower: Mapping[str, Any], heads: int, name: str) -> int:
    """The width of each of so many heads."""
    width = tower.get("width", 768 if name == VISION_HEADS else 512)
    if heads < 1 or width % heads:
        raise ConfigError(f"--settings {name}={heads}: does not divide the tower's width, {width}")
    return width // heads
