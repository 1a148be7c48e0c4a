"""The class names of the shipped benchmarks, from `conf/classes/NAME.txt`: one a line, in label-id order."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable

from zar_ray.errors import ConfigError, suggestion
from zar_ray.options.layers import conf_dir

# The list of all classes of each dataset that `zar data index` knows by name.
CLASSES_OF = {
    "charades": "charades",
    "hmdb51": "hmdb51",
    "k400": "kinetics400",
    "k600": "kinetics600",
    "ssv2": "ssv2",
    "ucf101": "ucf101",
}


def known_class_lists() -> tuple[str, ...]:
    """The names of the shipped class lists, in alphabetical order."""
    return tuple(sorted(path.stem for path in (conf_dir() / "classes").glob("*.txt")))


@functools.cache
def class_list(name: str) -> tuple[str, ...]:
    """A shipped list of class names, in label-id order.

    Raises:
        ConfigError: There is no such list.
    """
    if name not in known_class_lists():
        raise ConfigError(f'no class list "{name}"{suggestion(name, known_class_lists())}')
    return tuple((conf_dir() / "classes" / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def name_key(name: str) -> str:
    """What spellings of one class name have in common: its letters and digits, without case.

    ``ApplyEyeMakeup``, ``apply_eye_makeup`` and ``Apply Eye Makeup`` have one key.
    """
    return "".join(c for c in unicodedata.normalize("NFC", name).casefold() if c.isalnum())


def by_key(names: Iterable[str]) -> dict[str, str]:
    """Class names by their keys."""
    return {name_key(name): name for name in names}
