"""The second stage: a video's predictions, in the model pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter, VideoPrediction
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.settings import Setting
from zar_ray.errors import ConfigError, RunError, VideoError
from zar_ray.evaluation.feature_store import VideoFacts, image_keys
from zar_ray.evaluation.model_costs import count_costs
from zar_ray.evaluation.options import EvalConfig
from zar_ray.evaluation.spec import (
    COUNTED,
    MODELS,
    POSITION,
    STATUS_SCHEMA,
    Failure,
    JobSpec,
    ModelCard,
    caught,
    failed_rows,
    labels_of,
    worker_name,
)
from zar_ray.evaluation.streams import StreamState
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model
from zar_ray.models.text import why_full_pass
from zar_ray.models.vision import unfit_vision
from zar_ray.results.folder import write_part
from zar_ray.results.rows import ResultRow, to_table
from zar_ray.video.reading import VideoInfo

logger = logging.getLogger(__name__)


def load_card(options: EvalConfig, settings: Sequence[Setting]) -> ModelCard:
    """Loads the model once, to learn what it is and what it makes of the prompts, before a pool of workers does.

    Args:
        options: The run's options.
        settings: Its settings.

    Raises:
        ConfigError: The model cannot read the prompts, a method cannot use them, or features are to be kept of a model
            that has none of images.
        ModelError: The model cannot be loaded, or a method cannot serve it.
    """
    model = load_model(options)
    if options.features is not None and not model.frame_independent:
        raise ConfigError(
            f"--features: {model.name} encodes a view as a whole, so an image has no features of its own; leave it away"
        )
    adapter = VideoAdapter(model, settings[0].prompts, options.method, options, further=settings[1:])
    tuned = any(method.updates == "context" for method in adapter.methods)
    whole = "every prompt runs through the text tower as a whole"
    why_full = dict.fromkeys(why_full_pass(model, one.options.class_position) for one in settings if tuned)
    remarks = (
        *((reason, whole) for reason in why_full),
        (unfit_vision(model.clip.visual), "images run through it as open_clip wrote it"),
    )
    return ModelCard(
        model.name,
        model.fingerprint,
        model.preprocessing,
        model.random_weights,
        tuple(f"{reason}: {outcome}" for reason, outcome in remarks if reason is not None),
        count_costs(model, settings),
    )


@dataclass(frozen=True, eq=False)
class _Video:
    """A row of `DECODED_SCHEMA` without its pixels, and the video as the adapter takes it, or why there is none."""

    row: dict[str, Any]
    planned: PlannedVideo | Failure


class AdaptStage:
    """One worker of the model pool: holds a model replica, predicts, and writes the rows.

    Args:
        spec: The run.

    Raises:
        RuntimeError: The weights on this node are not the run's.
        RunError: There are stream methods, and their state cannot be read.
    """

    def __init__(self, spec: JobSpec) -> None:
        torch.set_num_threads(spec.threads)
        model = load_model(spec.options)
        if model.fingerprint != spec.model.fingerprint:
            raise RuntimeError(
                f"{worker_name()}: loaded weights {model.fingerprint}, the run has {spec.model.fingerprint}; "
                "every node must see the same checkpoint"
            )
        self.spec = spec
        first, *further = spec.settings
        self.adapter = VideoAdapter(
            model, first.prompts, spec.options.method, spec.options, cases=spec.cases, further=further
        )
        self.store = spec.feature_store()
        self._position, self._begun = 0, False
        if spec.streams:
            state = StreamState.read(spec.storage)
            self._position = state.position
            if state.tensors:
                self.adapter.restore_streams(state.tensors)

    def __call__(self, block: pa.Table) -> pa.Table:
        """`DECODED_SCHEMA` to `STATUS_SCHEMA`; the result rows of the block are one part of the run by then."""
        videos = [self._arrive(block.slice(index, 1)) for index in range(block.num_rows)]
        outcomes = self._predict(videos)
        rows = [self._rows(video, outcome) for video, outcome in zip(videos, outcomes, strict=True)]
        write_part(self.spec.storage, to_table(chain.from_iterable(rows)))
        if self.spec.streams:
            # After the rows: what is continued does the videos after this position, and rows may be made twice.
            StreamState(self._position, self.adapter.stream_state()).write(self.spec.storage)
        status = [
            {
                "video_id": video.row["video_id"],
                "failed": any(row.error is not None for row in of_video),
                "feature_use": video.row["feature_use"],
                "feature_note": self._keep(video.row, outcome) or video.row["feature_note"],
            }
            for video, outcome, of_video in zip(videos, outcomes, rows, strict=True)
        ]
        return pa.Table.from_pylist(status, schema=STATUS_SCHEMA)

    def _arrive(self, one: pa.Table) -> _Video:
        # to_pylist would copy the pixels: they are read in place.
        row = one.drop_columns(["pixels", "embeddings"]).to_pylist()[0]
        if row["error"] is not None:
            return _Video(row, Failure(row["error"], row["error_stage"]))
        spec = self.spec
        failures: list[Failure] = []
        with caught("adapt", failures):
            info = VideoInfo(row["frames"], 0.0, row["width"], row["height"], 0.0, row["decoder"])
            plan, *further = spec.plans(row["video_id"], info)
            class_sets = tuple(row["class_sets"])
            if row["dimensions"] is not None:
                values = np.frombuffer(one["embeddings"].chunk(0)[0].as_buffer(), np.float32)
                embeddings = torch.from_numpy(values.reshape(-1, row["dimensions"]).copy())
                return _Video(row, PlannedVideo(plan, None, embeddings, class_sets, tuple(further), row["video_id"]))
            pixels = np.frombuffer(one["pixels"].chunk(0)[0].as_buffer(), np.uint8).reshape(row["shape"])
            return _Video(row, PlannedVideo(plan, pixels, None, class_sets, tuple(further), row["video_id"]))
        return _Video(row, failures[0])

    def _predict(self, videos: list[_Video]) -> list[VideoPrediction | Failure]:
        """Predicts a block's videos together; if one of them breaks that in a way nobody foresaw, each by itself."""
        if self.spec.streams:
            return self._predict_in_order(videos)
        planned = [video.planned for video in videos if isinstance(video.planned, PlannedVideo)]
        try:
            predicted = iter(self.adapter.predict(planned))
        except Exception:
            logger.exception("a block of %d videos failed; each is tried by itself", len(planned))
            predicted = (self._predict_one(one) for one in planned)
        outcomes = [video.planned if isinstance(video.planned, Failure) else next(predicted) for video in videos]
        return [Failure(str(one), one.stage) if isinstance(one, VideoError) else one for one in outcomes]

    def _predict_in_order(self, videos: list[_Video]) -> list[VideoPrediction | Failure]:
        """Predicts one video after the other, and each once: a stream must not see it again."""
        outcomes: list[VideoPrediction | Failure] = []
        for video in videos:
            position = video.row[POSITION.name]
            if position < self._position:
                raise RuntimeError(f"{video.row['video_id']}: came after video {self._position} of the stream")
            if position > self._position and not self._begun:
                # A worker before this one died with the videos between. Later gaps are videos whose decoder died.
                raise RuntimeError(f"{video.row['video_id']}: the stream has not seen video {self._position}")
            self._position, self._begun = position + 1, True
            predicted = video.planned if isinstance(video.planned, Failure) else self._predict_one(video.planned)
            outcomes.append(
                Failure(str(predicted), predicted.stage) if isinstance(predicted, VideoError) else predicted
            )
        return outcomes

    def _predict_one(self, video: PlannedVideo) -> VideoPrediction | Failure | VideoError:
        failures: list[Failure] = []
        with caught("adapt", failures):
            return self.adapter.predict([video])[0]
        return failures[0]

    def _rows(self, video: _Video, outcome: VideoPrediction | Failure) -> list[ResultRow]:
        row, failures = video.row, list[Failure]()
        if isinstance(outcome, Failure):
            return failed_rows(self.spec, row, outcome, worker_name())
        cases = {case.case_id: case for case in self.spec.cases}
        with caught("adapt", failures):
            finished = [
                ResultRow.from_decision(
                    row["video_id"],
                    case.case_id,
                    case.method,
                    case.decision,
                    **labels_of(self.spec, row, cases[case.case_id]),
                    video_feature=_evaluation_feature(outcome, self.adapter.model) if number == 0 else None,
                    images=case.images,
                    images_encoded=outcome.images_encoded,
                    frames=row["frames"],
                    frames_decoded=0 if row["shape"] is None else row["shape"][0],
                    bytes_shipped=_shipped(video.planned),
                    seconds_decode=row["seconds_decode"],
                    seconds_encode=outcome.encode_seconds,
                    seconds_adapt=case.seconds,
                    seconds_case=case.whole_seconds,
                    peak_memory=case.peak_memory,
                    decoder=row["decoder"],
                    worker=worker_name(),
                    warning=row["warning"],
                )
                for number, case in enumerate(outcome.cases)
            ]
            failed = [
                failed_row
                for setting, error in outcome.failures.items()
                for failed_row in failed_rows(
                    self.spec,
                    row,
                    Failure(str(error), error.stage),
                    worker_name(),
                    [case for case in self.spec.cases if case.setting == setting],
                )
            ]
            return finished + failed
        return failed_rows(self.spec, row, failures[0], worker_name())

    def _keep(self, row: dict[str, Any], outcome: VideoPrediction | Failure) -> str | None:
        """Stores a video's features where they are wanted; says why that could not be done.

        The video has its result all the same: a store that fails costs time later, not now.
        """
        if self.store is None or row["content"] is None or isinstance(outcome, Failure):
            return None
        facts = VideoFacts(row["decoder"], row["warning"], row["frames"], row["width"], row["height"])
        try:
            self.store.write(row["content"], image_keys(outcome.plan), outcome.embeddings.cpu().numpy(), facts)
        except RunError as error:
            return f"features not stored ({error})"
        return None


class ModelsStage:
    """One worker of a pass of several models: holds a replica of each, which predict one after the other.

    Args:
        specs: The models' runs.

    Raises:
        RuntimeError: The weights on this node are not a run's.
    """

    def __init__(self, specs: Sequence[JobSpec]) -> None:
        self.stages = [AdaptStage(spec) for spec in specs]

    def __call__(self, block: pa.Table) -> pa.Table:
        """`MODELS_SCHEMA` to `STATUS_SCHEMA`, a row a video that has failed where it failed for any model."""
        failed: set[str] = set()
        of_rows = block[MODELS.name].to_pylist()
        for number, stage in enumerate(self.stages):
            own = block.filter(pa.array([number in numbers for numbers in of_rows], pa.bool_()))
            if len(own):
                status = stage(own.drop_columns([MODELS.name, COUNTED.name]))
                failed |= {row["video_id"] for row in status.to_pylist() if row["failed"]}
        counted = block.filter(block[COUNTED.name])["video_id"].to_pylist()
        return pa.Table.from_pylist(
            [{"video_id": video, "failed": video in failed} for video in counted], schema=STATUS_SCHEMA
        )


def _evaluation_feature(outcome: VideoPrediction, model: ClipModel) -> tuple[float, ...]:
    """Where the run saw the video in the embedding space; the report draws it."""
    features = model.embedding_part(video_features(outcome.embeddings, outcome.plan, model.view_features).evaluation)
    return tuple(normalize(features.reshape(-1, features.shape[-1]).mean(dim=0), dim=0).tolist())


def _shipped(video: PlannedVideo | Failure) -> int:
    """Bytes that came from the decoding process."""
    assert isinstance(video, PlannedVideo)
    carried = video.frames if video.frames is not None else video.embeddings
    assert carried is not None
    return carried.nbytes
