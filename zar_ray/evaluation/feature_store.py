"""Image features kept between runs, so that a run whose images are stored neither decodes nor encodes.

DIR/SPACEKEY/space.json      what the features in this folder depend on
DIR/SPACEKEY/*.pack          the features of many videos each, see `zar_ray.evaluation.packs`

Each entry is a Parquet file of one video, one row an image. Nothing that is there is ever changed: what several workers
or runs write of one video adds up when it is read, the newest first. Nothing is trusted that is read: what is not
exactly what was written is reported as damaged, and costs encoding it again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zar_ray.errors import VideoError
from zar_ray.evaluation.packs import RECORD, DamagedError, Entry, GoneError, Index, Packs, PackWriter, digest, words
from zar_ray.models.options import Precision
from zar_ray.options.base import fingerprint
from zar_ray.provenance import package_version
from zar_ray.storage import Storage
from zar_ray.video.files import VideoFile
from zar_ray.video.options import Decoder, Resizer
from zar_ray.video.streams import reason_of

if TYPE_CHECKING:
    from zar_ray.video.corruptions import Corruption
    from zar_ray.video.plans import ViewPlan
    from zar_ray.video.transforms import Preprocessing

# To be raised whenever the same space, video and image would no longer mean the same features.
LAYOUT = 3

SPACE = "space.json"
"""File in a space's folder that describes it."""

_HEADER = b"zar_ray.features"
_LOOK_AGAIN = 60.0  # seconds before a process lists a store again because packs have gone

# By a space's folder, what this process has read of it since it was pinned, and when.
_newer: dict[str, tuple[float, Index]] = {}


def feature_space(
    model: str, precision: Precision, decoder: Decoder, preprocessing: Preprocessing, resizer: Resizer = "pil"
) -> dict[str, Any]:
    """All that an image's features depend on in this environment, besides the video and the image, as JSON values.

    The short side that a checkpoint was trained with is not part of it: every image names its own. Of the model it is a
    hash of the weights that counts, of the decoder and of whose
    kernel resizes the run's choice.
    """
    shape = preprocessing.resize_mode, preprocessing.fill
    return {
        "model": model,
        "precision": precision,
        "decoder": f"{decoder} {package_version('torchcodec')}" if decoder.startswith("torchcodec") else decoder,
        "decord": package_version("decord") or "none",
        "pyav": package_version("av") or "none",
        "input_size": preprocessing.input_size,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        **({} if shape == ("shortest", 0) else {"resize_mode": shape[0], "fill": shape[1]}),
        "resize": resizer if resizer == "pil" else f"torch {package_version('torch')}",
        "layout": LAYOUT,
    }


def corrupted_space(corruption: Corruption, seed: int) -> dict[str, Any]:
    """What features of corrupted frames depend on besides, as JSON values; see `FeatureStore.entry_of`, too."""
    return {
        "corruption": str(corruption),
        "corruption_seed": seed,
        **{name: package_version(name) or "none" for name in ("numpy", "pillow")},
    }


class ImageKey(NamedTuple):
    """What is encoded at once, within one video: a crop of a resized frame.

    Attributes:
        frame: The frame's index.
        short_side: Short side of the resized frame, in pixels.
        top: Offset of the crop in it.
        left: Offset of the crop in it.
        size: Side of the crop.
    """

    frame: int
    short_side: int
    top: int
    left: int
    size: int


def image_keys(plan: ViewPlan) -> tuple[ImageKey, ...]:
    """The keys of a plan's I distinct images, one a row of ``plan.images``."""
    frames, boxes = plan.frames.tolist(), plan.boxes
    return tuple(
        ImageKey(frames[frame], plan.short_side, boxes[box].top, boxes[box].left, boxes[box].size)
        for frame, box in plan.images.tolist()
    )


class VideoFacts(NamedTuple):
    """What a result row says of a video that only decoding it tells.

    Attributes:
        decoder: What gave the pixels, such as ``pyav``.
        warning: What is wrong with the video although it could be read.
        frames: N, its frames.
        width: Width of the upright picture in pixels.
        height: Its height.
    """

    decoder: str
    warning: str | None
    frames: int
    width: int
    height: int


class HashedFile(NamedTuple):
    """A file, and what tells whether it has changed.

    Attributes:
        path: Hash of its absolute path or URI, 32 hexadecimal digits.
        size: Its bytes.
        mtime_ns: When it was written to.
    """

    path: str
    size: int
    mtime_ns: int


class VideoContent(NamedTuple):
    """What a video file holds now.

    Attributes:
        hash: Hash of its bytes, 32 hexadecimal digits.
        stale: Whether features are stored of what the file held before, which no longer count for it.
        file: The file as it was hashed; None if it was written to meanwhile, and the hash is of no content.
        known: Whether the store knew.
    """

    hash: str
    stale: bool
    file: HashedFile | None
    known: bool


@dataclass(frozen=True, eq=False)
class Stored:
    """Features of a video's images: I keys, float32 (I, D) as they were written, and the facts; from which packs."""

    keys: tuple[ImageKey, ...]
    embeddings: np.ndarray
    facts: VideoFacts
    packs: tuple[str, ...] = ()

    def only(self, rows: Sequence[int]) -> Stored:
        """Some of the images, in another order."""
        keys = tuple(self.keys[row] for row in rows)
        return Stored(keys, self.embeddings[np.array(rows, dtype=np.int64)], self.facts)

    def updated(self, new: Stored) -> Stored:
        """The new images with those of this that they lack, if both were decoded alike."""
        facts = new.facts._replace(warning=new.facts.warning or self.facts.warning)
        dimensions = self.embeddings.shape[1] == new.embeddings.shape[1]
        if not dimensions or self.facts._replace(warning=None) != new.facts._replace(warning=None):
            return new
        present = set(new.keys)
        kept = self.only([row for row, key in enumerate(self.keys) if key not in present])
        return Stored(new.keys + kept.keys, np.concatenate([new.embeddings, kept.embeddings]), facts)


class FeatureStore:
    """The features of one `feature_space`, in a folder that many processes and runs share, and that may hold others.

    Lookups see what is there now, or, after `pin`, what was there then; a store that is sent to another process takes
    what is pinned along, in memory that processes of a node share.

    Args:
        storage: The folder.
        space: The space.
        model: What people call its model.
    """

    def __init__(self, storage: Storage, space: Mapping[str, Any], model: str = "") -> None:
        self.storage = storage
        self.space = space
        self.model = model
        self.key = fingerprint(space)
        self.packs = Packs(storage.child(self.key))
        self._pinned: tuple[float, Index] | None = None
        self._seen: Index | None = None
        self._writer = PackWriter(self.packs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}

    def prepare(self) -> None:
        """Writes the space's description; called before the work starts, it shows a folder that cannot be written.

        Raises:
            RunError: The folder cannot be written.
        """
        text = json.dumps({**self.space, "called": self.model}, indent=2, ensure_ascii=False) + "\n"
        self.packs.storage.write(SPACE, text.encode())

    def pin(self) -> list[str]:
        """Reads the index of what is stored, which lookups go by from now on.

        Returns:
            A line on each pack that is damaged.

        Raises:
            RunError: The folder cannot be listed.
        """
        now = time.time()
        index, damaged = self.packs.index()
        self._pinned = (now, index)
        return damaged

    def content(self, file: VideoFile, hashed: VideoContent | None = None) -> VideoContent:
        """Hashes a file's bytes, unless it is as it was at a hash that is stored.

        A video in a tar file has the hash of its own bytes, and so the features of the same video on a disk.

        Args:
            file: The file.
            hashed: What another store has just said of it.

        Raises:
            VideoError: The file cannot be read (stage ``open``).
        """
        index, place = self._index(), _place(file)
        _, known = next(index.newest_first("path", place), (None, None))
        before = None if known is None else known["video"].tobytes().hex()
        state = file_state(file)
        if known is not None and before is not None and (known["size"], known["mtime_ns"]) == state[1:]:
            return VideoContent(before, False, state, True)
        if hashed is None:
            found = _hash_of(file)
            hashed = VideoContent(found, False, state if file_state(file) == state else None, False)
        return hashed._replace(stale=before not in (None, hashed.hash), known=False)

    def has(self, files: Iterable[VideoFile]) -> np.ndarray:
        """Which files something is stored of, by their places alone: bool, one a file."""
        places = b"".join(map(_place, files))
        return self._index().has("path", np.frombuffer(places, "<u8").reshape(-1, 2))

    def entry_of(self, content: str, video_id: str) -> str:
        """What a video's features are stored under: the hash of its content, with its id where that keys draws."""
        return digest(f"{content} {video_id}".encode()).hex() if "corruption" in self.space else content

    def read(self, video_hash: str, keys: Sequence[ImageKey]) -> Stored | None:
        """Looks a video's images up.

        Args:
            video_hash: What `entry_of` says of the video's `VideoContent.hash`.
            keys: The I images, in any order.

        Returns:
            Their features in the order asked for; None where not all of them are there.

        Raises:
            DamagedError: What is stored of the video is not what was written for it and this space.
        """
        try:
            return self._read(self._index(), video_hash, keys)
        except GoneError:
            # Merged with others, or deleted, since the index was read.
            try:
                return self._read(self._index(again=True), video_hash, keys)
            except GoneError:
                return None

    def _read(self, index: Index, video_hash: str, keys: Sequence[ImageKey]) -> Stored | None:
        found, damaged, packs = None, None, []
        for pack, record in index.newest_first("video", bytes.fromhex(video_hash)):
            if not record["length"]:
                continue
            try:
                entry = self._decoded(self.packs.entry(pack, record), video_hash, pack)
            except DamagedError as error:
                damaged = error
                continue
            found = entry if found is None else entry.updated(found)
            packs.append(f"{self.key}/{pack}")
            row_of = {key: row for row, key in enumerate(found.keys)}
            if row_of.keys() >= set(keys):
                return replace(found.only([row_of[key] for key in keys]), packs=tuple(packs))
        if damaged is not None:
            raise damaged
        return None

    def write(self, videos: Sequence[tuple[str, HashedFile | None, Stored | None]]) -> None:
        """Adds images to those that are stored; each may be stored already, and then the new one is read.

        What is stored counts no more if it was decoded otherwise than the new facts say: no video's features mix two
        decoders. A video keeps an earlier warning if it has no new one.

        Args:
            videos: Of each the hash of its content, its file, and None: to say what the file holds; and of each what
                `entry_of` says of that, its file or None, and its images.

        Raises:
            RunError: The store cannot be written.
        """
        if videos:
            self._writer.add([self._entry(*video) for video in videos])

    def merge(self, limit: float) -> int:
        """Puts small packs together, up to so many bytes; see `Packs.merge`."""
        return self.packs.merge(self._folded, limit)

    def _folded(self, entries: Sequence[bytes]) -> bytes:
        """One entry of several of a video, the oldest first."""
        first, *others = (self._decoded(entry) for entry in entries)
        for other in others:
            first = first.updated(other)
        header = json.loads(pq.read_schema(pa.BufferReader(entries[0])).metadata[_HEADER])
        return self._encoded(header["video"], first)

    def _entry(self, video_hash: str, file: HashedFile | None, new: Stored | None) -> Entry:
        record = np.zeros(1, RECORD)[0]
        record["video"], record["stamp"] = words(bytes.fromhex(video_hash)), time.time_ns()
        if file is not None:
            record["path"], record["size"], record["mtime_ns"] = words(bytes.fromhex(file.path)), *file[1:]
        return Entry(record, b"" if new is None else self._encoded(video_hash, new))

    def _encoded(self, video_hash: str, entry: Stored) -> bytes:
        header = {"space": self.key, "video": video_hash, "facts": entry.facts}
        keys = np.array(entry.keys, np.int32).reshape(-1, len(ImageKey._fields))
        table = pa.table(
            {
                **{name: keys[:, column] for column, name in enumerate(ImageKey._fields)},
                "embedding": pa.FixedSizeListArray.from_arrays(entry.embeddings.reshape(-1), entry.embeddings.shape[1]),
            },
            metadata={_HEADER: json.dumps(header)},
        )
        buffer = io.BytesIO()
        # Floats compress only with their bytes apart; those of a bfloat16 encoder are half zeros.
        pq.write_table(table, buffer, compression="zstd", use_dictionary=False, use_byte_stream_split=True)
        return buffer.getvalue()

    def _decoded(self, content: bytes, video_hash: str | None = None, pack: str = "") -> Stored:
        """What `_encoded` made, of this video and in this space."""
        table = pq.read_table(pa.BufferReader(content), use_threads=False)
        header = json.loads(table.schema.metadata[_HEADER])
        if header["space"] != self.key or video_hash not in (None, header["video"]):
            raise DamagedError(f"{self.packs.storage.path(pack)}: damaged (belongs to another video or space)")
        *keys, embeddings = table.columns
        values = embeddings.combine_chunks().flatten().to_numpy()
        return Stored(
            tuple(map(ImageKey, *(column.to_pylist() for column in keys))),
            values.reshape(len(table), embeddings.type.list_size),
            VideoFacts(*header["facts"]),
        )

    def _index(self, again: bool = False) -> Index:
        if self._pinned is None:
            self._seen, _ = self.packs.index(self._seen)
            return self._seen
        place, now = self.packs.storage.path(), time.time()
        newest = max(_newer.get(place, self._pinned), self._pinned, key=lambda one: one[0])
        if again and (newest is self._pinned or now - newest[0] >= _LOOK_AGAIN):
            _newer[place] = newest = (now, self.packs.index(newest[1])[0])
        return newest[1]


def file_state(file: VideoFile) -> HashedFile:
    """A file as it is now.

    Raises:
        VideoError: There is none that could be read (stage ``open``).
        StorageError: The store that it is in does not answer.
    """
    state = file.state()
    return HashedFile(_place(file).hex(), state["size"], state["mtime_ns"])


def _hash_of(file: VideoFile) -> str:
    try:
        with Path(file).open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        what = "no such file" if missing else f"cannot be read: {reason_of(error)}"
        raise VideoError(what, stage="open") from error


def _place(file: VideoFile) -> bytes:
    return digest(os.fsencode(str(file)))
