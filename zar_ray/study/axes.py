"""The axes of a study, multiplied: models (and shares of mixtures of two), corruptions, sweeps, and seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zar_ray.errors import ConfigError, ModelError, RunError
from zar_ray.models.loading import ENDINGS, weights_named
from zar_ray.models.merging import merge_checkpoints
from zar_ray.options.base import fingerprint, require_distinct
from zar_ray.options.places import AnyFile, at_home, file_of, from_home
from zar_ray.results.case import CLEAN
from zar_ray.results.study_record import CORRUPTION, label_of
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig
from zar_ray.study.sweeps import DEFAULT, PlacedSweep, load_sweep, place_settings
from zar_ray.video.corrupting import require_corruptions
from zar_ray.video.corruptions import Corruption

_LONGEST = 200  # characters of a name: file systems have room for 255 bytes, and endings follow


@dataclass(frozen=True)
class Mixture:
    """A checkpoint that is made of two (WiSE-FT: Wortsman et al., CVPR 2022, section 4).

    Attributes:
        first: The model that share 0 is, as `zar_ray.models.merging.merge_checkpoints` takes it.
        second: The checkpoint that share 1 is.
        share: Of the second.
        name: What its file is called.
    """

    first: str
    second: AnyFile
    share: float
    name: str


def place_of(mixture: Mixture, output: str) -> AnyFile:
    """Where a mixture's file lies below a run's output."""
    return file_of(Storage(output).child("checkpoints").path(mixture.name))


def write_mixture(mixture: Mixture, target: AnyFile) -> None:
    """Writes a mixture in place of one that an earlier session left: it is the same, or its sources have changed.

    Raises:
        ModelError: The two checkpoints cannot be mixed.
        RunError: It cannot be written.
    """
    # What the second checkpoint's pixels are, which was trained last, the mixtures see too.
    sources, shares = (mixture.first, mixture.second), (1 - mixture.share, mixture.share)
    try:
        merge_checkpoints(sources, shares, target, pixels_of=mixture.second, replace=True)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror or error})") from error


@dataclass(frozen=True)
class ModelChoice:
    """One model of a study, as it is shown the videos.

    Attributes:
        coordinates: Its label on each of the axes of models, and on that of corruptions.
        update: The options that name it, and what is done to the frames that it sees.
        mixture: What it is made of, where it is made of two.
    """

    coordinates: Mapping[str, str]
    update: Mapping[str, Any]
    mixture: Mixture | None = None

    @property
    def label(self) -> str:
        """What it is, in a line; not how it is shown the videos."""
        return label_of({axis: one for axis, one in self.coordinates.items() if axis != CORRUPTION})


@dataclass(frozen=True, eq=False)
class SettingChoice:
    """One setting of a study, at one seed.

    Attributes:
        coordinates: Its label as a setting, and its seed.
        options: The study's options with what it varies.
        place: Its place among the settings, whatever the seed; 0 is the study's own.
    """

    coordinates: Mapping[str, str]
    options: EvalConfig
    place: int

    @property
    def label(self) -> str:
        """Both in a line."""
        return label_of(self.coordinates)


@dataclass(frozen=True, eq=False)
class Axes:
    """What a study multiplies.

    Attributes:
        models: The models.
        settings: The settings, each at every seed; seeds vary fastest.
        sweeps: The sweeps, with their settings' places.
    """

    models: tuple[ModelChoice, ...]
    settings: tuple[SettingChoice, ...]
    sweeps: tuple[PlacedSweep, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The axes that vary, in the order of cells' coordinates."""
        every = [{**one.coordinates, **other.coordinates} for one in self.models for other in self.settings]
        return tuple(axis for axis in every[0] if len({one[axis] for one in every}) > 1)


def axes_of(options: EvalConfig, models: Sequence[ModelChoice] = ()) -> Axes:
    """All axes of a study; `models` are its models where the options do not name them.

    Raises:
        ConfigError: A label is given twice on an axis, or an option contradicts an axis.
        ModelError: A checkpoint to mix with is not there.
    """
    settings, sweeps = _settings(options)
    return Axes(_corrupted(options, _mixed(options, tuple(models) or _models(options))), settings, sweeps)


def _models(options: EvalConfig) -> tuple[ModelChoice, ...]:
    if not options.models:
        own = options.checkpoint.stem if options.checkpoint else f"{options.model}-{options.pretrained}"
        return (ModelChoice({"model": own}, {}),)
    require_distinct("--model", options.models, "a model")
    if options.checkpoint is not None:
        given = " ".join(options.models)
        raise ConfigError(f"--checkpoint {options.checkpoint}: is one model more; name its file among --model {given}")
    updates = [weights_named(one, options.pretrained) for one in options.models]
    labels = [
        update["checkpoint"].stem if update["checkpoint"] else one
        for one, update in zip(options.models, updates, strict=True)
    ]
    return tuple(
        # Two files of one name in different folders are told by their paths.
        ModelChoice({"model": label if labels.count(label) == 1 else one}, {**update, "models": ()})
        for one, update, label in zip(options.models, updates, labels, strict=True)
    )


def _mixed(options: EvalConfig, models: tuple[ModelChoice, ...]) -> tuple[ModelChoice, ...]:
    """The models, each mixed with another in every share where the options say so."""
    if options.interpolate_with is None and not options.alphas:
        return models
    if options.interpolate_with is None:
        raise ConfigError("--alphas: name the checkpoint to interpolate with, --interpolate-with FILE")
    if not options.alphas:
        raise ConfigError("--interpolate-with: give its shares, such as --alphas 0 0.25 0.5 0.75 1")
    shares = [f"{alpha:g}" for alpha in options.alphas]
    require_distinct("--alphas", shares, "an alpha")
    second = at_home(options.interpolate_with)
    mixtures = []
    for one in models:
        named = options.model_copy(update=dict(one.update))
        for file in (named.checkpoint, second):
            if file is not None and not from_home(file).is_file():
                raise ModelError(f"{file}: no such checkpoint file")
        first = str(at_home(named.checkpoint)) if named.checkpoint else f"{named.model}:{named.pretrained}"
        for alpha, text in zip(options.alphas, shares, strict=True):
            name = plain_name(f"{one.label}+{second.stem}-alpha{text}") + ENDINGS[0]
            mixtures.append(
                replace(
                    one,
                    coordinates={**one.coordinates, "share": text},
                    mixture=Mixture(first, second, alpha, name),
                )
            )
    return tuple(mixtures)


def _corrupted(options: EvalConfig, models: tuple[ModelChoice, ...]) -> tuple[ModelChoice, ...]:
    """The models, each shown every corruption that the options name."""
    corruptions = [Corruption.parse(one) for one in options.corruption] or [None]
    require_corruptions(corruptions)
    labels = [CLEAN if one is None else str(one) for one in corruptions]
    require_distinct("--corruption", labels, "a corruption")
    if options.continual and len(corruptions) < 2:
        raise ConfigError("--continual: name the corruptions that follow each other, --corruption clean rain:3 h265:3")
    return tuple(
        replace(
            model,
            coordinates={**model.coordinates, CORRUPTION: label},
            update={**model.update, "corruption": _shown(options, place)},
        )
        for model in models
        for place, label in enumerate(labels)
    )


def _shown(options: EvalConfig, place: int) -> tuple[str, ...]:
    """What a cell is shown: one corruption, none for `CLEAN`; or where they follow each other all up to it."""
    if options.continual:
        return options.corruption[: place + 1]
    return tuple(one for one in options.corruption[place : place + 1] if one != CLEAN)


def plain_name(text: str) -> str:
    """A label as a file or folder may be called; a long one is cut, and ends with a hash of all of it."""
    plain = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text)
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 13]}-{fingerprint(text)}"


def _settings(options: EvalConfig) -> tuple[tuple[SettingChoice, ...], tuple[PlacedSweep, ...]]:
    require_distinct("--sweep", options.sweep, "a sweep")
    seeds = options.seeds or (options.seed,)
    require_distinct("--seeds", seeds, "a seed")
    loaded = [load_sweep(name) for name in options.sweep]
    if options.seeds and (of_seed := next((one.name for one in loaded if "seed" in one.varies), None)):
        raise ConfigError(f"--seeds: sweep {of_seed} varies the seed already; leave one of them out")
    distinct, sweeps = place_settings(loaded, options)
    # What each setting is called first; with several sweeps, beside the sweep's name where two share a label.
    labels: dict[int, str] = {}
    for placed in sweeps:
        for setting, place in zip(placed.sweep.settings, placed.places, strict=True):
            if place not in labels:
                taken = setting.label in labels.values()
                labels[place] = f"{placed.sweep.name} {setting.label}" if taken else setting.label
    settings = tuple(
        SettingChoice(
            {"setting": labels.get(place, DEFAULT), "seed": str(seed)},
            one.model_copy(update={"seed": seed}) if options.seeds else one,
            place,
        )
        for place, one in enumerate(distinct)
        for seed in (seeds if options.seeds else (one.seed,))
    )
    return settings, sweeps
