"""Videos' frames to their decisions: what the batch job and `zar predict` run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from zar_ray.adaptation.base import Decision, Fusion, Outcome, Shared, Stream, VideoFeatures, VideoPixels, decisions
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.memory import PeakMemory
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions, Setting
from zar_ray.data.class_texts import ClassPrompts
from zar_ray.errors import ModelError, NoRoomError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.device_faults import watched, within_memory
from zar_ray.models.devices import require_compiler
from zar_ray.models.fitting import MORE_MEMORY
from zar_ray.models.options import ClassPosition
from zar_ray.models.packing import ImageSet, encode_packed, images_at_once
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import fingerprint, meaning
from zar_ray.results.case import Case
from zar_ray.video.plans import ViewPlan, by_view, unite

# What all methods depend on, besides the class names and the weights.
_SHARED_SETTINGS = ("class_position", "precision", "seed", "views")
_CORRUPTED = ("corruption", "corruption_seed")


@dataclass(frozen=True, eq=False)
class PlannedVideo:
    """A video as an adapter takes it: its plan, with its frames or with what an encoder made of them.

    Attributes:
        plan: Its views.
        frames: uint8 (F, h, w, 3), resized, one a row of ``plan.frames``; None with embeddings.
        embeddings: float32 (I, D), not normalised, one a row of ``plan.images``; None with frames.
        class_sets: Which of the adapter's class sets it is to be classified among; None for all.
        further: Its views under the adapter's further settings, over the same images as `plan` (`unite`).
        video_id: What keys its random draws, besides the seed.

    Raises:
        ValueError: It has neither or both, or they are not the plan's; or a further plan is of other images.
    """

    plan: ViewPlan
    frames: np.ndarray | torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    class_sets: tuple[int, ...] | None = None
    further: tuple[ViewPlan, ...] = ()
    video_id: str = ""

    def __post_init__(self) -> None:
        plan = self.plan
        if not all(one.images is plan.images for one in self.further):
            raise ValueError("the plans of one video are over different images; unite them")
        if (self.frames is None) == (self.embeddings is None):
            raise ValueError("a video has either frames or embeddings")
        wanted = (len(plan.frames), plan.height, plan.width, 3)
        if self.frames is not None and tuple(self.frames.shape) != wanted:
            raise ValueError(f"frames are of shape {tuple(self.frames.shape)}, and the plan's are {wanted}")
        if self.embeddings is not None and len(self.embeddings) != len(plan.images):
            raise ValueError(f"there are {len(self.embeddings)} embeddings for {len(plan.images)} images")

    @property
    def plans(self) -> tuple[ViewPlan, ...]:
        """Its plan under each of the adapter's settings."""
        return (self.plan, *self.further)

    def evaluation_only(self) -> PlannedVideo:
        """The same video with its evaluation view alone, that of every setting; itself, where it has no other."""
        if not any(len(plan.views) for plan in self.plans):
            return self
        plan, *further = unite([plan.evaluation_only() for plan in self.plans])
        if self.embeddings is not None:
            rows = np.unique(np.concatenate([one.evaluation.ravel() for one in self.plans]))
            kept = self.embeddings[torch.from_numpy(rows).to(self.embeddings.device)]
            return replace(self, plan=plan, further=tuple(further), embeddings=kept)
        assert self.frames is not None
        frames = self.frames[np.flatnonzero(np.isin(self.plan.frames, plan.frames))]
        return replace(self, plan=plan, further=tuple(further), frames=frames)

    def by_view(self) -> PlannedVideo:
        """The same video with the images of each view by themselves, see `zar_ray.video.plans.by_view`.

        Raises:
            ValueError: It has embeddings, which are of frames by themselves.
        """
        if self.embeddings is not None:
            raise ValueError("a model that encodes views as wholes takes frames, and the video has embeddings")
        plan, *further = by_view(self.plans)
        return replace(self, plan=plan, further=tuple(further))


@dataclass(frozen=True, eq=False)
class CasePrediction:
    """What one case says about a video.

    Attributes:
        case_id: The case.
        method: Its method's name.
        decision: The decision.
        seconds: Wall seconds of the adaptation and decision; its share where several videos were adapted to together.
        whole_seconds: These and the seconds that encoding its images took: what the case by itself costs.
        peak_memory: The most bytes in use while the block's images were encoded or the case was adapted to; see
            `PeakMemory`.
        images: Distinct images of the views that the method looks at under the case's setting, and those that it
            encoded itself.
        text_tokens: Tokens of the contexts that it put through the text tower; its share where several videos were
            adapted to together.
        gradient_tokens: Tokens that its gradients went back through there.
    """

    case_id: str
    method: str
    decision: Decision
    seconds: float
    whole_seconds: float
    peak_memory: int | None
    images: int
    text_tokens: int
    gradient_tokens: int


@dataclass(frozen=True, eq=False)
class VideoPrediction:
    """What all cases say about a video.

    Attributes:
        cases: One prediction a case that the video is of, in the adapter's order.
        failures: Settings that cannot decide about it, with the reason; `cases` holds none of theirs.
        images_encoded: Images that went through the image encoder for it, those that methods encoded included.
        views: V, views that the methods could look at under the first setting.
        encode_seconds: Wall seconds of cropping and encoding; its share where images of several videos were encoded
            together.
        plan: The plan that the methods needed under the first setting; its images are those of all, of whole views
            after one another where the model encodes views as wholes.
        embeddings: float32 (I, D), one a row of ``plan.images``, on the model's device.
    """

    cases: tuple[CasePrediction, ...]
    failures: Mapping[int, VideoError]
    images_encoded: int
    views: int
    encode_seconds: float
    plan: ViewPlan
    embeddings: torch.Tensor


def make_cases(
    options: AdaptationOptions,
    model_fingerprint: str,
    prompts: Sequence[ClassPrompts],
    setting: int = 0,
    model: int = 0,
) -> tuple[Case, ...]:
    """The cases of a run, or of one setting and model of a study: one a class set and method.

    A case's id depends on its own method's options, and on no other's; nor on the numbers of its setting and model. The
    order of the videos, where the options have one, is part of streams' ids alone.

    Raises:
        ConfigError: A method is unknown.
    """
    values = meaning(options)
    corrupted = _CORRUPTED if values.get("corruption") else ()
    shared = {key: values[key] for key in (*_SHARED_SETTINGS, *corrupted)}
    cases = []
    for class_set, of_set in enumerate(prompts):
        for name in options.method:
            method = get_method(name)
            own = {name: values[name]} if method.options is not None else {}
            if "order" in values and method.is_stream(options.own(name)):
                own["order"] = values["order"]
            number = fingerprint([model_fingerprint, of_set.identity, name, {**shared, **own}])
            cases.append(Case(f"{name}-{number[:8]}", name, class_set, setting, model))
    return tuple(cases)


class VideoAdapter:
    """A model with its class sets and cases; call it with a video's frames and plan.

    Args:
        model: The model, on its device.
        prompts: The candidate classes' prompts, see `prompts_of`; several class sets where a protocol has several.
        methods: Names of the methods to run.
        options: Their settings.
        cases: What to call the results; by default as `make_cases` does.
        further: Further settings that `cases` are under, numbered from 1: `options` and `prompts` are number 0.
        videos: How many videos each class set's streams will be given at most, where that is known.
        classes_of: Where prompts come from under the model, such as a cache of them; by default they are made here.

    Stream methods remember, under each case, the videos that they were given; `stream_state` is what to save.

    Raises:
        ConfigError: A method is unknown, the prompts cannot be used, or not by a method, or the model reads views of
            another number of frames.
        ModelError: A method cannot serve the model, or its encoder is to be compiled where nothing can be.
    """

    def __init__(
        self,
        model: ClipModel,
        prompts: Sequence[ClassPrompts],
        methods: Sequence[str],
        options: AdaptationOptions,
        cases: Sequence[Case] | None = None,
        further: Sequence[Setting] = (),
        videos: Sequence[int] = (),
        classes_of: Callable[[ClassPrompts, ClassPosition], PromptedClasses] | None = None,
    ) -> None:
        classes_of = cache(partial(PromptedClasses.of, model) if classes_of is None else classes_of)
        self.model = model
        self.options = options
        if options.compile and not model.compiled:
            require_compiler(model.device)
            model.compile_image_encoder()
        self.methods = tuple(get_method(name) for name in methods)
        chosen = options.model_copy(update={"method": tuple(methods)})
        self.cases = tuple(cases) if cases is not None else make_cases(chosen, model.fingerprint, prompts)
        self._settings = (Setting(options, tuple(prompts), tuple(videos)), *further)
        for of in self._settings:
            if any(method.needs_views for method in self.methods):
                model.require_frames(of.options.views.frames, "--views.frames")
            model.require_frames(of.options.views.eval_frames, "--views.eval-frames")
        # By setting and class set; what settings have in common is one and the same.
        self._classes = tuple(
            tuple(classes_of(one, of.options.class_position) for one in of.prompts) for of in self._settings
        )
        self.class_sets = self._classes[0]
        for method in self.methods:
            for setting in self._settings:
                reason = method.unfit(model, setting.options.own(method.name))
                if reason is not None:
                    way_out = f"leave --method {method.name} out"
                    raise ModelError(f"{model.name}: {method.name} cannot serve it: {reason}; {way_out}")
            for classes in chain(*self._classes) if method.updates == "context" else ():
                classes.require_tunable(method.name)
        self._memory = PeakMemory(model.device)
        self._streams: dict[str, Stream] = {}
        for case in self.cases:
            method, (own, shared) = get_method(case.method), self._told(case)
            if method.open_stream is not None and method.is_stream(own):
                classes = self._classes[case.setting][case.class_set]
                self._streams[case.case_id] = method.open_stream(classes, own, shared)

    def _told(self, case: Case) -> tuple[Any, Shared]:
        """What a case's method is told: its own options, and what all are."""
        setting = self._settings[case.setting]
        options, at_once = setting.options, images_at_once(setting.options.encoder_batch, self.model.device)
        videos = setting.videos[case.class_set] if setting.videos else None
        return options.own(case.method), Shared(options.seed, at_once, videos)

    def stream_state(self) -> dict[str, torch.Tensor]:
        """What stream methods remember of the videos so far: tensors on the CPU, named ``CASE_ID/NAME``."""
        return {
            f"{case_id}/{name}": value.detach().cpu().contiguous()
            for case_id, stream in self._streams.items()
            for name, value in stream.state().items()
        }

    def restore_streams(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from what `stream_state` gave, in an adapter of the same cases; a KeyError where one is lacking."""
        for case_id, stream in self._streams.items():
            prefix = f"{case_id}/"
            stream.restore({name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)})

    def __call__(self, frames: np.ndarray | torch.Tensor, plan: ViewPlan, video_id: str = "") -> VideoPrediction:
        """One video: see `PlannedVideo` and `predict`.

        Raises:
            VideoError: The encoder ran out of memory (stage ``encode``), or a method could not decide (``adapt``).
            ValueError: The frames are not the plan's.
        """
        (outcome,) = self.predict([PlannedVideo(plan, frames, video_id=video_id)])
        if isinstance(outcome, VideoError):
            raise outcome
        return outcome

    def predict(self, videos: Sequence[PlannedVideo]) -> list[VideoPrediction | VideoError]:
        """Encodes each distinct image that the methods need once, and runs every case on the features.

        The videos' images share the encoder's passes, and their contexts the text tower's.

        Returns:
            A prediction a video, in order; an error in place of one for which the encoder ran out of memory (stage
            ``encode``) or a method could not decide (``adapt``). The others do not notice.

        Raises:
            DeviceLostError: The model's device is lost.
        """
        with watched(self.model.device):
            return self._predict(videos)

    def _predict(self, videos: Sequence[PlannedVideo]) -> list[VideoPrediction | VideoError]:
        if not any(method.needs_views for method in self.methods):
            videos = [video.evaluation_only() for video in videos]
        if not self.model.frame_independent:
            videos = [video.by_view() for video in videos]
        self._memory.begin()
        encoded = self._encode(videos)
        encode_peak = self._memory.peak()
        decided = iter(self._decide([one for one in encoded if isinstance(one, _Encoded)], encode_peak))
        return [next(decided) if isinstance(one, _Encoded) else one for one in encoded]

    def _encode(self, videos: Sequence[PlannedVideo]) -> list[_Encoded | VideoError]:
        """The videos with embeddings, or why there are none; halves of them by themselves where memory runs out."""
        encoded = within_memory(partial(self._encode_together, videos))
        if encoded is not None:
            return encoded
        if len(videos) == 1:
            return [NoRoomError(f"out of memory with one video's embeddings; {MORE_MEMORY}", stage="encode")]
        half = len(videos) // 2
        return [*self._encode(videos[:half]), *self._encode(videos[half:])]

    def _encode_together(self, videos: Sequence[PlannedVideo]) -> list[_Encoded | VideoError]:
        started = time.perf_counter()
        sets = [ImageSet(one.frames, one.plan.images, one.plan.boxes) for one in videos if one.frames is not None]
        at_once = images_at_once(self.options.encoder_batch, self.model.device)
        with self.model.unchanged():
            made = iter(encode_packed(self.model, sets, at_once))
        embeddings = [
            next(made) if video.embeddings is None else video.embeddings.to(self.model.device) for video in videos
        ]
        image_seconds = (time.perf_counter() - started) / max(1, sum(len(one.images) for one in sets))
        return [
            one
            if isinstance(one, VideoError)
            else _Encoded(self.model, video, one, 0.0 if video.frames is None else image_seconds)
            for video, one in zip(videos, embeddings, strict=True)
        ]

    def _decide(self, videos: Sequence[_Encoded], encode_peak: int | None) -> list[VideoPrediction | VideoError]:
        """What the cases say of each video, but those of settings under which one cannot decide."""
        for case in self.cases:
            chosen = [one for one in videos if one.video.class_sets is None or case.class_set in one.video.class_sets]
            if not chosen:
                continue
            method, counted = get_method(case.method), self._classes[case.setting][case.class_set].counted
            self._memory.begin()
            known = replace(counted)
            started = time.perf_counter()
            outcomes = self._outcomes(case, chosen)
            seconds = (time.perf_counter() - started) / len(chosen)
            # Every context has as many tokens, and methods tune as many of each video's.
            decided = max(1, sum(isinstance(one, Decision) for one in outcomes))
            tokens = [(getattr(counted, way) - getattr(known, way)) // decided for way in ("forward", "backward")]
            peaks = [peak for peak in (encode_peak, self._memory.peak()) if peak is not None]
            for one, outcome in zip(chosen, outcomes, strict=True):
                if isinstance(outcome, VideoError):
                    one.failures.setdefault(case.setting, outcome)
                    continue
                images = one.video.plans[case.setting].count_images(with_views=method.needs_views)
                prediction = CasePrediction(
                    case.case_id,
                    case.method,
                    outcome,
                    seconds,
                    seconds + images * one.image_seconds,
                    max(peaks, default=None),
                    images + outcome.encoded,
                    *tokens,
                )
                one.said.append((case.setting, prediction))
        return [one.prediction() for one in videos]

    def _outcomes(self, case: Case, videos: Sequence[_Encoded]) -> list[Outcome]:
        """What one case says of each video; where there is not enough memory, of halves of them by themselves."""
        if case.case_id in self._streams and len(videos) > 1:
            # Each is seen once.
            return [outcome for one in videos for outcome in self._outcomes(case, [one])]
        outcomes = within_memory(partial(self._together, case, videos))
        if outcomes is not None:
            return outcomes
        if len(videos) == 1:
            classes = self._classes[case.setting][case.class_set]
            what = f"out of memory in {case.method} over {len(classes)} classes"
            return [NoRoomError(f"{what}; {MORE_MEMORY}", stage="adapt")]
        half = len(videos) // 2
        return [*self._outcomes(case, videos[:half]), *self._outcomes(case, videos[half:])]

    def _together(self, case: Case, videos: Sequence[_Encoded]) -> list[Outcome]:
        method, (own, shared) = get_method(case.method), self._told(case)
        classes = self._classes[case.setting][case.class_set]
        with classes.counted.unless_it_fails():
            # Averaging frames to views is the method's work; cases that share it find it done.
            given = [one.under(case.setting, method.fusion(own), method.works_from_pixels(own)) for one in videos]
            if case.case_id in self._streams:
                return decisions(given, self._streams[case.case_id].decide)
            return method.adapt(given, classes, own, shared)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A video with its embeddings, its features so far, and what cases say of it, with their settings.

    Features of settings that share a plan and a fusion are the same. An image took so many wall seconds, 0 where
    embeddings were given.
    """

    model: ClipModel
    video: PlannedVideo
    embeddings: torch.Tensor
    image_seconds: float
    known: dict[tuple[int, Fusion], VideoFeatures] = field(default_factory=dict)
    said: list[tuple[int, CasePrediction]] = field(default_factory=list)
    failures: dict[int, VideoError] = field(default_factory=dict)

    def under(self, setting: int, fusion: Fusion, with_pixels: bool) -> VideoFeatures:
        plan = self.video.plans[setting]
        key = id(plan), fusion
        if key not in self.known:
            self.known[key] = video_features(self.embeddings, plan, self.model.view_features, fusion)
        if not with_pixels or self.video.frames is None:
            return self.known[key]
        pixels = VideoPixels(self.video.video_id, self.video.frames, plan, self.embeddings)
        return replace(self.known[key], pixels=pixels)

    def prediction(self) -> VideoPrediction | VideoError:
        """What is said of it under the settings that can decide; the first failure where none can."""
        cases = tuple(case for setting, case in self.said if setting not in self.failures)
        if self.failures and not cases:
            return next(iter(self.failures.values()))
        plan = self.video.plan
        own = 0 if self.video.frames is None else len(plan.images)
        return VideoPrediction(
            cases=cases,
            failures=self.failures,
            images_encoded=own + sum(case.decision.encoded for case in cases),
            views=len(plan.views),
            encode_seconds=len(plan.images) * self.image_seconds,
            plan=plan,
            embeddings=self.embeddings,
        )
