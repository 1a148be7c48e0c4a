"""What workers are told and what passes between them; light to import, since every decoding process does.

Whatever goes wrong with one video becomes a row with its error, so that the others of its block go on; a video that
kills its process is dealt with in `pipeline`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from zar_ray.adaptation.settings import Setting
from zar_ray.errors import VideoError
from zar_ray.evaluation.feature_store import FeatureSpace, FeatureStore
from zar_ray.evaluation.options import EvalConfig
from zar_ray.evaluation.workload import CLASS_SETS, RIGHT_IDS
from zar_ray.results.case import Case
from zar_ray.results.record import ModelCost
from zar_ray.results.rows import ResultRow, RightClasses
from zar_ray.storage import Storage
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import ViewPlan, plan_video, unite
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import Preprocessing

logger = logging.getLogger(__name__)

# Where a video stands in a run with stream methods; null in others.
POSITION = pa.field("position", pa.int64())

# Between the stages: a video's distinct resized frames, or the stored features of its images, and what is known of it.
DECODED_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        CLASS_SETS,
        RIGHT_IDS,
        pa.field("frames", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("decoder", pa.string()),
        pa.field("pixels", pa.large_binary()),
        pa.field("shape", pa.list_(pa.int32(), 4)),
        pa.field("embeddings", pa.large_binary()),
        pa.field("dimensions", pa.int32()),
        pa.field("content", pa.string()),
        pa.field("feature_use", pa.string()),
        pa.field("feature_note", pa.string()),
        pa.field("seconds_decode", pa.float64()),
        pa.field("warning", pa.string()),
        pa.field("error", pa.string()),
        pa.field("error_stage", pa.string()),
        POSITION,
    ]
)

# In a pass of several models: which of them take a row's pixels, and whether the row counts for its video, which may
# have several.
MODELS = pa.field("models", pa.list_(pa.int32()), nullable=False)
COUNTED = pa.field("counted", pa.bool_(), nullable=False)
MODELS_SCHEMA = DECODED_SCHEMA.append(MODELS).append(COUNTED)

# After them: what the driver counts; the results themselves are in the run folder by then.
STATUS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("failed", pa.bool_(), nullable=False),
        pa.field("feature_use", pa.string()),
        pa.field("feature_note", pa.string()),
    ]
)

FeatureUse = Literal["read", "computed", "replaced"]
"""How a video's features came about where there is a store: from it, or for it, in place of what could not be used."""


@dataclass(frozen=True)
class ModelCard:
    """What the driver knows of the model without holding it.

    Attributes:
        name: The model's name.
        fingerprint: A hash of its weights.
        preprocessing: Its input size and normalisation.
        random_weights: Whether it is untrained.
        remarks: What makes it slower than it could be, a line each.
        costs: What it holds and computes, under each setting.
    """

    name: str
    fingerprint: str
    preprocessing: Preprocessing
    random_weights: bool
    remarks: tuple[str, ...] = ()
    costs: tuple[ModelCost, ...] = ()


@dataclass(frozen=True)
class JobSpec:
    """What every worker of a run is told.

    Attributes:
        options: The run's options.
        model: The model every replica must turn out to be.
        class_sets: The candidate classes of each class set.
        settings: What cases are under, with what the model reads of the classes; the first is of `options`.
        multi_label: Whether a video may show several classes.
        cases: The cases, one a class set, method and setting; what settings have in common is one case.
        storage: The run's folder, which workers add finished rows to.
        needs_views: Whether any of the cases looks at other views than the evaluation view.
        threads: CPU threads a model replica may use.
        streams: The stream methods, for whose sake videos come one by one, in order, to one worker.
    """

    options: EvalConfig
    model: ModelCard
    class_sets: tuple[tuple[str, ...], ...]
    settings: tuple[Setting, ...]
    multi_label: bool
    cases: tuple[Case, ...]
    storage: Storage
    needs_views: bool
    threads: int
    streams: tuple[str, ...] = ()

    def feature_store(self) -> FeatureStore | None:
        """Where this run's features are kept, if they are."""
        if self.options.features is None:
            return None
        space = FeatureSpace.of(
            self.model.fingerprint, self.options.precision, self.options.decoder, self.model.preprocessing
        )
        return FeatureStore(Storage(self.options.features), space)

    def plans(self, video_id: str, info: VideoInfo) -> tuple[ViewPlan, ...]:
        """See `plan_settings`."""
        return plan_settings(video_id, info, self.settings, self.model.preprocessing, self.needs_views)


def plan_settings(
    video_id: str, info: VideoInfo, settings: Sequence[Setting], preprocessing: Preprocessing, needs_views: bool
) -> tuple[ViewPlan, ...]:
    """A video's views under each setting, over the images of all: what is decoded and encoded of it, once.

    Raises:
        VideoError: The video has no frames or no size (stage ``plan``).
    """
    distinct = tuple(dict.fromkeys(map(planned_as, settings)))
    plans = unite(
        [plan_video(video_id, info, views, preprocessing, seed, needs_views=needs_views) for views, seed in distinct]
    )
    by_key = dict(zip(distinct, plans, strict=True))
    return tuple(by_key[planned_as(setting)] for setting in settings)


def planned_as(setting: Setting) -> tuple[ViewConfig, int]:
    """What a setting's plans depend on, besides the video and the model."""
    return setting.options.views, setting.options.seed


def worker_name() -> str:
    """Host and process, as result rows name them."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Failure:
    """Why a video has no decision, and at which stage."""

    message: str
    stage: str


@contextmanager
def caught(stage: str, failures: list[Failure]) -> Iterator[None]:
    """Turns what goes wrong with one video into a failure, here and nowhere else in the job.

    Even what nobody foresaw must cost one video and not the job; it is logged with its traceback.
    """
    try:
        yield
    except VideoError as error:
        failures.append(Failure(str(error), error.stage))
    except MemoryError:
        failures.append(Failure("out of memory", stage))
    except Exception as error:
        logger.exception("unforeseen failure while in stage %s", stage)
        failures.append(Failure(f"{type(error).__name__}: {' '.join(str(error).split())}", stage))


def labels_of(spec: JobSpec, video: dict[str, Any], case: Case) -> RightClasses:
    """What is right for a video under a case."""
    ids = tuple(video["right_ids"][video["class_sets"].index(case.class_set)])
    if spec.multi_label:
        return {"labels": ids}
    return {"label_id": ids[0], "label": spec.class_sets[case.class_set][ids[0]]} if ids else {}


def failed_rows(
    spec: JobSpec,
    video: dict[str, Any],
    failure: Failure,
    worker: str | None = None,
    cases: Sequence[Case] | None = None,
) -> list[ResultRow]:
    """The rows of a video that failed, one a case that it is of: of the run's cases, or of `cases` alone."""
    return [
        ResultRow.failed(
            video_id=str(video["video_id"]),
            case_id=case.case_id,
            method=case.method,
            **labels_of(spec, video, case),
            error=failure.message,
            stage=failure.stage,
            frames=video.get("frames"),
            decoder=video.get("decoder"),
            seconds_decode=video.get("seconds_decode"),
            worker=worker,
            warning=video.get("warning"),
        )
        for case in (spec.cases if cases is None else cases)
        if case.class_set in video["class_sets"]
    ]
