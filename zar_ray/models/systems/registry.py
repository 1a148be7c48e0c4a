"""The published systems by name: zar-ray's own, and those that installed packages add.

A package adds one by an entry point of the group ``zar_ray.models`` that names its `System`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from zar_ray.errors import ConfigError
from zar_ray.models.formats import Converted, SavedWeights
from zar_ray.models.parts import Part
from zar_ray.models.systems import a5, actionclip, ezclip, vificlip, vitaclip, xclip
from zar_ray.models.systems.base import SYSTEM, System, TrainingRule

GROUP = "zar_ray.models"

_OWN = (a5.SYSTEM, actionclip.SYSTEM, ezclip.SYSTEM, vificlip.SYSTEM, vitaclip.SYSTEM, xclip.SYSTEM)
_HERE = "zar-ray"


@cache
def registered() -> Mapping[str, System]:
    """All systems by name, in alphabetical order.

    Raises:
        ConfigError: A package's entry point cannot be loaded or names no system, or two packages have a system of one
            name or different parts under one word.
    """
    found: dict[str, System] = {}
    owners: dict[str, str] = {}
    parts: dict[str, tuple[str, Part]] = {}
    for package, system in [*((_HERE, one) for one in _OWN), *_of_packages()]:
        if system.name in found:
            raise ConfigError(
                f"{GROUP}: {owners[system.name]} and {package} both have a model called {system.name}; uninstall one"
            )
        for part in system.parts:
            other, held = parts.setdefault(part.word, (package, part))
            if held is not part:
                raise ConfigError(f'{GROUP}: {other} and {package} have different parts called "{part.word}"')
        found[system.name], owners[system.name] = system, package
    return dict(sorted(found.items()))


def known_systems() -> tuple[str, ...]:
    """The names of all systems, in alphabetical order."""
    return tuple(registered())


def find_system(name: str) -> System | None:
    """The system of a name; None where it is the name of none, as open_clip's are not."""
    return registered().get(name)


def known_parts() -> dict[str, Part]:
    """What an architecture may add to CLIP, by its word."""
    return {part.word: part for system in registered().values() for part in system.parts}


def system_of(architecture: Mapping[str, Any]) -> System | None:
    """The system that an architecture names; None where it names none, or one that is not here."""
    return find_system(str(architecture.get(SYSTEM)))


def rule_of(architecture: Mapping[str, Any]) -> TrainingRule:
    """How training treats a model: by the rule of its system, and of those that have further parts of it."""
    named = system_of(architecture)
    further = known_parts().keys() & architecture.keys()
    further -= {part.word for part in named.parts} if named else set()
    rules = [named.training] if named else []
    rules += [one.training for one in registered().values() if any(part.word in further for part in one.parts)]
    if len(rules) < 2:
        return rules[0] if rules else TrainingRule()
    return TrainingRule(
        added=lambda name: any(rule.added(name) for rule in rules),
        new=lambda name: any(rule.new(name) for rule in rules),
        lr_multiple=lambda name: math.prod(rule.lr_multiple(name) for rule in rules),
        undecayed=lambda name: any(rule.undecayed(name) for rule in rules),
        drops_layers=any(rule.drops_layers for rule in rules),
        refuses=lambda config: next(filter(None, (rule.refuses(config) for rule in rules)), None),
    )


def recognise(saved: SavedWeights) -> tuple[System, Converted] | None:
    """The system whose own file this is, packages' before zar-ray's; None where it is none's.

    Raises:
        ModelError: It is one's, and not whole.
    """
    ours = {system.name for system in _OWN}
    for system in sorted(registered().values(), key=lambda one: one.name in ours):
        converted = system.recognise(saved)
        if converted is not None:
            return system, converted
    return None


def _of_packages() -> Iterator[tuple[str, System]]:
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist is not None else entry.value
        where = f"{GROUP}: the model {entry.name} of the package {package}"
        try:
            system = entry.load()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{where} cannot be loaded ({reason}); mend or uninstall it") from error
        if not isinstance(system, System):
            raise ConfigError(f"{where} is a {type(system).__name__}, not a System; mend or uninstall it")
        yield package, system
