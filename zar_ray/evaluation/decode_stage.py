"""The first stage: a video's frames, in the CPU pool."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from zar_ray.evaluation.feature_store import FeatureStore, Missing, image_keys
from zar_ray.evaluation.spec import (
    COUNTED,
    DECODED_SCHEMA,
    MODELS,
    MODELS_SCHEMA,
    POSITION,
    Failure,
    JobSpec,
    caught,
    failed_rows,
    worker_name,
)
from zar_ray.results.folder import write_part
from zar_ray.results.rows import to_table
from zar_ray.video.decoding import Resize, decode_video
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import short_side_for


def decode_block(block: pa.Table, spec: JobSpec) -> pa.Table:
    """Manifest rows to `DECODED_SCHEMA`: the frames each video's plans name, resized, each once.

    Where there is a store that holds the features of all images of a plan, those stand in for the frames.
    """
    store = spec.feature_store()
    rows = [_prepare(row, spec, store) for row in block.to_pylist()]
    return pa.Table.from_pylist(rows, schema=DECODED_SCHEMA)


def _prepare(row: dict[str, Any], spec: JobSpec, store: FeatureStore | None) -> dict[str, Any]:
    known = VideoInfo(row["frames"], row["fps"], row["width"], row["height"], row["duration"], row["decoder"])
    video: dict[str, Any] = {
        "video_id": row["video_id"],
        "class_sets": row["class_sets"],
        "right_ids": row["right_ids"],
        "frames": known.frames,
        "width": known.width,
        "height": known.height,
        "decoder": known.decoder,
        POSITION.name: row.get(POSITION.name),
    }
    failures: list[Failure] = []
    started = time.perf_counter()
    with caught("decode", failures), _last_resort([spec], video):
        if store is not None:
            video |= _look_up(row["path"], known, spec, store, str(row["video_id"]))
        if video.get("embeddings") is None:
            video |= _decode(row["path"], known, spec, str(row["video_id"]))
    for failure in failures:
        video |= {"error": failure.message, "error_stage": failure.stage}
    video["seconds_decode"] = time.perf_counter() - started
    return video


def _look_up(path: str, known: VideoInfo, spec: JobSpec, store: FeatureStore, video_id: str) -> dict[str, Any]:
    """What the store has of a video's images, or the content to store them under."""
    content = store.content(path)
    found = store.read(content.hash, image_keys(spec.plans(video_id, known)[0]))
    if isinstance(found, Missing):
        why = found.detail if found.reason == "damaged" else None
        if content.stale:
            why = "the file has changed since its features were stored"
        if why is None:
            return {"content": content.hash, "feature_use": "computed"}
        note = f"features computed anew ({why})"
        return {"content": content.hash, "feature_use": "replaced", "feature_note": note}
    facts = found.facts
    if (facts.frames, facts.width, facts.height) != (known.frames, known.width, known.height):
        # Decoding says what does not fit.
        return {}
    return {
        "embeddings": found.embeddings.tobytes(),
        "dimensions": found.embeddings.shape[1],
        "decoder": facts.decoder,
        "warning": facts.warning,
        "feature_use": "read",
    }


def _decode(path: str, known: VideoInfo, spec: JobSpec, video_id: str) -> dict[str, Any]:
    decoded = decode_video(
        path,
        lambda info: spec.plans(video_id, info)[0],
        spec.model.preprocessing.interpolation,
        decoder=spec.options.decoder,
        expected=known,
        timeout=spec.options.decode_timeout,
    )
    return {
        "decoder": decoded.info.decoder,
        # as bytes: of a memoryview Arrow 25 keeps the buffer for ever
        "pixels": decoded.frames.tobytes(),
        "shape": list(decoded.frames.shape),
        "warning": decoded.warning,
    }


def decode_for_models(block: pa.Table, specs: Sequence[JobSpec]) -> pa.Table:
    """Manifest rows with `MODELS` to `MODELS_SCHEMA`: each video decoded once for all models that lack it.

    A video has a row for each way that its frames are resized, with the models that take them so.
    """
    rows = [of_video for row in block.to_pylist() for of_video in _prepare_for(row, specs)]
    return pa.Table.from_pylist(rows, schema=MODELS_SCHEMA)


def _prepare_for(row: dict[str, Any], specs: Sequence[JobSpec]) -> list[dict[str, Any]]:
    known = VideoInfo(row["frames"], row["fps"], row["width"], row["height"], row["duration"], row["decoder"])
    wanted = {number: specs[number] for number in row[MODELS.name]}
    ways: dict[Resize, list[int]] = {}
    for number, spec in wanted.items():
        ways.setdefault(_resize_of(spec), []).append(number)
    video: dict[str, Any] = {
        **{name: row[name] for name in ("video_id", "class_sets", "right_ids", "frames", "width", "height", "decoder")},
        MODELS.name: list(wanted),
        COUNTED.name: True,
    }
    failures: list[Failure] = []
    started = time.perf_counter()
    decoded = None
    with caught("decode", failures), _last_resort(list(wanted.values()), video):
        # Which frames are named depends on the views and the seed, which all models have in common.
        first = next(iter(wanted.values()))
        decoded = decode_video(
            row["path"],
            lambda info: first.plans(str(row["video_id"]), info)[0],
            first.model.preprocessing.interpolation,
            decoder=first.options.decoder,
            expected=known,
            timeout=first.options.decode_timeout,
            also=[*ways][1:],
        )
    seconds = time.perf_counter() - started
    if decoded is None:
        (failure,) = failures
        return [{**video, "error": failure.message, "error_stage": failure.stage, "seconds_decode": seconds}]
    return [
        {
            **video,
            "decoder": decoded.info.decoder,
            # as bytes: of a memoryview Arrow 25 keeps the buffer for ever
            "pixels": frames.tobytes(),
            "shape": list(frames.shape),
            "warning": decoded.warning,
            "seconds_decode": seconds,
            MODELS.name: numbers,
            COUNTED.name: number == 0,
        }
        for number, (numbers, frames) in enumerate(zip(ways.values(), (decoded.frames, *decoded.also), strict=True))
    ]


def _resize_of(spec: JobSpec) -> Resize:
    preprocessing = spec.model.preprocessing
    return Resize(short_side_for(spec.options.views, preprocessing), preprocessing.interpolation)


@contextmanager
def _last_resort(specs: Sequence[JobSpec], video: dict[str, Any]) -> Iterator[None]:
    """Ends this process if a decoder hangs in native code, where no deadline is looked at.

    The video's failure is written to all its runs first, so that it is not tried again.
    """
    seconds = 2 * specs[0].options.decode_timeout + 5

    def give_up() -> None:
        failure = Failure(f"decoding hung for more than {seconds:.0f} s and was killed", "decode")
        for spec in specs:
            write_part(spec.storage, to_table(failed_rows(spec, video, failure, worker_name())))
        os._exit(70)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
