"""Models in Python: `zar_ray.load`, and labels ranked for videos as `zar predict` ranks them."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from av.container import InputContainer

from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.predict import Source, predict
from zar_ray.api.predictions import Predictions
from zar_ray.api.told import plain
from zar_ray.data.datasets import candidate_labels
from zar_ray.data.finding import expanded
from zar_ray.errors import ConfigError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model, weights_named
from zar_ray.models.options import ModelOptions
from zar_ray.models.text import remark_on_words
from zar_ray.options.base import require_distinct
from zar_ray.options.layers import validate
from zar_ray.video.decoding import GivenFrames
from zar_ray.video.sandbox import DecoderProcess

Video = str | os.PathLike[str] | np.ndarray | InputContainer
"""A file's path or URI, its frames (uint8 (frames, height, width, 3), RGB), or a container that PyAV has opened."""

_SAID_BY_LOAD = ("model", "pretrained", "checkpoint", "precision", "device")
_SAID_OTHERWISE = ("videos", "labels", "method", "seeds", "top_k", "seed", "json_lines", "server", "token")
_SAID_OTHERWISE += ("listed", "csv", "at_once")


def load(model: str | os.PathLike[str] | None = None, **options: Any) -> Model:
    """Loads a model.

    Args:
        model: A checkpoint's file or URI, an open_clip ``NAME:TAG``, a NAME (of the tag ``openai``, unless `pretrained`
            says another), a published system's name, ``hf-hub:ORG/NAME`` or ``local-dir:PATH``; by default OpenAI's
            CLIP ViT-B/16.
        options: Options of the model as `zar predict` has them, such as ``device="cuda"``, ``precision="bf16"`` or
            ``pretrained="random"``.

    Raises:
        ConfigError: There is no such option, or its value does not fit.
        ModelError: The weights cannot be found, fetched or read; or the device is not there.
    """
    values = plain(ModelOptions, options, "load")
    if model is not None:
        default = ModelOptions.model_fields["pretrained"].default
        named = weights_named(model, values.get("pretrained", default))
        # What is said besides, such as the file of a named architecture's weights, stands.
        values = {**{name: value for name, value in named.items() if value is not None}, **values}
    return Model(load_model(validate(ModelOptions, values, "load")), values)


class Model:
    """A loaded model; `load` makes it.

    The process that decodes its files starts with the first one and ends with this object or `close`.
    """

    def __init__(self, loaded: ClipModel, told: dict[str, Any]) -> None:
        self._loaded, self._told = loaded, told
        self._decoders: dict[tuple[str, str], DecoderProcess] = {}

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.name}, {self.fingerprint}{', random weights' if self.random_weights else ''})"

    @property
    def name(self) -> str:
        """What results call it."""
        return self._loaded.name

    @property
    def fingerprint(self) -> str:
        """A short hash of its weights."""
        return self._loaded.fingerprint

    @property
    def random_weights(self) -> bool:
        """Whether it is untrained, so that its scores say nothing."""
        return self._loaded.random_weights

    def predict(
        self,
        videos: Video | Iterable[Video],
        labels: str | Sequence[str],
        *,
        method: str | Sequence[str] = "zar",
        seeds: int | Sequence[int] = 0,
        top_k: int | None = None,
        fps: float | Sequence[float] | None = None,
        names: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Predictions:
        """Ranks labels for each video, before and after adapting to it, each for itself.

        The numbers are those of `zar predict`. They depend on the name by which views are drawn, a file's own without
        its folders: frames in memory give the numbers of their file under its name.

        Args:
            videos: One or several, of any kinds: a file's path or URI, a folder of files or a pattern, as `zar predict`
                takes them; frames, uint8 (frames, height, width, 3),
                RGB and upright; or a container that PyAV has opened, whose file is read from its start.
            labels: The candidate labels; a file with one a line, ``"a,b,c"``, or a benchmark's name.
            method: The test-time method, or several over the same views.
            seeds: The seed of the views; of several the scores are means, with their standard deviation.
            top_k: How many labels to keep; by default all.
            fps: Frames a second, of all arrays or a value a video.
            names: What videos are called, one each; by default a file's name, and ``array1`` for the first video if it
                is an array.
            options: Further options of `zar predict`, nested ones as dictionaries: ``views={"frames": 8}``,
                ``zar={"lr": 0.01}``, ``context="a video of a"``.

        Returns:
            A ranking a video and method, in order. A video that cannot be used has its error in place of one.

        Raises:
            ConfigError: An option, a label, an array or a method cannot be used.
            ModelError: A method cannot serve the model.
        """
        for name in options:
            if name in _SAID_BY_LOAD:
                raise ConfigError(f"predict: {name} is said when the model is loaded: zar_ray.load(..., {name}=...)")
            if name in _SAID_OTHERWISE:
                raise ConfigError(f"predict: {name} is no option of Model.predict; see its arguments")
        ranked = candidate_labels(labels)
        own: dict[str, Any] = {"method": method, "seeds": seeds, "top_k": len(ranked) if top_k is None else top_k}
        chosen = validate(
            PredictConfig, {**self._told, **plain(PredictConfig, {**options, **own}, "predict")}, "predict"
        )
        require_distinct("predict: seeds", chosen.seeds, "a seed")
        for one in chosen.method:
            get_method(one)
        sources = _sources(videos, fps, names)
        if (remark := remark_on_words(self._loaded, chosen)) is not None:
            warnings.warn(f"{self.name}: {remark}", stacklevel=2)
        rankings = predict(self._loaded, ranked, chosen, self._decoder(chosen), sources)
        return Predictions(rankings, random_weights=self.random_weights)

    def close(self) -> None:
        """Ends the process that decodes; the next file starts another."""
        while self._decoders:
            self._decoders.popitem()[1].close()

    def _decoder(self, options: PredictConfig) -> DecoderProcess:
        key = (options.resize, options.decoder)
        if key not in self._decoders:
            decoder = DecoderProcess(idle=True, resizer=options.resize, decoder=options.decoder)
            self._decoders[key] = decoder
            weakref.finalize(self, decoder.close)
        return self._decoders[key]


def _sources(
    videos: Video | Iterable[Video], fps: float | Sequence[float] | None, names: str | Sequence[str] | None
) -> list[Source]:
    single = isinstance(videos, str | os.PathLike | np.ndarray | InputContainer)
    given: list[Any] = [videos] if single else list(videos)
    several = [one for video in given for one in (expanded(os.fspath(video)) if _is_place(video) else (video,))]
    if not several:
        raise ConfigError("predict: give the videos to look at")
    rates = _one_each(fps, several, "fps", (int, float, np.number))
    called = _one_each(names, several, "names", (str,))
    return [
        _source(video, number, rate, name)
        for number, (video, rate, name) in enumerate(zip(several, rates, called, strict=True), start=1)
    ]


def _is_place(video: Any) -> bool:
    return isinstance(video, str | os.PathLike)


def _one_each(given: Any, videos: Sequence[Any], what: str, single: tuple[type, ...]) -> list[Any]:
    if given is None or (isinstance(given, single) and (what == "fps" or len(videos) == 1)):
        return [given] * len(videos)
    values = [given] if isinstance(given, single) else list(given)
    if len(values) != len(videos):
        raise ConfigError(f"predict: {len(values)} {what} for {len(videos)} videos; give one each")
    return values


def _source(video: Any, number: int, fps: float | None, name: str | None) -> Source:
    if _is_place(video):
        source = Source.of_file(os.fspath(video))
        return source if name is None else Source(source.shown, name, source.content)
    if isinstance(video, InputContainer):
        place = video.name if video.file is None else getattr(video.file.file, "name", None)
        own = name or (PurePath(place).name if isinstance(place, str) else f"container{number}")
        # Decoded as every file is, and not here: what it holds may crash a decoder.
        return Source(own, own, video.name if video.file is None else _content(video, number))
    if not isinstance(video, np.ndarray):
        kind = type(video).__name__
        raise ConfigError(f"predict: video {number} is a {kind}; give a path, frames as an array, or PyAV's container")
    if fps is None:
        raise ConfigError(f"predict: video {number} is an array; give its frames a second with fps=")
    try:
        return Source(name or f"array{number}", name or f"array{number}", GivenFrames(video, float(fps)))
    except VideoError as error:
        raise ConfigError(f"predict: video {number} is {error}") from error


def _content(video: InputContainer, number: int) -> np.ndarray:
    """The bytes, uint8 (n,), of the file that a container was opened from, which stays where it is read."""
    file: Any = video.file
    try:
        place = file.file.tell()
        file.file.seek(0)
        content = file.file.read()
        file.file.seek(place)
    except (AttributeError, OSError, ValueError) as error:
        raise ConfigError(f"predict: video {number}: its file cannot be read from the start ({error})") from error
    return np.frombuffer(content, np.uint8)
