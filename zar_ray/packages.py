"""What other installed packages add: the objects that their entry points name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from zar_ray.errors import ConfigError


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=_Named)


def with_offered(own: Iterable[_T], group: str, kind: type[_T], noun: str) -> dict[str, tuple[str, _T]]:
    """Loads the entry points of a group, such as ``zar_ray.models``, beside zar-ray's own objects of its kind.

    Messages have a noun for the kind.

    Returns:
        What to call the package in a message, and the object, by the object's name: zar-ray's own in their order, then
        those of packages in that of their entry points' names.

    Raises:
        ConfigError: One cannot be loaded, is something else, or has another one's name; the message names the package.
    """
    known = {one.name: ("zar-ray", one) for one in own}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        package = f"package {entry.dist.name if entry.dist is not None else entry.value}"
        try:
            found = entry.load()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f'{package}: its {noun} "{entry.name}" cannot be loaded ({reason}); mend or uninstall it'
            ) from error
        if not isinstance(found, kind):
            raise ConfigError(
                f'{package}: "{entry.value}" of its {noun} "{entry.name}" is no {kind.__name__} but a'
                f" {type(found).__name__}"
            )
        if found.name in known:
            raise ConfigError(
                f'{package}: its {noun} is called "{found.name}", as one of {known[found.name][0]} is; rename it, or'
                " uninstall one of them"
            )
        known[found.name] = package, found
    return known
