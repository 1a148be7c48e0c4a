"""What other installed packages add: the objects that their entry points name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TypeVar

from zar_ray.errors import ConfigError

_T = TypeVar("_T")


def offered(group: str, kind: type[_T], noun: str) -> Iterator[tuple[str, _T]]:
    """Loads the entry points of a group, such as ``zar_ray.models``, in the order of their names.

    Each must be of a kind, for which messages have a noun.

    Yields:
        What to call the package in a message, and the object.

    Raises:
        ConfigError: One cannot be loaded, or is something else; the message names the package.
    """
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
        yield package, found
