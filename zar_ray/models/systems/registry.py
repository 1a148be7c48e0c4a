"""The published systems by name: zar-ray's own, and those that installed packages add.

A package adds one by an entry point of the group ``zar_ray.models`` that names its `System`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from zar_ray.errors import ConfigError
from zar_ray.models.formats import Converted, SavedWeights
from zar_ray.models.systems import a5, actionclip, ezclip, openvclip, tcclip, vificlip, vitaclip, xclip
from zar_ray.models.systems.base import SYSTEM, System, TrainingRule
from zar_ray.packages import with_offered

GROUP = "zar_ray.models"
"""The group of entry points that packages offer their systems in."""

# In the order in which they look at a file: TC-CLIP's have names of ViFi-CLIP's.
_BUILT_IN = (
    *(a5.SYSTEM, actionclip.SYSTEM, ezclip.SYSTEM, openvclip.SYSTEM),
    *(tcclip.SYSTEM, vificlip.SYSTEM, vitaclip.SYSTEM, xclip.SYSTEM),
)


@cache
def registered() -> Mapping[str, System]:
    """All systems by name, in alphabetical order.

    Raises:
        ConfigError: A package's system cannot be loaded, has another one's name, or a part of its own under another
            one's word; the message names the package.
    """
    found = with_offered(_BUILT_IN, GROUP, System, "model")
    parts: dict[str, tuple[str, Callable[..., None]]] = {}
    for package, system in found.values():
        for word, attach in system.parts.items():
            other, held = parts.setdefault(word, (package, attach))
            if held is not attach:
                raise ConfigError(f'{package}: has a part under the word "{word}", as {other} has; rename it')
    return {name: system for name, (_, system) in sorted(found.items())}


def known_systems() -> tuple[str, ...]:
    """The names of all systems, in alphabetical order."""
    return tuple(registered())


def find_system(name: str) -> System | None:
    """The system of a name; None where it is the name of none, as open_clip's are not."""
    return registered().get(name)


def known_parts() -> dict[str, Callable[..., None]]:
    """What an architecture may add to CLIP, by its word, see `System`."""
    return {word: attach for system in registered().values() for word, attach in system.parts.items()}


def system_of(architecture: Mapping[str, Any]) -> System | None:
    """The system that an architecture names; None where it names none, or one that is not here."""
    return find_system(str(architecture.get(SYSTEM)))


def rule_of(architecture: Mapping[str, Any]) -> TrainingRule:
    """How training treats a model: by the rule of its system, and of those that have further parts of it."""
    named = system_of(architecture)
    further = known_parts().keys() & architecture.keys()
    further -= named.parts.keys() if named else set()
    rules = [named.training] if named else []
    rules += [one.training for one in registered().values() if further & one.parts.keys()]
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
    ours = {system.name for system in _BUILT_IN}
    for system in sorted(registered().values(), key=lambda one: one.name in ours):
        converted = system.recognise(saved)
        if converted is not None:
            return system, converted
    return None
