"""The class names of the shipped benchmarks, from `conf/classes/NAME.txt`: one a line, in label-id order."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable

from zar_ray.errors import ConfigError, ManifestError, ZarError, suggestion
from zar_ray.options.layers import conf_dir
from zar_ray.untrusted import storable


def classes_of(data: str) -> str:
    """The list of all classes of a dataset that `zar data index` knows by name."""
    return {"k400": "kinetics400", "k600": "kinetics600"}.get(data, data)


def known_class_lists() -> tuple[str, ...]:
    """The names of the shipped class lists, in alphabetical order."""
    return tuple(sorted(path.stem for path in (conf_dir() / "classes").glob("*.txt")))


@functools.cache
def class_list(name: str) -> tuple[str, ...]:
    """A shipped list of class names, in label-id order, or a ConfigError."""
    if name not in known_class_lists():
        raise ConfigError(f'no class list "{name}"{suggestion(name, known_class_lists())}')
    return tuple((conf_dir() / "classes" / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def tidy_name(name: str) -> str:
    """A class name without spaces around it, in Unicode's composed form (NFC), whatever file system it comes from."""
    return unicodedata.normalize("NFC", storable(name).strip())


def distinct_names(
    names: Iterable[str], place: str, what: str = "class name", error: type[ZarError] = ManifestError
) -> tuple[str, ...]:
    """The names of a data set's classes in label-id order, which must be there, distinct and not empty.

    Raises:
        ZarError: There is none, or one is empty or occurs twice; of the kind `error`, which names the `place` they come
            from, and the number of the `what`, such as "line", that is wrong.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise error(f"{place}: {what} {number} is empty")
        if name in first:
            raise error(f'{place}: "{name}" is both {what} {first[name]} and {what} {number}')
        first[name] = number
    if not first:
        raise error(f"{place}: no class names")
    return tuple(first)


def name_key(name: str) -> str:
    """What spellings of one class name have in common: its letters and digits, without case.

    ``ApplyEyeMakeup``, ``apply_eye_makeup`` and ``Apply Eye Makeup`` have one key.
    """
    return "".join(c for c in unicodedata.normalize("NFC", name).casefold() if c.isalnum())


def by_key(names: Iterable[str]) -> dict[str, str]:
    """Class names by their keys."""
    return {name_key(name): name for name in names}
