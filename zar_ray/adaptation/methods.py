"""The methods by name: the built-in ones, a module each, and those of installed packages.

A package offers a method as an entry point of the group `zar_ray.methods`, whose object is a `Method`.
"""

from __future__ import annotations

from zar_ray.adaptation import (
    boostadapter,
    ctpt,
    dmn,
    dpe,
    dynaprompt,
    ecalp,
    memo,
    mta,
    onzeta,
    otpt,
    rtpt,
    tda,
    tent,
    tps,
    tpt,
    vte,
    zar,
    zero,
    zero_shot,
)
from zar_ray.adaptation.base import Method
from zar_ray.errors import ConfigError, suggestion
from zar_ray.packages import with_offered

ENTRY_POINTS = "zar_ray.methods"
"""The group of entry points that packages offer their methods in."""

_BUILT_IN = (
    *(zero_shot, zar, tpt, memo, tent, tda, zero, mta, vte, tps, ctpt, otpt, rtpt),
    *(boostadapter, dmn, dpe, onzeta, ecalp, dynaprompt),
)


def offered_methods() -> dict[str, tuple[str, Method]]:
    """All methods with whose they are, by name: the built-in ones in their order, then packages' in their names'.

    Raises:
        ConfigError: A package's method cannot be loaded or has another one's name; the message names the package.
    """
    return with_offered([module.METHOD for module in _BUILT_IN], ENTRY_POINTS, Method, "method")


METHODS = {name: method for name, (_, method) in offered_methods().items()}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: There is none; the message suggests the nearest name.
    """
    if name not in METHODS:
        raise ConfigError(f'no method is called "{name}"{suggestion(name, METHODS)}')
    return METHODS[name]
