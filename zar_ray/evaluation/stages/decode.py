"""The first stage: a video's frames, in the CPU pool."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import pyarrow as pa
import ray

from zar_ray.errors import VideoError
from zar_ray.evaluation.attempts import Attempts, Hangs, holding, tried_before
from zar_ray.evaluation.feature_store import file_state, image_keys
from zar_ray.evaluation.packs import DamagedError
from zar_ray.evaluation.spec import (
    CONTENT,
    DECODED_SCHEMA,
    FEATURE_PACKS,
    MODELS,
    POSITION,
    Failure,
    JobSpec,
    attempt,
    failed_rows,
    worker_name,
)
from zar_ray.results.folder import write_part
from zar_ray.results.rows import to_table
from zar_ray.video.decoding import Resize, decode_video
from zar_ray.video.files import VideoFile
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import resized_size


class DecodeStage:
    """Makes of manifest rows the frames that their models' plans name, resized, each once.

    Where there is a store that holds the features of all images of a model's plan, those stand in for its frames.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.stores = [spec.feature_store(number) for number in range(len(spec.models))]
        self._hung: set[str] = set()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Manifest rows with `MODELS` to `DECODED_SCHEMA`, a row a video."""
        self._hung = Hangs(self.spec.storage.path()).known() if tried_before() else set()
        return pa.Table.from_pylist([self.decode(row) for row in block.to_pylist()], schema=DECODED_SCHEMA)

    def largest(self, videos: pa.Table) -> int:
        """Bytes that the frames of the largest of some manifest rows take at most; what takes more is refused."""
        ways = {model.resize: model.frames_named for model in self.spec.models}
        # Of a million videos few differ in size, and the longest of a size takes most.
        sizes = videos.group_by(["height", "width"]).aggregate([("frames", "max")])
        most = DecodeLimits().decoded_bytes
        return max(
            sum(
                min(most, min(frames, named) * prod(resized_size(height, width, way.short_side, way.scaling.mode)) * 3)
                for way, named in ways.items()
            )
            for height, width, frames in zip(*(column.to_pylist() for column in sizes.columns), strict=True)
        )

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """One manifest row as a row of `DECODED_SCHEMA`; a video that cannot be decoded has its error there."""
        known = VideoInfo(row["frames"], row["fps"], row["width"], row["height"], row["duration"], row["decoder"])
        video: dict[str, Any] = {
            **{name: row[name] for name in ("video_id", "group", "class_sets", "right_ids", MODELS.name)},
            **{name: row[name] for name in ("frames", "width", "height", "decoder")},
            POSITION.name: row.get(POSITION.name),
        }

        file = VideoFile(row["path"], row["member"], row["offset"], row["size"])

        def inputs() -> list[dict[str, Any]]:
            stored = self._look_up(file, known, video)
            if not (ways := self._ways(video, stored)):
                return stored
            os.fspath(file)  # fetching it has time of its own
            with self._last_resort(video):
                read = self.read(file, known, video, ways)
            if (content := video.get(CONTENT.name)) is not None and read:
                now = file_state(file)
                # Features of what it holds now must not be stored for what it held when it was hashed.
                video[CONTENT.name] = content if now._asdict().items() <= content.items() else None
            return [*stored, *read]

        started = time.perf_counter()
        with file:
            found = attempt("decode", inputs)
        if isinstance(found, Failure):
            video |= {"error": found.message, "error_stage": found.stage}
        else:
            video["inputs"] = found
        video["seconds_decode"] = time.perf_counter() - started
        return video

    def _look_up(self, file: VideoFile, known: VideoInfo, video: dict[str, Any]) -> list[dict[str, Any]]:
        """Inputs of the models whose features are stored; notes what becomes of the others'."""
        found, uses, notes, packs = [], [], [], []
        content, untold = None, []
        for number in video[MODELS.name]:
            store = self.stores[number]
            if store is None:
                continue
            content = store.content(file, content)
            why = "the file has changed since its features were stored" if content.stale else None
            try:
                plan, *_ = self.spec.models[number].plans(video["video_id"], known)
                stored = store.read(store.entry_of(content.hash, video["video_id"]), image_keys(plan))
            except DamagedError as error:
                stored, why = None, why or str(error)
            if stored is None:
                uses.append("computed" if why is None else "replaced")
                notes += [] if why is None else [f"features computed anew ({why})"]
                untold.append(number)
                continue
            facts = stored.facts
            if (facts.frames, facts.width, facts.height) != (known.frames, known.width, known.height):
                # Decoding says what does not fit.
                continue
            video |= {"decoder": facts.decoder, "warning": facts.warning}
            uses.append("read")
            packs += stored.packs
            untold += [] if content.known else [number]
            embeddings = stored.embeddings
            found.append({"models": [number], "embeddings": embeddings.tobytes(), "dimensions": embeddings.shape[1]})
        video |= {"feature_uses": uses, "feature_notes": notes, FEATURE_PACKS.name: packs}
        if content is not None and content.file is not None:
            video[CONTENT.name] = {"hash": content.hash, **content.file._asdict(), "models": untold}
        return found

    def _ways(self, video: dict[str, Any], stored: list[dict[str, Any]]) -> dict[Resize, list[int]]:
        """The models that are still without inputs, by how their frames are resized."""
        served = {number for one in stored for number in one["models"]}
        ways: dict[Resize, list[int]] = {}
        for number in video[MODELS.name]:
            if number not in served:
                ways.setdefault(self.spec.models[number].resize, []).append(number)
        return ways

    def read(
        self, file: VideoFile, known: VideoInfo, video: dict[str, Any], ways: dict[Resize, list[int]]
    ) -> list[dict[str, Any]]:
        """Inputs of models, by how their frames are resized: the file is opened once."""
        # Which frames are named depends on the views and the seed, which all models have in common.
        first, *others = ways
        planner = self.spec.models[ways[first][0]]
        decoded = decode_video(
            file,
            lambda info: planner.plans(video["video_id"], info)[0],
            first.scaling,
            decoder=self.spec.decoder,
            expected=known,
            timeout=self.spec.decode_timeout,
            also=others,
            resizer=self.spec.resizer,
            corruption=first.corruption,
            draws=(self.spec.corruption_seed, video["video_id"]),
        )
        video |= {"decoder": decoded.info.decoder, "warning": decoded.warning}
        return [
            # as bytes: of a memoryview Arrow 25 keeps the buffer for ever
            {"models": models, "pixels": frames.tobytes(), "shape": list(frames.shape)}
            for models, frames in zip(ways.values(), (decoded.frames, *decoded.also), strict=True)
        ]

    @contextmanager
    def _last_resort(self, video: dict[str, Any]) -> Iterator[None]:
        """Ends this process if a decoder hangs in native code, where no deadline is looked at.

        The video's failure is written to the run first, so that it is not tried again, neither with its block.

        Raises:
            VideoError: A process that had the block before hung at this video.
        """
        seconds = 2 * self.spec.decode_timeout + 5
        failure = Failure(f"decoding hung for more than {seconds:.0f} s and was killed", "decode")
        if video["video_id"] in self._hung:
            raise VideoError(failure.message, stage="decode")

        def give_up() -> None:
            try:
                write_part(self.spec.storage, to_table(failed_rows(self.spec, video, failure, worker_name())))
                if ray.is_initialized():
                    Hangs(self.spec.storage.path()).add(video["video_id"])
            finally:
                os._exit(70)

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def decode_block(block: pa.Table, stage: DecodeStage, attempts: Attempts | None = None) -> pa.Table:
    """A stage's work as a function: of an object that can be called Ray Data would make a pool of actors."""
    with holding(attempts, "decode", block):
        return stage(block)
