"""Videos' frames to their decisions: what the batch job and `zar predict` run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from zar_ray.adaptation.base import Decision, VideoFeatures
from zar_ray.adaptation.cases import Case
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.methods import get_method
from zar_ray.config import AdaptationOptions, fingerprint, identity
from zar_ray.data.class_texts import ClassPrompts
from zar_ray.errors import VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.packing import ImageSet, encode_packed
from zar_ray.models.text import PromptedClasses
from zar_ray.video.plans import ViewPlan

# What all methods depend on, besides the class names and the weights.
_SHARED_SETTINGS = ("class_position", "precision", "seed", "views")


@dataclass(frozen=True, eq=False)
class PlannedVideo:
    """A video as an adapter takes it: its plan, with its frames or with what an encoder made of them.

    Attributes:
        plan: Its views.
        frames: uint8 (F, h, w, 3), resized, one a row of ``plan.frames``; None with embeddings.
        embeddings: float32 (I, D), not normalised, one a row of ``plan.images``; None with frames.
        class_sets: Which of the adapter's class sets it is to be classified among; None for all.

    Raises:
        ValueError: It has neither or both, or they are not the plan's.
    """

    plan: ViewPlan
    frames: np.ndarray | torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    class_sets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        plan = self.plan
        if (self.frames is None) == (self.embeddings is None):
            raise ValueError("a video has either frames or embeddings")
        wanted = (len(plan.frames), plan.height, plan.width, 3)
        if self.frames is not None and tuple(self.frames.shape) != wanted:
            raise ValueError(f"frames are of shape {tuple(self.frames.shape)}, and the plan's are {wanted}")
        if self.embeddings is not None and len(self.embeddings) != len(plan.images):
            raise ValueError(f"there are {len(self.embeddings)} embeddings for {len(plan.images)} images")

    def evaluation_only(self) -> PlannedVideo:
        """The same video with its evaluation view alone; itself, where it has no other."""
        if not len(self.plan.views):
            return self
        plan = self.plan.evaluation_only()
        if self.embeddings is not None:
            rows = torch.from_numpy(np.unique(self.plan.evaluation)).to(self.embeddings.device)
            return replace(self, plan=plan, embeddings=self.embeddings[rows])
        assert self.frames is not None
        return replace(self, plan=plan, frames=self.frames[np.flatnonzero(np.isin(self.plan.frames, plan.frames))])

    def is_of(self, case: Case) -> bool:
        """Whether it is to be classified under a case."""
        return self.class_sets is None or case.class_set in self.class_sets


@dataclass(frozen=True, eq=False)
class CasePrediction:
    """What one case says about a video.

    Attributes:
        case_id: The case.
        method: Its method's name.
        decision: The decision.
        seconds: Wall seconds of the adaptation and decision; its share where several videos were adapted to together.
    """

    case_id: str
    method: str
    decision: Decision
    seconds: float


@dataclass(frozen=True, eq=False)
class VideoPrediction:
    """What all cases say about a video.

    Attributes:
        cases: One prediction a case that the video is of, in the adapter's order.
        images_encoded: Images that went through the image encoder for it.
        views: V, views that the methods could look at.
        encode_seconds: Wall seconds of cropping and encoding; its share where images of several videos were encoded
            together.
        plan: The plan that the methods needed.
        embeddings: float32 (I, D), one a row of ``plan.images``, on the model's device.
    """

    cases: tuple[CasePrediction, ...]
    images_encoded: int
    views: int
    encode_seconds: float
    plan: ViewPlan
    embeddings: torch.Tensor


def make_cases(options: AdaptationOptions, model_fingerprint: str, prompts: Sequence[ClassPrompts]) -> tuple[Case, ...]:
    """The cases of a run: one a class set and method.

    Args:
        options: The run's options.
        model_fingerprint: The model's.
        prompts: The candidate classes' prompts, a class set each.

    Raises:
        ConfigError: A method is unknown.
    """
    values = identity(options)
    cases = []
    for class_set, of_set in enumerate(prompts):
        for name in options.method:
            settings = {key: values[key] for key in (*_SHARED_SETTINGS, *get_method(name).settings)}
            number = fingerprint([model_fingerprint, of_set.identity, name, settings])
            cases.append(Case(f"{name}-{number[:8]}", name, class_set))
    return tuple(cases)


class VideoAdapter:
    """A model with its class sets and cases; call it with a video's frames and plan.

    Args:
        model: The model, on its device.
        prompts: The candidate classes' prompts, see `prompts_of`; several class sets where a protocol has several.
        methods: Names of the methods to run.
        options: Their settings.
        cases: What to call the results; by default as `make_cases` does.

    Raises:
        ConfigError: A method is unknown, or the prompts cannot be used, or not by a method.
    """

    def __init__(
        self,
        model: ClipModel,
        prompts: Sequence[ClassPrompts],
        methods: Sequence[str],
        options: AdaptationOptions,
        cases: Sequence[Case] | None = None,
    ) -> None:
        self.model = model
        self.options = options
        if options.compile:
            model.compile_image_encoder()
        self.methods = tuple(get_method(name) for name in methods)
        chosen = options.model_copy(update={"method": tuple(methods)})
        self.cases = tuple(cases) if cases is not None else make_cases(chosen, model.fingerprint, prompts)
        self.class_sets = tuple(PromptedClasses.of(model, one, options.class_position) for one in prompts)
        for method in self.methods:
            for classes in self.class_sets if method.needs_views else ():
                classes.require_tunable(method.name)

    def __call__(self, frames: np.ndarray | torch.Tensor, plan: ViewPlan) -> VideoPrediction:
        """One video: see `predict`.

        Args:
            frames: uint8 (F, h, w, 3), resized, one a row of ``plan.frames``.
            plan: The video's views.

        Raises:
            VideoError: The encoder ran out of memory (stage ``encode``), or a method could not decide (``adapt``).
            ValueError: The frames are not the plan's.
        """
        (outcome,) = self.predict([PlannedVideo(plan, frames)])
        if isinstance(outcome, VideoError):
            raise outcome
        return outcome

    def predict(self, videos: Sequence[PlannedVideo]) -> list[VideoPrediction | VideoError]:
        """Encodes each distinct image that the methods need once, and runs every case on the features.

        Args:
            videos: The videos; their images share the encoder's passes, and their contexts the text tower's.

        Returns:
            A prediction a video, in order; an error in place of one for which the encoder ran out of memory (stage
            ``encode``) or a method could not decide (``adapt``). The others do not notice.
        """
        if not any(method.needs_views for method in self.methods):
            videos = [video.evaluation_only() for video in videos]
        embedded, encode_seconds = self._embed(videos)
        usable = {number: one for number, one in enumerate(embedded) if not isinstance(one, VideoError)}
        features = [video_features(embeddings, videos[number].plan) for number, embeddings in usable.items()]
        decided = dict(zip(usable, self._decide([videos[number] for number in usable], features), strict=True))
        outcomes: list[VideoPrediction | VideoError] = []
        for number, (video, embeddings) in enumerate(zip(videos, embedded, strict=True)):
            cases = embeddings if isinstance(embeddings, VideoError) else decided[number]
            if isinstance(cases, VideoError):
                outcomes.append(cases)
                continue
            prediction = VideoPrediction(
                cases=cases,
                images_encoded=0 if video.frames is None else len(video.plan.images),
                views=len(video.plan.views),
                encode_seconds=encode_seconds[number],
                plan=video.plan,
                embeddings=usable[number],
            )
            outcomes.append(prediction)
        return outcomes

    def _embed(self, videos: Sequence[PlannedVideo]) -> tuple[list[torch.Tensor | VideoError], list[float]]:
        """float32 (I, D) a video, or why there is none; and the seconds that each took."""
        started = time.perf_counter()
        sets = [ImageSet(one.frames, one.plan.images, one.plan.boxes) for one in videos if one.frames is not None]
        encoded = iter(encode_packed(self.model, sets, self.options.encoder_batch))
        embeddings = [
            next(encoded) if video.embeddings is None else video.embeddings.to(self.model.device) for video in videos
        ]
        image_seconds = (time.perf_counter() - started) / max(1, sum(len(one.images) for one in sets))
        return embeddings, [0.0 if one.frames is None else len(one.plan.images) * image_seconds for one in videos]

    def _decide(
        self, videos: Sequence[PlannedVideo], features: Sequence[VideoFeatures]
    ) -> list[tuple[CasePrediction, ...] | VideoError]:
        """What the cases say of each video, or why one of them says nothing."""
        said: list[list[CasePrediction | VideoError]] = [[] for _ in videos]
        for case in self.cases:
            chosen = [number for number, video in enumerate(videos) if video.is_of(case)]
            if not chosen:
                continue
            started = time.perf_counter()
            outcomes = get_method(case.method).adapt(
                [features[number] for number in chosen], self.class_sets[case.class_set], self.options
            )
            seconds = (time.perf_counter() - started) / len(chosen)
            for number, one in zip(chosen, outcomes, strict=True):
                said[number].append(
                    one if isinstance(one, VideoError) else CasePrediction(case.case_id, case.method, one, seconds)
                )
        return [_all_or_error(row) for row in said]


def _all_or_error(row: Sequence[CasePrediction | VideoError]) -> tuple[CasePrediction, ...] | VideoError:
    error = next((one for one in row if isinstance(one, VideoError)), None)
    return error or tuple(one for one in row if not isinstance(one, VideoError))
