"""How options are layered: from, lowest first, defaults, the benchmark's file, `--config FILE`, the command line.

The resolved options are printed at the start of a run, saved beside its results and logged, and `--config` of that
file repeats the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from zar_ray.errors import ConfigError, reason_of
from zar_ray.options.base import Options
from zar_ray.untrusted import require_plain, stand_in

_T = TypeVar("_T", bound="Options")

_MOST_VALUES = 1_000_000  # an alias stands for all that it names


def zar_home() -> Path:
    """Folder for data that zar-ray makes itself: ``$ZAR_HOME``, by default ``~/.cache/zar-ray``."""
    return Path(os.path.expanduser(os.environ.get("ZAR_HOME") or "~/.cache/zar-ray")).absolute()  # noqa: PTH111


def conf_dir() -> Path:
    """The shipped YAML files: inside the package when installed, at the top of a checkout otherwise."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: The file is missing, is not YAML or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({reason_of(error)})") from error
    if (instead := stand_in(text.encode())) is not None:
        raise ConfigError(f"{path}: {instead}")
    content = parse_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold options as `name: value` lines, not a {type(content).__name__}")
    return content


def parse_yaml(text: str, place: str) -> Any:
    """Reads YAML of plain values; messages call it `place`.

    Raises:
        ConfigError: It is none, or is nested too deep or holds too much for options.
    """
    try:
        content = yaml.safe_load(text)
        require_plain(content, _MOST_VALUES)
    # PyYAML lets through whatever is raised where it makes a value, such as a date that there is not.
    except Exception as error:
        reason = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else reason_of(error)
        raise ConfigError(f"{place}: cannot be read as YAML ({reason})") from error
    return content


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lays `over` on `base`, nested mappings key by key; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def leaves(options: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested options by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= leaves(value, f"{at}{name}.") if isinstance(value, Mapping) else {f"{at}{name}": value}
    return flat


def one_line(error: ValidationError) -> str:
    """A pydantic error as one line: each option with what is wrong with it."""
    return "; ".join(f"{'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}" for e in error.errors())


def validate(kind: type[_T], values: dict[str, Any], place: str) -> _T:
    """Builds options from plain values.

    Raises:
        ConfigError: A key is unknown or a value does not fit; the message names `place`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{place}: {one_line(error)}") from error
