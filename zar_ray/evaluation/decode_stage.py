"""The first stage: a video's frames, in the CPU pool."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import torch

from zar_ray.evaluation.results import to_table
from zar_ray.evaluation.run_folder import write_part
from zar_ray.evaluation.spec import DECODED_SCHEMA, Failure, JobSpec, caught, failed_rows, plan_video
from zar_ray.video.decoding import decode_video
from zar_ray.video.reading import VideoInfo


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
    failures: list[Failure] = []
    started = time.perf_counter()
    with caught("decode", failures), _last_resort(2 * options.decode_timeout + 5, spec, video):
        decoded = decode_video(
            row["path"],
            lambda info: plan_video(str(row["video_id"]), info, options, spec.model.preprocessing, spec.needs_views),
            spec.model.preprocessing.interpolation,
            decoder=options.decoder,
            expected=known,
            timeout=options.decode_timeout,
        )
        video |= {
            "decoder": decoded.info.decoder,
            "pixels": decoded.frames.reshape(-1).data,
            "shape": list(decoded.frames.shape),
            "warning": decoded.warning,
        }
    for failure in failures:
        video |= {"error": failure.message, "error_stage": failure.stage}
    video["seconds_decode"] = time.perf_counter() - started
    return video


@contextmanager
def _last_resort(seconds: float, spec: JobSpec, video: dict[str, Any]) -> Iterator[None]:
    """Ends this process if a decoder hangs in native code, where no deadline is looked at.

    The video's failure is written first, so that it is not tried again.
    """

    def give_up() -> None:
        failure = Failure(f"decoding hung for more than {seconds:.0f} s and was killed", "decode")
        write_part(spec.storage, to_table(failed_rows(spec, video, failure)))
        os._exit(70)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
