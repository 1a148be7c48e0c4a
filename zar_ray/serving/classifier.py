"""A model replica's work: decoded videos and questions in, answers out, several at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial

import numpy as np

import zar_ray
from zar_ray.adaptation.adapter import CasePrediction, PlannedVideo, VideoAdapter, VideoPrediction
from zar_ray.adaptation.base import entropy
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.adaptation.predict import rank_labels
from zar_ray.data.class_texts import ClassPrompts, prompts_of
from zar_ray.errors import ConfigError, DeviceLostError, ModelError, NoRoomError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.device_faults import watched, within_memory
from zar_ray.models.fitting import MORE_MEMORY
from zar_ray.models.loading import load_model
from zar_ray.models.text import PromptedClasses
from zar_ray.models.text_cache import TextCache
from zar_ray.results.certainty import certainties, is_rejected
from zar_ray.serving.backend import DecodingNeeds, Job, Query
from zar_ray.serving.explaining import explain
from zar_ray.serving.logs import logger
from zar_ray.serving.methods import ServiceOptions, adaptation_options
from zar_ray.serving.problems import RequestError
from zar_ray.serving.schema import (
    Classification,
    ServedModel,
    Timings,
    VideoFacts,
    ViewEntropy,
)
from zar_ray.video.plans import ViewPlan, plan_video
from zar_ray.video.reading import VideoInfo
from zar_ray.video.sandbox_process import DecodedViews

_WARM_UP_FRAMES = 64
_WARM_UP_LABELS = ("opening a door", "riding a horse")


class Classifier:
    """One model with the text features of recent label sets; not for several threads at a time.

    Args:
        config: The service's options.

    Raises:
        ModelError: The model cannot be loaded.
    """

    def __init__(self, config: ServiceOptions) -> None:
        self.config = config
        self.model = load_model(config)
        # A request's label set is most often one of the last requests'.
        self._texts = TextCache(self.model, config.text_memory)
        self._lock = threading.Lock()

    @property
    def card(self) -> ServedModel:
        """What the service says of its model."""
        return ServedModel(
            name=self.model.name,
            fingerprint=self.model.fingerprint,
            version=zar_ray.__version__,
            input_size=self.model.preprocessing.input_size,
            methods=self.config.methods,
            random_weights=self.model.random_weights,
        )

    @property
    def decoding_needs(self) -> DecodingNeeds:
        """What decoders must know to plan the views that its methods look at."""
        with_views = tuple(name for name in self.config.methods if get_method(name).needs_views)
        return DecodingNeeds(self.model.preprocessing, with_views)

    def warm_up(self) -> None:
        """Classifies a grey video with every method, so that the first request finds everything loaded.

        Raises:
            ConfigError: See `require_served`.
            RequestError: A method fails.
        """
        require_served(self.model, self.config)
        size = self.model.preprocessing.input_size
        info = VideoInfo(_WARM_UP_FRAMES, 25.0, size, size, _WARM_UP_FRAMES / 25, "none")
        plan = plan_video("warm-up", info, self.config.views, self.model.preprocessing, 0, needs_views=True)
        frames = np.full((len(plan.frames), plan.height, plan.width, 3), 127, dtype=np.uint8)
        for method in self.config.methods:
            query = Query("warm-up", _WARM_UP_LABELS, method)
            (answer,) = self.answer([Job(query, "warm-up", DecodedViews(frames, plan, info, None, 0.0))])
            if isinstance(answer, RequestError):
                raise answer

    def answer(self, jobs: Sequence[Job]) -> list[Classification | RequestError]:
        """Answers several questions; those of one label set under the same options share all passes.

        Args:
            jobs: The questions.

        Returns:
            An answer a question, in order; an error in place of one that cannot be answered, which leaves the others
            alone.

        Raises:
            DeviceLostError: The device is lost, and no question can be answered any more.
        """
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, job in enumerate(jobs):
            groups.setdefault(job.query.shared, []).append(number)
        answers: dict[int, Classification | RequestError] = {}
        with self._lock:
            for numbers in groups.values():
                answers.update(zip(numbers, self._answer_safely([jobs[number] for number in numbers]), strict=True))
                self._texts.settle()
        return [answers[number] for number in range(len(jobs))]

    def _answer_safely(self, jobs: Sequence[Job]) -> list[Classification | RequestError]:
        """Answers together; if that breaks in a way nobody foresaw, each by itself, so that it costs one answer."""
        try:
            with watched(self.model.device):
                return self._answer_alike(jobs)
        except DeviceLostError:
            raise
        except Exception:
            logger.exception("questions %s failed", ", ".join(job.query.request_id for job in jobs))
        if len(jobs) == 1:
            return [RequestError("internal-error")]
        return [answer for job in jobs for answer in self._answer_safely([job])]

    def _answer_alike(self, jobs: Sequence[Job]) -> list[Classification | RequestError]:
        query = jobs[0].query
        try:
            options = adaptation_options(self.config, query)
            prompts = prompts_of([query.labels], options)
            predict = partial(self._predict, jobs, prompts, options)
            predicted = within_memory(predict)
            if predicted is None or any(isinstance(outcome, NoRoomError) for outcome in predicted[1]):
                # What is kept of label sets, these too, is made again when it is asked for.
                predicted = None
                self._texts.clear()
                predicted = within_memory(predict)
        except RequestError as error:
            return [error for _ in jobs]
        except (ConfigError, ModelError) as error:
            return [RequestError("invalid-parameters", str(error)) for _ in jobs]
        if predicted is None:
            error = RequestError("overloaded", f"out of memory reading {len(query.labels)} labels; {MORE_MEMORY}")
            return [error for _ in jobs]
        adapter, outcomes = predicted
        return [
            _unanswered(outcome) if isinstance(outcome, VideoError) else self._told(job, outcome, adapter)
            for job, outcome in zip(jobs, outcomes, strict=True)
        ]

    def _predict(
        self, jobs: Sequence[Job], prompts: Sequence[ClassPrompts], options: AdaptationOptions
    ) -> tuple[VideoAdapter, list[VideoPrediction | VideoError]]:
        adapter = VideoAdapter(self.model, prompts, options.method, options, classes_of=self._texts)
        videos = [PlannedVideo(job.decoded.plan, job.decoded.frames, video_id=job.name) for job in jobs]
        return adapter, adapter.predict(videos)

    def _told(self, job: Job, outcome: VideoPrediction, adapter: VideoAdapter) -> Classification | RequestError:
        try:
            return self._answered(job, outcome, adapter)
        except VideoError as error:
            return _unanswered(error)

    def _answered(self, job: Job, outcome: VideoPrediction, adapter: VideoAdapter) -> Classification:
        query, (case,) = job.query, outcome.cases
        explanation, missing, started = None, None, time.perf_counter()
        if query.explain:
            try:
                explanation = within_memory(lambda: explain(job, outcome, case, adapter.class_sets[0], adapter.options))
                missing = "there was not enough memory for the maps; try again" if explanation is None else None
            except ModelError as error:
                missing = str(error)
        decision = case.decision
        certainty, reject = None, None
        if query.reject_below is not None:
            certainty = certainties(decision.logits_after)[query.reject_score]
            reject = is_rejected(certainty, query.reject_below)
        timings = {
            "receive": query.received,
            "decode": job.decoded.seconds,
            "encode": outcome.encode_seconds,
            "adapt": case.seconds,
            "explain": time.perf_counter() - started if query.explain else 0.0,
        }
        return Classification(
            request_id=query.request_id,
            model=self.card,
            method=case.method,
            seed=query.seed,
            steps=0 if decision.losses is None else len(decision.losses),
            candidates=len(query.labels),
            before=rank_labels([decision.logits_before], query.labels, query.top_k),
            after=rank_labels([decision.logits_after], query.labels, query.top_k),
            entropy_before=float(entropy(decision.logits_before)),
            entropy_after=float(entropy(decision.logits_after)),
            certainty=certainty,
            reject=reject,
            views=_views(outcome.plan, case, job.decoded.first_frame),
            images_encoded=outcome.images_encoded,
            video=_facts(job, outcome.plan),
            timings=Timings(**timings, total=sum(timings.values())),
            explanation=explanation,
            explanation_missing=missing,
        )


def require_served(model: ClipModel, config: ServiceOptions) -> None:
    """Refuses a model that could not answer what the service's options let requests ask; no image is encoded for it.

    Args:
        model: The model.
        config: The service's options.

    Raises:
        ConfigError: The model reads views of other lengths, cannot read labels under the options, or a method cannot
            serve it.
    """
    model.require_frames(config.views.eval_frames, "views.eval_frames")
    if any(get_method(name).needs_views for name in config.methods):
        model.require_frames(config.views.frames, "views.frames")
    texts = lru_cache(1)(partial(PromptedClasses.of, model))
    for name in config.methods:
        options = adaptation_options(config, Query("", _WARM_UP_LABELS, name, seed=config.seed))
        prompts = prompts_of([_WARM_UP_LABELS], options)
        texts(prompts[0], options.class_position)
        try:
            VideoAdapter(model, prompts, (name,), options, classes_of=texts)
        except (ConfigError, ModelError) as error:
            raise ConfigError(f"methods: leave {name} out: {error}") from None


def _views(plan: ViewPlan, case: CasePrediction, first_frame: int) -> tuple[ViewEntropy, ...]:
    decision = case.decision
    # A method may look at views of its own, cut from pixels, or at frames one by one.
    if decision.view_entropies is None or len(decision.view_entropies) != len(plan.origins):
        return ()
    chosen = set() if decision.selected is None else set(decision.selected.tolist())
    return tuple(
        ViewEntropy(
            **asdict(replace(origin, start=first_frame + origin.start)),
            entropy=value,
            selected=number in chosen,
        )
        for number, (origin, value) in enumerate(zip(plan.origins, decision.view_entropies.tolist(), strict=True))
    )


def _facts(job: Job, plan: ViewPlan) -> VideoFacts:
    decoded = job.decoded
    shown = np.unique(plan.frames[plan.images[plan.evaluation.ravel(), 0]])
    return VideoFacts(
        **asdict(decoded.info),
        name=job.name,
        warning=decoded.warning,
        frames_decoded=len(decoded.frames),
        evaluation_frames=tuple(int(decoded.first_frame + frame) for frame in shown),
    )


def _unanswered(error: VideoError) -> RequestError:
    # A smaller pass was tried; only memory that others use can be short.
    code = "overloaded" if isinstance(error, NoRoomError) else "unusable-video"
    return RequestError(code, str(error))
