"""The methods by name: the built-in ones, a module each, and those of installed packages.

A package offers a method as an entry point of the group `zar_ray.methods`, whose object is a `Method`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from zar_ray.adaptation import memo, tda, tent, tpt, zar, zero_shot
from zar_ray.adaptation.base import Method
from zar_ray.errors import ConfigError, suggestion

ENTRY_POINTS = "zar_ray.methods"
"""The group of entry points that packages offer their methods in."""

_BUILT_IN = (zero_shot, zar, tpt, memo, tent, tda)


def find_methods() -> dict[str, Method]:
    """All methods by name: the built-in ones in their order, then those of packages in that of their names.

    Raises:
        ConfigError: A package's method cannot be loaded or has another one's name; the message names the package.
    """
    methods = {module.METHOD.name: module.METHOD for module in _BUILT_IN}
    sources = dict.fromkeys(methods, "zar-ray")
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        package = entry.dist.name if entry.dist is not None else entry.value
        method = _load(entry, package)
        if method.name in methods:
            raise ConfigError(
                f'package {package}: its method is called "{method.name}", as one of {sources[method.name]} is;'
                " rename it, or uninstall one of them"
            )
        methods[method.name], sources[method.name] = method, f"package {package}"
    return methods


def _load(entry: EntryPoint, package: str) -> Method:
    try:
        found = entry.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f'package {package}: its method "{entry.name}" cannot be loaded ({reason}); mend or uninstall it'
        ) from error
    if not isinstance(found, Method):
        raise ConfigError(
            f'package {package}: "{entry.value}" of its method "{entry.name}" is no Method but a {type(found).__name__}'
        )
    return found


METHODS = find_methods()


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: There is none; the message suggests the nearest name.
    """
    if name not in METHODS:
        raise ConfigError(f'no method is called "{name}"{suggestion(name, METHODS)}')
    return METHODS[name]
