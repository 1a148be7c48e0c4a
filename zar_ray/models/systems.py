"""The published systems by name: a CLIP of open_clip's, and what the system adds to it (conf/models)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zar_ray.options.layers import conf_dir, read_yaml

CLIP = "clip"
OPTIONAL = "optional"


@dataclass(frozen=True)
class System:
    """A published system, as ``conf/models/NAME.yaml`` describes it.

    Attributes:
        name: What `--model` calls it.
        clip: The open_clip name of the CLIP it builds on.
        additions: What its architecture has beside that CLIP's.
        optional: Words of what its checkpoints may have beside these, and need not.
    """

    name: str
    clip: str
    additions: Mapping[str, Any]
    optional: tuple[str, ...] = ()


def known_systems() -> tuple[str, ...]:
    """The names of the published systems, in alphabetical order."""
    return tuple(sorted(name for name, path in known_files().items() if CLIP in read_yaml(path)))


def find_system(name: str) -> System | None:
    """The published system of a name; None where it is the name of none, as open_clip's are not."""
    path = known_files().get(name)
    content = read_yaml(path) if path is not None else {}
    if CLIP not in content:
        return None
    clip, optional = content.pop(CLIP), content.pop(OPTIONAL, ())
    return System(name, clip, content, tuple(optional))


def known_files() -> dict[str, Path]:
    """The shipped descriptions of models, by name."""
    return {path.stem: path for path in (conf_dir() / "models").glob("*.yaml")}
