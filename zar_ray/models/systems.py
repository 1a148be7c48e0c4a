"""The published systems by name: a CLIP of open_clip's, and what the system adds to it (conf/models)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zar_ray.config import conf_dir, read_yaml
from zar_ray.errors import ConfigError
from zar_ray.models.architecture import Architecture, named_architecture
from zar_ray.models.cross_frames import MESSAGE
from zar_ray.models.fusion_heads import FUSION
from zar_ray.models.learned_texts import LEARNED_TEXTS
from zar_ray.models.temporal_adapters import is_trained
from zar_ray.models.view_prompts import is_view_prompt

_CLIP = "clip"
_HEAD = f"{FUSION}."


@dataclass(frozen=True)
class System:
    """A published system, as ``conf/models/NAME.yaml`` describes it.

    Attributes:
        name: What `--model` calls it.
        clip: The open_clip name of the CLIP it builds on.
        additions: What its architecture has beside that CLIP's.
    """

    name: str
    clip: str
    additions: Mapping[str, Any]


def known_systems() -> tuple[str, ...]:
    """The names of the published systems, in alphabetical order."""
    return tuple(sorted(name for name, path in known_files().items() if _CLIP in read_yaml(path)))


def find_system(name: str) -> System | None:
    """The published system of a name; None where it is the name of none, as open_clip's are not."""
    path = known_files().get(name)
    content = read_yaml(path) if path is not None else {}
    if _CLIP not in content:
        return None
    return System(name, content.pop(_CLIP), content)


def known_files() -> dict[str, Path]:
    """The shipped descriptions of models, by name."""
    return {path.stem: path for path in (conf_dir() / "models").glob("*.yaml")}


def is_added(name: str) -> bool:
    """Whether a parameter of a CLIP is what a published system adds to it and trains, the CLIP itself being frozen.

    That is a head over frames, A5's vectors, EZ-CLIP's adapters and temporal prompts, Vita-CLIP's prompts between
    frames and context, and X-CLIP's messages.

    Args:
        name: Its name in the CLIP's state dict.
    """
    of_module = name.startswith(_HEAD) or f".{MESSAGE}" in name
    return of_module or name == LEARNED_TEXTS or is_trained(name) or is_view_prompt(name)


def read_architecture(path: Path) -> Architecture:
    """An architecture in a YAML file: open_clip's form, or the name of one under ``clip`` and what is added to it.

    Raises:
        ConfigError: The file is not a YAML mapping, or ``clip`` is not a name.
        ModelError: open_clip knows no such name.
    """
    content = read_yaml(path)
    name = content.pop(_CLIP, None)
    if name is None:
        return content
    if not isinstance(name, str):
        raise ConfigError(f"{path}: clip: must be the name of a model of open_clip's, such as ViT-B-16-quickgelu")
    return {**named_architecture(name), **content}
