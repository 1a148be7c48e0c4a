"""What workers are told and what passes between them; light to import, since every decoding process does.

Whatever goes wrong with one video becomes a row with its error, so that the others of its block go on; a video that
kills its process is dealt with in `zar_ray.evaluation.recovery`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pyarrow as pa

from zar_ray.errors import DeviceLostError, StorageError, VideoError
from zar_ray.evaluation.feature_store import FeatureStore, corrupted_space, feature_space
from zar_ray.evaluation.orders import StreamOrder
from zar_ray.evaluation.workload import CLASS_SETS, RIGHT_IDS
from zar_ray.models.options import Precision
from zar_ray.results.case import Case
from zar_ray.results.rows import ResultRow
from zar_ray.storage import Storage
from zar_ray.video.corruptions import Corruption
from zar_ray.video.decoding import Resize
from zar_ray.video.options import Decoder, Resizer, ViewConfig
from zar_ray.video.plans import ViewPlan, plan_video, unite
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import Preprocessing, short_side_for

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# Where a video stands in a run with stream methods, counted over all its passes; null in others.
POSITION = pa.field("position", pa.int64())

# Which of the run's models still lack a row of a video.
MODELS = pa.field("models", pa.list_(pa.int32()), nullable=False)

# Packs of stored features that were read for a video, as SPACEKEY/NAME.
FEATURE_PACKS = pa.field("feature_packs", pa.list_(pa.string()))

# What some of a video's models look at: frames resized as they want them, or stored features of one's images.
INPUT = pa.struct(
    [
        pa.field("models", pa.list_(pa.int32())),
        pa.field("pixels", pa.large_binary()),
        pa.field("shape", pa.list_(pa.int32(), 4)),
        pa.field("embeddings", pa.large_binary()),
        pa.field("dimensions", pa.int32()),
    ]
)

# What a video's file holds, and the models whose stores are to be told.
CONTENT = pa.field(
    "content",
    pa.struct(
        [
            *(("hash", pa.string()), ("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())),
            ("models", pa.list_(pa.int32())),
        ]
    ),
)

# Between the stages: one row a video, with its distinct resized frames and what is known of it.
DECODED_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        CLASS_SETS,
        RIGHT_IDS,
        MODELS,
        pa.field("frames", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("decoder", pa.string()),
        pa.field("inputs", pa.list_(INPUT)),
        CONTENT,
        pa.field("feature_uses", pa.list_(pa.string())),
        pa.field("feature_notes", pa.list_(pa.string())),
        FEATURE_PACKS,
        pa.field("seconds_decode", pa.float64()),
        pa.field("warning", pa.string()),
        pa.field("error", pa.string()),
        pa.field("error_stage", pa.string()),
        POSITION,
    ]
)

# With a worker's first block: how long it took to load the models.
SECONDS_LOAD = pa.field("seconds_load", pa.float64())

# After them: what the driver counts; the results themselves are in the run folder by then.
STATUS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("failed", pa.bool_(), nullable=False),
        pa.field("feature_uses", pa.list_(pa.string())),
        pa.field("feature_notes", pa.list_(pa.string())),
        FEATURE_PACKS,
        SECONDS_LOAD,
    ]
)

FeatureUse = Literal["read", "computed", "replaced"]
"""How a video's features came about where there is a store: from it, or for it, in place of what could not be used."""


@dataclass(frozen=True)
class ModelViews:
    """What decoding must know of a model: which views its settings plan, over which pixels.

    Attributes:
        fingerprint: A hash of its weights.
        precision: Its image encoder's precision.
        preprocessing: Its input size and normalisation.
        of_settings: The views of each setting, and the seed that they are planned with.
        needs_views: Whether any of its cases looks at other views than the evaluation view.
        corruption: What is done to the frames that it sees.
    """

    fingerprint: str
    precision: Precision
    preprocessing: Preprocessing
    of_settings: tuple[tuple[ViewConfig, int], ...]
    needs_views: bool
    corruption: Corruption | None = None

    def plans(self, video_id: str, info: VideoInfo) -> tuple[ViewPlan, ...]:
        """A video's views under each setting, over the images of all: what is decoded and encoded of it, once.

        Raises:
            VideoError: The video has no frames or no size (stage ``plan``).
        """
        distinct = tuple(dict.fromkeys(self.of_settings))
        united = unite(
            [
                plan_video(video_id, info, views, self.preprocessing, seed, needs_views=self.needs_views)
                for views, seed in distinct
            ]
        )
        by_key = dict(zip(distinct, united, strict=True))
        return tuple(by_key[key] for key in self.of_settings)

    @property
    def resize(self) -> Resize:
        """How frames become its pixels; all settings share it."""
        side = short_side_for(self.of_settings[0][0], self.preprocessing)
        return Resize(side, self.preprocessing.scaling, self.corruption)

    @property
    def frames_named(self) -> int:
        """The most frames that the plans of a video name."""
        named = 0
        for views, _ in dict.fromkeys(self.of_settings):
            named += views.eval_frames * int(views.eval_views.partition("x")[0])
            if self.needs_views:
                named += views.frames * views.views_per_rate * len(views.rates)
        return named


@dataclass(frozen=True)
class JobSpec:
    """What every worker of a run is told.

    Attributes:
        models: The models, as decoding sees them: one that is shown several corruptions is there once for each.
        labels: What each is called in result rows.
        settings: What each setting is called there.
        class_sets: The candidate classes of each class set.
        held_out: The classes that were held out of all of them, which right ids beyond a class set's count on in.
        multi_label: Whether a video may show several classes.
        cases: The cases, one a class set, model, method and setting; what settings have in common is one case.
        storage: The run's folder, which workers add finished rows to.
        decoder: Which decoder is asked for.
        decode_timeout: Seconds a video may take to decode.
        resizer: Whose kernel resizes.
        features: Where image features are kept, if they are.
        streams: The stream methods, for whose sake videos come one by one, in order, to one worker.
        order: That order; of a run whose streams want several, each has a pass over the videos, and such a spec.
        carried: Of a pass under one corruption after another, which of its cases go on from which of the pass before,
            by that one's id.
        batch_size: Videos that are adapted to at a time.
        corruption_seed: Seed of what corruptions draw.
    """

    models: tuple[ModelViews, ...]
    labels: tuple[str, ...]
    settings: tuple[str, ...]
    class_sets: tuple[tuple[str, ...], ...]
    multi_label: bool
    cases: tuple[Case, ...]
    storage: Storage
    decoder: Decoder
    decode_timeout: float
    resizer: Resizer = "pil"
    features: str | None = None
    streams: tuple[str, ...] = ()
    order: StreamOrder = field(default_factory=StreamOrder)
    carried: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 8
    corruption_seed: int = 0
    held_out: tuple[str, ...] = ()

    def feature_store(self, model: int) -> FeatureStore | None:
        """Where a model's features are kept, if they are."""
        if self.features is None:
            return None
        views = self.models[model]
        space = feature_space(views.fingerprint, views.precision, self.decoder, views.preprocessing, self.resizer)
        if views.corruption is not None:
            space |= corrupted_space(views.corruption, self.corruption_seed)
        return FeatureStore(Storage(self.features), space, self.labels[model])

    def cases_of(self, models: Sequence[int]) -> list[Case]:
        """The cases of some models."""
        return [case for case in self.cases if case.model in models]


def worker_name() -> str:
    """Host and process, as result rows name them."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Failure:
    """Why a video has no decision, and at which stage."""

    message: str
    stage: str


def attempt(stage: str, work: Callable[[], _T]) -> _T | Failure:
    """Does something with one video, and turns what goes wrong into a failure, here and nowhere else in the job.

    Even what nobody foresaw must cost one video and not the job; it is logged with its traceback.

    Raises:
        DeviceLostError: The work was on a device that is lost, with which all videos would fail.
        StorageError: A store does not answer, or there is no room; no video's fault either.
    """
    try:
        return work()
    except VideoError as error:
        return Failure(str(error), error.stage)
    except MemoryError:
        return Failure("out of memory", stage)
    except (DeviceLostError, StorageError):
        raise
    except Exception as error:
        logger.exception("unforeseen failure while in stage %s", stage)
        return Failure(f"{type(error).__name__}: {' '.join(str(error).split())}", stage)


def facts_of(spec: JobSpec, case: Case) -> dict[str, Any]:
    """What result rows say of a case: its model, what was done to the frames, and its setting."""
    corruption = spec.models[case.model].corruption
    return {
        "model": spec.labels[case.model],
        "corruption": None if corruption is None else str(corruption),
        "setting": spec.settings[case.setting],
    }


def labels_of(spec: JobSpec, video: dict[str, Any], case: Case) -> dict[str, Any]:
    """What is right for a video under a case, and what other videos share with it."""
    ids = tuple(video["right_ids"][video["class_sets"].index(case.class_set)])
    known: dict[str, Any] = {"group": video["group"]}
    if spec.multi_label:
        return {**known, "labels": ids}
    if not ids:
        return known
    names = spec.class_sets[case.class_set]
    if ids[0] >= len(names):
        return {**known, "label": spec.held_out[ids[0] - len(names)]}
    return {**known, "label_id": ids[0], "label": names[ids[0]]}


def failed_rows(
    spec: JobSpec,
    video: dict[str, Any],
    failure: Failure,
    worker: str | None = None,
    cases: Sequence[Case] | None = None,
) -> list[ResultRow]:
    """The rows of a video that failed, one a case that it lacks: of the models it lacks, or of `cases` alone."""
    lacking = spec.cases_of(video["models"]) if cases is None else cases
    return [
        ResultRow.failed(
            video_id=str(video["video_id"]),
            case_id=case.case_id,
            method=case.method,
            **facts_of(spec, case),
            **labels_of(spec, video, case),
            error=failure.message,
            stage=failure.stage,
            frames=video.get("frames"),
            decoder=video.get("decoder"),
            seconds_decode=video.get("seconds_decode"),
            worker=worker,
            warning=video.get("warning"),
        )
        for case in lacking
        if case.class_set in video["class_sets"]
    ]
