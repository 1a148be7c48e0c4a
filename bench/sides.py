"""The two sides of the bench behind one call: the reference loop, and zar-ray's engine as jobs run it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from measure import PeakMemory, Stopwatch
from reference import Reference

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.base import Decision, Shared, VideoFeatures
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.packing import ImageSet, encode_packed, images_at_once
from zar_ray.models.tokens import clip_tokenizer

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one side did with some videos.

    Attributes:
        encode_seconds: Of cropping, normalising and encoding, all videos together.
        adapt_seconds: Of adaptation and decision, all videos together.
        seconds: Of everything, all videos together.
        images: Images that went through the image encoder, counted there.
        forward_tokens: Tokens that ran forward through the text tower.
        backward_tokens: Tokens that ran backward through it.
        peak_bytes: The most memory held above what was held before; None where it was not watched or the
            system does not tell.
        decisions: One a video; none where only images were encoded.
        features: One a video; none where they were given.
    """

    encode_seconds: float
    adapt_seconds: float
    seconds: float
    images: int
    forward_tokens: int
    backward_tokens: int
    peak_bytes: int | None
    decisions: tuple[Decision, ...] = ()
    features: tuple[VideoFeatures, ...] = ()


class ReferenceSide:
    """Videos one after another through the reference loop."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def run(self, videos: Sequence[PlannedVideo | VideoFeatures], adapt: bool, watch_memory: bool = True) -> Outcome:
        """Encodes videos that come as frames, and adapts to each if wanted."""
        reference, steps = self.reference, self.reference.zar.steps
        encode_seconds = adapt_seconds = 0.0
        images = 0
        decisions: list[Decision] = []
        features: list[VideoFeatures] = []
        with PeakMemory(reference.device, watch_memory) as memory:
            watch = Stopwatch(reference.device)
            for video in videos:
                if isinstance(video, PlannedVideo):
                    assert isinstance(video.frames, torch.Tensor)
                    video, encoded = reference.encode(video.frames, video.plan)
                    images += encoded
                    features.append(video)
                    encode_seconds += watch.lap()
                if adapt:
                    decisions.append(reference.adapt(video))
                    adapt_seconds += watch.lap()
        passes = len(decisions) * reference.tokens
        return Outcome(
            encode_seconds,
            adapt_seconds,
            encode_seconds + adapt_seconds,
            images,
            (steps + 1) * passes,
            steps * passes,
            memory.peak,
            tuple(decisions),
            tuple(features),
        )


class OurSide:
    """Videos together through `VideoAdapter`, or through the parts of it that are asked for.

    Args:
        model: The model, on its device.
        class_names: The K candidate classes.
        options: The run's options; the method is ZAR.

    Attributes:
        setup_seconds: What a set of classes costs once: its prompts, the untuned text features and their graph.
    """

    def __init__(self, model: ClipModel, class_names: Sequence[str], options: AdaptationOptions) -> None:
        self.model, self.options = model, options
        # once a model and once a process, not once a set of classes
        _ = model.fingerprint, clip_tokenizer()
        watch = Stopwatch(model.device)
        self.adapter = VideoAdapter(model, prompts_of([class_names], options), ("zar",), options)
        (self.classes,) = self.adapter.class_sets
        self.classes.initial_gradients(torch.zeros_like(self.classes.initial_features)[None])
        self.setup_seconds = watch.lap()

    def run(self, videos: Sequence[PlannedVideo | VideoFeatures], adapt: bool, watch_memory: bool = True) -> Outcome:
        """Encodes videos that come as frames, and adapts to all of them together if wanted.

        Raises:
            VideoError: A video could not be encoded or adapted to.
        """
        planned = [video for video in videos if isinstance(video, PlannedVideo)]
        given = [video for video in videos if isinstance(video, VideoFeatures)]
        encode_seconds = adapt_seconds = 0.0
        decisions: list[Decision] = []
        features: list[VideoFeatures] = []
        with PeakMemory(self.model.device, watch_memory) as memory, counted_images(self.model) as images:
            watch = Stopwatch(self.model.device)
            if given:
                outcomes = get_method("zar").adapt(given, self.classes, self.options.zar, Shared())
                decisions = [_or_raise(outcome) for outcome in outcomes]
            elif adapt:
                for prediction in map(_or_raise, self.adapter.predict(planned)):
                    encode_seconds += prediction.encode_seconds
                    adapt_seconds += prediction.cases[0].seconds
                    decisions.append(prediction.cases[0].decision)
                    features.append(video_features(prediction.embeddings, prediction.plan))
            else:
                sets = [ImageSet(one.frames, one.plan.images, one.plan.boxes) for one in planned]  # type: ignore[arg-type]
                at_once = images_at_once(self.options.encoder_batch, self.model.device)
                embeddings = map(_or_raise, encode_packed(self.model, sets, at_once))
                features = [video_features(of, one.plan) for of, one in zip(embeddings, planned, strict=True)]
            seconds = watch.lap()
        passes = len(decisions) * self.classes.tokens
        steps = self.options.zar.steps
        return Outcome(
            encode_seconds if adapt else seconds,
            seconds if given else adapt_seconds,
            seconds,
            images[0],
            # the first step's forward pass is the set-up's
            steps * passes,
            steps * passes,
            memory.peak,
            tuple(decisions),
            tuple(features),
        )


@contextmanager
def counted_images(model: ClipModel) -> Iterator[list[int]]:
    """Counts the images that go through a model's encoder; the list's one number grows."""
    count, encode = [0], model.encode_images

    def encode_and_count(pixels: torch.Tensor) -> torch.Tensor:
        count[0] += len(pixels)
        return encode(pixels)

    model.__dict__["encode_images"] = encode_and_count
    try:
        yield count
    finally:
        del model.__dict__["encode_images"]


def _or_raise(outcome: _T | VideoError) -> _T:
    if isinstance(outcome, VideoError):
        raise outcome
    return outcome
