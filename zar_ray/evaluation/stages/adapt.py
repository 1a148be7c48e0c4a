"""The second stage: a video's predictions, in the model pool."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter, VideoPrediction
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.options import Setting
from zar_ray.cluster_measures import tell
from zar_ray.data.class_texts import ClassPrompts
from zar_ray.errors import DeviceLostError, NoRoomError, RunError, VideoError
from zar_ray.evaluation.feature_store import FeatureStore, HashedFile, Stored, VideoFacts, image_keys
from zar_ray.evaluation.spec import (
    CONTENT,
    FEATURE_PACKS,
    MODELS,
    POSITION,
    SECONDS_LOAD,
    STATUS_SCHEMA,
    Failure,
    JobSpec,
    attempt,
    facts_of,
    failed_rows,
    labels_of,
    worker_name,
)
from zar_ray.evaluation.streams import StreamState
from zar_ray.models.clip import ClipModel
from zar_ray.models.device_faults import watched, within_memory
from zar_ray.models.fitting import MORE_MEMORY
from zar_ray.models.loading import load_model
from zar_ray.models.options import ClassPosition, ModelOptions
from zar_ray.models.text import PromptedClasses
from zar_ray.results.case import Case
from zar_ray.results.folder import write_part
from zar_ray.results.rows import ResultRow, to_table
from zar_ray.video.reading import VideoInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Arrived:
    """A video as one model takes it.

    Attributes:
        row: Its row of `DECODED_SCHEMA`, without the inputs.
        planned: The video as the adapter takes it, or why there is none.
    """

    row: dict[str, Any]
    planned: PlannedVideo | Failure


@dataclass(frozen=True, eq=False)
class Decided:
    """What a model says of a video, away from its device.

    Attributes:
        prediction: The prediction.
        seen: (D,), where the run saw the video in the embedding space; the report draws it.
    """

    prediction: VideoPrediction
    seen: tuple[float, ...]


class AdaptStage:
    """One worker of the model pool: holds a replica of each model, predicts, and writes the rows.

    A block is predicted a batch at a time. It may be called with a block while it works on another: one batch at a time
    is predicted, and meanwhile the pixels of the next are taken over and the rows of a finished block are written. In a
    run with streams it may not.

    Args:
        spec: The run.
        settings: The settings of each model, with what it reads of the classes.
        threads: CPU threads it may use.

    Raises:
        RuntimeError: The weights on this node are not the run's.
        RunError: There are stream methods, and their state cannot be read.
    """

    def __init__(self, spec: JobSpec, settings: tuple[tuple[Setting, ...], ...], threads: int) -> None:
        torch.set_num_threads(threads)
        self.spec = spec
        started = time.perf_counter()
        loaded: dict[Hashable, Loaded] = {}
        self.replicas = []
        for number, of_one in enumerate(settings):
            # One that is shown several corruptions is held once.
            own = tuple(getattr(of_one[0].options, name) for name in ModelOptions.model_fields)
            if own not in loaded:
                loaded[own] = Loaded.of(load_model(of_one[0].options))
            self.replicas.append(Replica(spec, number, of_one, loaded[own]))
        self._untold_load: float | None = time.perf_counter() - started
        self._turn = Lock()
        self._position, self._begun = 0, False
        if self.spec.streams:
            state = StreamState.read(self.spec.storage)
            self._position = state.position
            # What a pass before this one has left is no state of its streams, which begin then; unless they go on.
            own = {**{case.case_id: case.case_id for case in spec.cases}, **spec.carried}
            named = ((name.partition("/"), one) for name, one in state.tensors.items())
            tensors = {f"{own[case]}/{name}": one for (case, _, name), one in named if case in own}
            for replica in self.replicas if tensors else ():
                replica.adapter.restore_streams(tensors)

    def __call__(self, block: pa.Table) -> pa.Table:
        """`DECODED_SCHEMA` to `STATUS_SCHEMA`; the result rows of the block are one part of the run by then.

        Raises:
            DeviceLostError: A device is lost, and the process of no more use; the block has no rows.
        """
        with watched(self.replicas[0].adapter.model.device):
            return self._adapted(block)

    def _adapted(self, block: pa.Table) -> pa.Table:
        rows = block.drop_columns(["inputs"]).to_pylist()
        for row in rows:
            tell("zar_stage_seconds", row["seconds_decode"], part="job", stage="decode")
        if self.spec.streams:
            self._follow(rows)
        results: list[ResultRow] = []
        notes: dict[str, list[str]] = {}
        for first in range(0, len(rows), self.spec.batch_size):
            batch = range(first, min(first + self.spec.batch_size, len(rows)))
            for replica in self.replicas:
                own = [index for index in batch if replica.number in rows[index][MODELS.name]]
                videos = [replica.arrive(rows[index], block["inputs"][index]) for index in own]
                with self._turn:
                    outcomes = [replica.leave(outcome) for outcome in self.predict(replica, videos)]
                for video, outcome in zip(videos, outcomes, strict=True):
                    results += replica.rows(video, outcome)
                    self._tell(outcome)
                if videos and (note := replica.keep(videos, outcomes)):
                    notes.setdefault(videos[0].row["video_id"], []).append(note)
        write_part(self.spec.storage, to_table(results))
        if self.spec.streams:
            # After the rows: what is continued does the videos after this position, and rows may be made twice.
            tensors = dict(chain.from_iterable(one.adapter.stream_state().items() for one in self.replicas))
            StreamState(self._position, tensors).write(self.spec.storage)
        failed = {result.video_id for result in results if result.error is not None}
        with self._turn:
            load, self._untold_load = self._untold_load, None
        status = [
            {
                "video_id": row["video_id"],
                "failed": row["video_id"] in failed,
                "feature_uses": row["feature_uses"],
                "feature_notes": [*(row["feature_notes"] or ()), *notes.get(row["video_id"], ())],
                FEATURE_PACKS.name: row[FEATURE_PACKS.name],
                SECONDS_LOAD.name: load if number == 0 else None,
            }
            for number, row in enumerate(rows)
        ]
        return pa.Table.from_pylist(status, schema=STATUS_SCHEMA)

    def _tell(self, outcome: Decided | Failure) -> None:
        """Tells Prometheus what a video took under one model."""
        if isinstance(outcome, Decided):
            tell("zar_stage_seconds", outcome.prediction.encode_seconds, part="job", stage="encode")
            for one in outcome.prediction.cases:
                tell("zar_stage_seconds", one.seconds, part="job", stage="adapt")

    def _follow(self, rows: list[dict[str, Any]]) -> None:
        """Checks that videos come in the order of the stream."""
        for row in rows:
            position = row[POSITION.name]
            if position < self._position:
                raise RuntimeError(f"{row['video_id']}: came after video {self._position} of the stream")
            if position > self._position and not self._begun:
                # A worker before this one died with the videos between. Later gaps are videos whose decoder died.
                raise RuntimeError(f"{row['video_id']}: the stream has not seen video {self._position}")
            self._position, self._begun = position + 1, True

    def predict(self, replica: Replica, videos: list[Arrived]) -> list[VideoPrediction | Failure]:
        """Predicts some videos under one model together; where that breaks unforeseen, each by itself.

        In a stream one follows the other, and each is seen once.
        """
        planned = [video.planned for video in videos if isinstance(video.planned, PlannedVideo)]
        try:
            if self.spec.streams:
                predicted = (replica.predict_one(one) for one in planned)
            else:
                predicted = iter(replica.adapter.predict(planned))
        except DeviceLostError:
            raise
        except Exception:
            logger.exception("a batch of %d videos failed; each is tried by itself", len(planned))
            predicted = (replica.predict_one(one) for one in planned)
        outcomes = [video.planned if isinstance(video.planned, Failure) else next(predicted) for video in videos]
        return [Failure(str(one), one.stage) if isinstance(one, VideoError) else one for one in outcomes]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory, and its classes under any prompts, each made once."""

    model: ClipModel
    classes_of: Callable[[ClassPrompts, ClassPosition], PromptedClasses]

    @classmethod
    def of(cls, model: ClipModel) -> Loaded:
        """Takes a model."""
        return cls(model, cache(partial(PromptedClasses.of, model)))


class Replica:
    """One of a run's models, by its number, with its cases.

    Raises:
        RuntimeError: The weights on this node are not the run's.
    """

    def __init__(self, spec: JobSpec, number: int, settings: tuple[Setting, ...], loaded: Loaded) -> None:
        self.spec, self.number = spec, number
        own, model = settings[0].options, loaded.model
        expected = spec.models[number].fingerprint
        if model.fingerprint != expected:
            raise RuntimeError(
                f"{worker_name()}: loaded weights {model.fingerprint}, the run has {expected}; "
                "every node must see the same checkpoint"
            )
        self.cases = {case.case_id: case for case in spec.cases_of([number])}
        self.adapter = VideoAdapter(
            model,
            settings[0].prompts,
            own.method,
            own,
            cases=tuple(self.cases.values()),
            further=settings[1:],
            classes_of=loaded.classes_of,
            videos=settings[0].videos,
        )
        self.store = spec.feature_store(number)

    def arrive(self, row: dict[str, Any], inputs: pa.ListScalar) -> Arrived:
        """A decoded video as this model takes it; on a CPU pixels are read in place, where they arrived."""
        if row["error"] is not None:
            return Arrived(row, Failure(row["error"], row["error_stage"]))
        planned = watched(self.adapter.model.device)(lambda: self._planned(row, inputs))
        return Arrived(row, attempt("adapt", planned))

    def _planned(self, row: dict[str, Any], inputs: pa.ListScalar) -> PlannedVideo:
        info = VideoInfo(row["frames"], 0.0, row["width"], row["height"], 0.0, row["decoder"])
        plan, *further = self.spec.models[self.number].plans(row["video_id"], info)
        own = next(one for one in inputs if self.number in one["models"].as_py())
        pixels = embeddings = None
        if own["dimensions"].is_valid:
            values = np.frombuffer(own["embeddings"].as_buffer(), np.float32)
            embeddings = torch.from_numpy(values.reshape(-1, own["dimensions"].as_py()).copy())
        else:
            pixels = np.frombuffer(own["pixels"].as_buffer(), np.uint8).reshape(own["shape"].as_py())
            if self.adapter.model.device.type == "cuda":
                # Where a GPU reads them by itself, beside its work; copying them there takes longer than their journey.
                pinned = within_memory(partial(torch.empty, pixels.shape, dtype=torch.uint8, pin_memory=True))
                if pinned is not None:
                    pinned.numpy()[...] = pixels
                    pixels = pinned
        return PlannedVideo(plan, pixels, embeddings, tuple(row["class_sets"]), tuple(further), row["video_id"])

    def predict_one(self, video: PlannedVideo) -> VideoPrediction | Failure | VideoError:
        """One video by itself; what nobody foresaw is its failure."""
        return attempt("adapt", lambda: self.adapter.predict([video])[0])

    def leave(self, outcome: VideoPrediction | Failure) -> Decided | Failure:
        """Ends a video's work on the device, and with what is set there for all threads of a process.

        The next block's begins; what is left to do of this one must neither wait for it nor disturb it.
        """
        if isinstance(outcome, Failure):
            return outcome
        return attempt("adapt", watched(self.adapter.model.device)(lambda: self._left(outcome)))

    def _left(self, outcome: VideoPrediction) -> Decided:
        # What ran out of memory once may have room when that is free again: the video is decided.
        for _ in range(2):
            if (decided := within_memory(partial(self._leave, outcome))) is not None:
                return decided
        raise NoRoomError(f"out of memory with one video's embeddings; {MORE_MEMORY}", stage="adapt")

    def _leave(self, outcome: VideoPrediction) -> Decided:
        model = self.adapter.model
        features = model.embedding_part(
            video_features(outcome.embeddings, outcome.plan, model.view_features).evaluation
        )
        seen = normalize(features.reshape(-1, features.shape[-1]).mean(dim=0), dim=0)
        return Decided(replace(outcome, embeddings=outcome.embeddings.cpu()), tuple(seen.tolist()))

    def rows(self, video: Arrived, outcome: Decided | Failure) -> list[ResultRow]:
        """A video's result rows under this model, one a case that it is of."""
        own = [case for case in self.cases.values() if case.class_set in video.row["class_sets"]]

        def failed(why: Failure, cases: Sequence[Case] = own) -> list[ResultRow]:
            return failed_rows(self.spec, video.row, why, worker_name(), cases)

        if isinstance(outcome, Failure):
            return failed(outcome)
        finished = attempt("adapt", lambda: self._finished(video, outcome))
        if isinstance(finished, Failure):
            return failed(finished)
        for setting, error in outcome.prediction.failures.items():
            cases = [case for case in own if case.setting == setting]
            finished += failed(Failure(str(error), error.stage), cases)
        return finished

    def _finished(self, video: Arrived, decided: Decided) -> list[ResultRow]:
        """The rows of the cases that have a decision."""
        row, planned, outcome = video.row, video.planned, decided.prediction
        assert isinstance(planned, PlannedVideo)
        carried = planned.frames if planned.frames is not None else planned.embeddings
        assert carried is not None
        return [
            ResultRow.from_decision(
                row["video_id"],
                one.case_id,
                one.method,
                one.decision,
                **facts_of(self.spec, self.cases[one.case_id]),
                **labels_of(self.spec, row, self.cases[one.case_id]),
                video_feature=decided.seen if number == 0 else None,
                images=one.images,
                text_tokens=one.text_tokens,
                gradient_tokens=one.gradient_tokens,
                images_encoded=outcome.images_encoded,
                frames=row["frames"],
                frames_decoded=len(planned.frames) if planned.frames is not None else 0,
                bytes_shipped=carried.nbytes,
                seconds_decode=row["seconds_decode"],
                seconds_encode=outcome.encode_seconds,
                seconds_adapt=one.seconds,
                seconds_case=one.whole_seconds,
                peak_memory=one.peak_memory,
                decoder=row["decoder"],
                worker=worker_name(),
                warning=row["warning"],
            )
            for number, one in enumerate(outcome.cases)
        ]

    def keep(self, videos: Sequence[Arrived], outcomes: Sequence[Decided | Failure]) -> str | None:
        """Stores the features of a block's videos, and what files they are in; says why that could not be done.

        The videos have their results all the same: a store that fails costs time later, not now.
        """
        if self.store is None:
            return None
        kept = chain.from_iterable(self._kept(self.store, *one) for one in zip(videos, outcomes, strict=True))
        try:
            self.store.write(list(kept))
        except RunError as error:
            return f"features of its block not stored ({error})"
        return None

    def _kept(
        self, store: FeatureStore, video: Arrived, outcome: Decided | Failure
    ) -> list[tuple[str, HashedFile | None, Stored | None]]:
        row, content = video.row, video.row[CONTENT.name]
        if content is None or self.number not in content["models"] or isinstance(outcome, Failure):
            return []
        file = HashedFile(content["path"], content["size"], content["mtime_ns"])
        if isinstance(video.planned, PlannedVideo) and video.planned.frames is None:
            return [(content["hash"], file, None)]
        facts = VideoFacts(row["decoder"], row["warning"], row["frames"], row["width"], row["height"])
        made = outcome.prediction
        stored = Stored(image_keys(made.plan), made.embeddings.numpy(), facts)
        entry = store.entry_of(content["hash"], row["video_id"])
        if entry == content["hash"]:
            return [(entry, file, stored)]
        return [(content["hash"], file, None), (entry, None, stored)]
