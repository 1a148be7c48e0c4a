"""The two stages of the job: a video's frames in the CPU pool, its predictions in the model pool.

Both take and give Arrow tables of a few videos.  Whatever goes wrong with one video becomes a row with its error, so
that the others of its block go on; a video that kills its process is dealt with in `pipeline`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from zar_ray.adaptation.adapter import Case, VideoAdapter
from zar_ray.adaptation.methods import get_method
from zar_ray.config import AdaptationOptions, EvalConfig
from zar_ray.errors import VideoError
from zar_ray.evaluation.results import ResultRow, to_table
from zar_ray.evaluation.run_folder import write_part
from zar_ray.models.loading import load_model
from zar_ray.storage import Storage
from zar_ray.video.decoding import decode_video
from zar_ray.video.plans import ViewPlan, plan_views
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import Preprocessing

logger = logging.getLogger(__name__)

# Between the stages: a video's distinct resized frames, and what is known of it.
DECODED_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("label_id", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("decoder", pa.string()),
        pa.field("pixels", pa.large_binary()),
        pa.field("shape", pa.list_(pa.int32(), 4)),
        pa.field("seconds_decode", pa.float64()),
        pa.field("warning", pa.string()),
        pa.field("error", pa.string()),
        pa.field("error_stage", pa.string()),
    ]
)

# After them: what the driver counts; the results themselves are in the run folder by then.
STATUS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("failed", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ModelCard:
    """What the driver knows of the model without holding it.

    Attributes:
        name: The model's name.
        fingerprint: A hash of its weights.
        preprocessing: Its input size and normalisation.
        random_weights: Whether it is untrained.
    """

    name: str
    fingerprint: str
    preprocessing: Preprocessing
    random_weights: bool


@dataclass(frozen=True)
class JobSpec:
    """What every worker of a run is told.

    Attributes:
        options: The run's options.
        model: The model every replica must turn out to be.
        class_names: The K candidate classes.
        cases: The cases, one a method.
        storage: The run's folder, which workers add finished rows to.
        threads: CPU threads a model replica may use.
    """

    options: EvalConfig
    model: ModelCard
    class_names: tuple[str, ...]
    cases: tuple[Case, ...]
    storage: Storage
    threads: int


def plan_video(video_id: str, info: VideoInfo, options: AdaptationOptions, preprocessing: Preprocessing) -> ViewPlan:
    """The views that a run's methods need of a video."""
    plan = plan_views(video_id, info.frames, info.height, info.width, options.views, preprocessing, options.seed)
    return plan if any(get_method(name).needs_views for name in options.method) else plan.evaluation_only()


def load_card(options: EvalConfig) -> ModelCard:
    """Loads the model once, to learn what it is before a pool of workers loads it."""
    model = load_model(options)
    return ModelCard(model.name, model.fingerprint, model.preprocessing, model.random_weights)


def worker_name() -> str:
    """Host and process, as result rows name them."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class _Failure:
    message: str
    stage: str


@contextmanager
def _caught(stage: str, failures: list[_Failure]) -> Iterator[None]:
    """Turns what goes wrong with one video into a failure, here and nowhere else in the job.

    Even what nobody foresaw must cost one video and not the job; it is logged with its traceback.
    """
    try:
        yield
    except VideoError as error:
        failures.append(_Failure(str(error), error.stage))
    except MemoryError:
        failures.append(_Failure("out of memory", stage))
    except Exception as error:
        logger.exception("unforeseen failure while in stage %s", stage)
        failures.append(_Failure(f"{type(error).__name__}: {' '.join(str(error).split())}", stage))


@contextmanager
def _last_resort(seconds: float, spec: JobSpec, video: dict[str, Any]) -> Iterator[None]:
    """Ends this process if a decoder hangs in native code, where no deadline is looked at.

    The video's failure is written first, so that it is not tried again.
    """

    def give_up() -> None:
        failure = _Failure(f"decoding hung for more than {seconds:.0f} s and was killed", "decode")
        write_part(spec.storage, to_table(_failed_rows(spec, video, failure)))
        os._exit(70)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _failed_rows(spec: JobSpec, video: dict[str, Any], failure: _Failure) -> list[ResultRow]:
    return [
        ResultRow.failed(
            video_id=str(video["video_id"]),
            case_id=case.case_id,
            method=case.method,
            label_id=video.get("label_id"),
            label=video.get("label"),
            error=failure.message,
            stage=failure.stage,
            frames=video.get("frames"),
            decoder=video.get("decoder"),
            seconds_decode=video.get("seconds_decode"),
            worker=worker_name(),
            warning=video.get("warning"),
        )
        for case in spec.cases
    ]


def decode_block(block: pa.Table, spec: JobSpec) -> pa.Table:
    """Manifest rows to `DECODED_SCHEMA`: the frames each video's plan names, resized, each once."""
    torch.set_num_threads(1)
    rows = [_decode(row, spec) for row in block.to_pylist()]
    return pa.Table.from_pylist(rows, schema=DECODED_SCHEMA)


def _decode(row: dict[str, Any], spec: JobSpec) -> dict[str, Any]:
    options = spec.options
    known = VideoInfo(row["frames"], row["fps"], row["width"], row["height"], row["duration"], row["decoder"])
    video: dict[str, Any] = {
        "video_id": row["video_id"],
        "label_id": row["label_id"],
        "label": row["class_name"],
        "frames": known.frames,
        "width": known.width,
        "height": known.height,
        "decoder": known.decoder,
    }
    failures: list[_Failure] = []
    started = time.perf_counter()
    # The manifest's frame count is its decoder's: another one may count otherwise.
    decoder = known.decoder if options.decoder == "auto" else options.decoder
    with _caught("decode", failures), _last_resort(2 * options.decode_timeout + 5, spec, video):
        decoded = decode_video(
            row["path"],
            lambda info: plan_video(str(row["video_id"]), info, options, spec.model.preprocessing),
            spec.model.preprocessing.interpolation,
            decoder=decoder,
            expected=known,
            timeout=options.decode_timeout,
        )
        video |= {
            "decoder": decoded.info.decoder,
            "pixels": memoryview(decoded.frames).cast("B"),
            "shape": list(decoded.frames.shape),
            "warning": decoded.warning,
        }
    for failure in failures:
        video |= {"error": failure.message, "error_stage": failure.stage}
    video["seconds_decode"] = time.perf_counter() - started
    return video


class AdaptStage:
    """One worker of the model pool: holds a model replica, predicts, and writes the rows.

    Args:
        spec: The run.

    Raises:
        RuntimeError: The weights on this node are not the run's.
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
        self.adapter = VideoAdapter(model, spec.class_names, spec.options.method, spec.options, cases=spec.cases)

    def __call__(self, block: pa.Table) -> pa.Table:
        """`DECODED_SCHEMA` to `STATUS_SCHEMA`; the result rows of the block are one part of the run by then."""
        rows = [row for index in range(block.num_rows) for row in self._predict(block.slice(index, 1))]
        write_part(self.spec.storage, to_table(rows))
        ids = dict.fromkeys(row.video_id for row in rows)
        failed = {row.video_id for row in rows if row.error is not None}
        return pa.table({"video_id": list(ids), "failed": [video in failed for video in ids]}, schema=STATUS_SCHEMA)

    def _predict(self, one: pa.Table) -> list[ResultRow]:
        # to_pylist would copy the pixels: they are read in place.
        video = one.drop_columns(["pixels"]).to_pylist()[0]
        if video["error"] is not None:
            return _failed_rows(self.spec, video, _Failure(video["error"], video["error_stage"]))
        spec = self.spec
        failures: list[_Failure] = []
        rows: list[ResultRow] = []
        with _caught("adapt", failures):
            info = VideoInfo(video["frames"], 0.0, video["width"], video["height"], 0.0, video["decoder"])
            plan = plan_video(video["video_id"], info, spec.options, spec.model.preprocessing)
            pixels = np.frombuffer(one["pixels"].chunk(0)[0].as_buffer(), np.uint8).reshape(video["shape"])
            prediction = self.adapter(pixels, plan)
            rows = [
                ResultRow.from_decision(
                    video["video_id"],
                    case.case_id,
                    case.method,
                    case.decision,
                    label_id=video["label_id"],
                    label=video["label"],
                    images_encoded=prediction.images_encoded,
                    frames=video["frames"],
                    frames_decoded=video["shape"][0],
                    bytes_shipped=pixels.nbytes,
                    seconds_decode=video["seconds_decode"],
                    seconds_encode=prediction.encode_seconds,
                    seconds_adapt=case.seconds,
                    decoder=video["decoder"],
                    worker=worker_name(),
                    warning=video["warning"],
                )
                for case in prediction.cases
            ]
        return rows if not failures else _failed_rows(spec, video, failures[0])
