"""Sweeps: settings of a run's options that one pass evaluates together, from ``conf/sweeps/NAME.yaml`` or a file.

What settings share is the model and the encoder's input, so they may differ in what the views are, what is read of
the classes and how the context is tuned, and in nothing that decides which pixels an image has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from zar_ray.adaptation.options import method_groups
from zar_ray.errors import ConfigError, suggestion
from zar_ray.options.base import Options, fingerprint, meaning, option
from zar_ray.options.layers import conf_dir, leaves, merge, read_yaml, validate
from zar_ray.options.places import at_home, from_home
from zar_ray.study.options import EvalConfig

DEFAULT = "default"
"""The label of the run's own setting, in sweeps that do not name it."""

_MOST = 10_000  # settings of a grid

_MAY_VARY = (
    "views",
    *method_groups(),
    "context",
    "class_position",
    "name_style",
    "template",
    "class_texts",
    "seed",
    "order",
)


class SweepSetting(Options):
    """One setting of a sweep."""

    label: str = Field(min_length=1, description="What tables call it.")
    options: dict[str, Any] = Field(description="Options of `zar eval` laid over the run's own, nested ones nested.")


class Sweep(Options):
    """What varies, and its settings: listed, or as the grid of all combinations of some options' values."""

    name: str = Field(min_length=1, description="What `zar ablate --sweep` calls it; the file's name.")
    title: str = Field(min_length=1, description="Its heading.")
    varies: tuple[str, ...] = Field(min_length=1, description="The dotted options that its settings give.")
    about: str | None = option(None, "What to know when reading its results.")
    settings: tuple[SweepSetting, ...] = Field(min_length=1, description="The settings, in the order they are shown.")

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, values: Any) -> Any:
        """Takes ``grid: {zar.lr: [0.001, 0.01], zar.steps: [1, 2]}`` for the four settings that it stands for."""
        if not isinstance(values, Mapping) or "grid" not in values:
            return values
        grid = values["grid"]
        if "settings" in values or "varies" in values:
            raise ValueError("give either a grid, or settings with what varies")
        if not isinstance(grid, Mapping) or not all(
            isinstance(name, str) and isinstance(of_one, list) and of_one for name, of_one in grid.items()
        ):
            raise ValueError("a grid is a list of values by dotted option, as zar.lr: [0.001, 0.01]")
        if (count := math.prod(map(len, grid.values()))) > _MOST:
            raise ValueError(f"a grid of {count:,} settings is too large for one pass, which has {_MOST:,} at most")
        settings = []
        for combined in itertools.product(*grid.values()):
            words, options = [], {}
            for dotted, value in zip(grid, combined, strict=True):
                words.append(f"{dotted.rpartition('.')[2].replace('_', ' ')} {_shown(value)}")
                for name in reversed(dotted.split(".")):
                    value = {name: value}
                options = merge(options, value)
            settings.append({"label": ", ".join(words), "options": options})
        rest = {name: value for name, value in values.items() if name != "grid"}
        return {**rest, "varies": tuple(grid), "settings": settings}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        labels = [setting.label for setting in self.settings]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f'two settings are called "{label}"')
        for setting in self.settings:
            for name in leaves(setting.options):
                if name.partition(".")[0] not in _MAY_VARY:
                    raise ValueError(
                        f"{setting.label}: {name} cannot vary within one pass, only {', '.join(_MAY_VARY)} can; "
                        "run `zar eval` once for each of its values"
                    )
                if name not in self.varies:
                    raise ValueError(f"{setting.label}: gives {name}, which is not among what varies")
        return self


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def known_sweeps() -> tuple[str, ...]:
    """The names of the shipped sweeps, in alphabetical order."""
    return tuple(sorted(path.stem for path in (conf_dir() / "sweeps").glob("*.yaml")))


def load_sweep(name: str) -> Sweep:
    """Reads a sweep.

    Args:
        name: A shipped sweep's name, or a file (.yaml).

    Raises:
        ConfigError: There is no such sweep, or its file is wrong; one line.
    """
    path = from_home(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in known_sweeps():
            near = suggestion(name, known_sweeps())
            raise ConfigError(f"--sweep {name}: no sweep has this name{near}; a file of one's own ends in .yaml")
        path = conf_dir() / "sweeps" / f"{name}.yaml"
    return validate(Sweep, {"name": path.stem, **read_yaml(path)}, str(path))


@dataclass(frozen=True)
class PlacedSweep:
    """A sweep with the places of its settings among all those of a pass.

    Attributes:
        sweep: The sweep.
        places: The place of each of its settings; 0 is the run's own.
    """

    sweep: Sweep
    places: tuple[int, ...]


def place_settings(
    sweeps: Sequence[Sweep], options: EvalConfig
) -> tuple[tuple[EvalConfig, ...], tuple[PlacedSweep, ...]]:
    """The settings of several sweeps, each once however many of them name it.

    Args:
        sweeps: The sweeps.
        options: The run's own options, which are the first setting, named by a sweep or not.

    Raises:
        ConfigError: An option is unknown or a value does not fit; one line.
    """
    distinct: dict[str, EvalConfig] = {fingerprint(meaning(options)): options}
    placed = []
    for sweep in sweeps:
        places = []
        for setting in sweep.settings:
            one = _laid_over(options, setting, sweep.name)
            key = fingerprint(meaning(one))
            distinct.setdefault(key, one)
            places.append(list(distinct).index(key))
        placed.append(PlacedSweep(sweep, tuple(places)))
    return tuple(distinct.values()), tuple(placed)


def _laid_over(options: EvalConfig, setting: SweepSetting, sweep: str) -> EvalConfig:
    # Only what varies is built anew: plain values of all options would lack what they do not show, such as passwords.
    given = {name: value for name, value in setting.options.items() if name in _MAY_VARY}
    below = options.model_dump(mode="json", include=set(given))
    built = validate(type(options), merge(below, given), f"sweep {sweep}, {setting.label}")
    values = {name: getattr(built, name) for name in given}
    if values.get("class_texts") is not None:
        # Workers have working folders of their own.
        values["class_texts"] = at_home(values["class_texts"])
    return options.model_copy(update=values)
