"""Image features kept between runs, so that a run whose images are stored neither decodes nor encodes.

DIR/
hashes/HH/PATHHASH.json      a video file's content hash, with the size and time it was taken at
SPACEKEY/space.json          what the features in this folder depend on
SPACEKEY/HH/HASH.features    the features of one video, one row an image: a checksum, then a Parquet file

Files are replaced whole (`zar_ray.storage.Storage.write`): of two workers that write one video at once, the later
may lose the earlier one's additions, which costs encoding them again, but a reader always finds a finished file.
Nothing is trusted that is read: a file that is not exactly what was written is reported as damaged.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zar_ray.errors import RunError, StorageError, VideoError
from zar_ray.models.options import Precision
from zar_ray.options.base import fingerprint
from zar_ray.provenance import package_version
from zar_ray.storage import Storage
from zar_ray.video.files import VideoFile
from zar_ray.video.options import Decoder, Resizer
from zar_ray.video.streams import reason_of

if TYPE_CHECKING:
    from zar_ray.video.plans import ViewPlan
    from zar_ray.video.transforms import Preprocessing

# To be raised whenever the same space, video and image would no longer mean the same features.
LAYOUT = 2

_HEADER = b"zar_ray.features"
_DIGITS = 32


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


class VideoContent(NamedTuple):
    """What a video file holds now.

    Attributes:
        hash: Hash of its bytes, 32 hexadecimal digits.
        stale: Whether features are stored of what the file held before, which no longer count for it.
    """

    hash: str
    stale: bool


@dataclass(frozen=True, eq=False)
class Stored:
    """Features of a video's images: I keys, float32 (I, D) as they were written, and the facts."""

    keys: tuple[ImageKey, ...]
    embeddings: np.ndarray
    facts: VideoFacts

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


class DamagedError(Exception):
    """A file that cannot be used, and that the next write replaces; the message names it, in one line."""


class FeatureStore:
    """The features of one `feature_space`, in a folder that many processes and runs share, and that may hold others."""

    def __init__(self, storage: Storage, space: Mapping[str, Any]) -> None:
        self.storage = storage
        self.space = space
        self.key = fingerprint(space)

    def prepare(self) -> None:
        """Writes the space's description; called before the work starts, it shows a folder that cannot be written.

        Raises:
            RunError: The folder cannot be written.
        """
        text = json.dumps(self.space, indent=2, ensure_ascii=False) + "\n"
        self.storage.write(f"{self.key}/space.json", text.encode())

    def content(self, video: VideoFile | str | os.PathLike[str]) -> VideoContent:
        """Hashes a file's bytes, unless it has the size and modification time of its last hash.

        A video in a tar file has the hash of its own bytes, and so the features of the same video on a disk.

        Raises:
            VideoError: The file cannot be read (stage ``open``).
            RunError: The store cannot be written.
        """
        file = video if isinstance(video, VideoFile) else VideoFile(video)
        place = _hash(os.fsencode(str(file))).hexdigest()
        place = f"hashes/{place[:2]}/{place}.json"
        try:
            known = json.loads(self._read(place) or b"{}")
        except DamagedError:
            known = {}
        before = known.pop("hash", None)
        try:
            state = file.state()
            if known == state:
                return VideoContent(before, stale=False)
            with Path(file).open("rb") as stream:
                digest = hashlib.file_digest(stream, _hash).hexdigest()
            settled = file.state() == state
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            what = "no such file" if missing else f"cannot be read: {reason_of(error)}"
            raise VideoError(what, stage="open") from error
        if settled:  # else it was written to meanwhile, and the hash may be of neither content
            self._write(place, json.dumps({**state, "hash": digest}).encode())
        return VideoContent(digest, stale=before not in (None, digest) and self.storage.exists(self._place(before)))

    def read(self, video_hash: str, keys: Sequence[ImageKey]) -> Stored | None:
        """Looks a video's images up.

        Args:
            video_hash: The video's `VideoContent.hash`.
            keys: The I images, in any order.

        Returns:
            Their features in the order asked for; None where not all of them are there.

        Raises:
            DamagedError: What is stored of the video is not what was written for it and this space.
        """
        stored = self._load(video_hash)
        row_of = {key: row for row, key in enumerate(stored.keys)} if stored else {}
        if stored is None or not row_of.keys() >= set(keys):
            return None
        return stored.only([row_of[key] for key in keys])

    def write(self, video_hash: str, new: Stored) -> None:
        """Adds a video's images, each once, to those that are stored.

        What is stored counts no more if it is damaged, or was decoded otherwise than the new facts say: no video's
        features mix two decoders. An image that is stored already is replaced. The video keeps an earlier warning if it
        has no new one.

        Raises:
            RunError: The store cannot be written.
        """
        try:
            old = self._load(video_hash)
        except DamagedError:
            old = None
        entry = new if old is None else old.updated(new)
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
        self._write(self._place(video_hash), buffer.getvalue())
        if not self.storage.exists(f"{self.key}/space.json"):
            self.prepare()

    def _load(self, video_hash: str) -> Stored | None:
        """The whole entry of a video, None if there is none."""
        place = self._place(video_hash)
        if (content := self._read(place)) is None:
            return None
        table = pq.read_table(pa.BufferReader(content), use_threads=False)
        header = json.loads(table.schema.metadata[_HEADER])
        if (header["space"], header["video"]) != (self.key, video_hash):
            raise DamagedError(f"{self.storage.path(place)}: damaged (belongs to another video or space)")
        *keys, embeddings = table.columns
        values = embeddings.combine_chunks().flatten().to_numpy()
        return Stored(
            tuple(map(ImageKey, *(column.to_pylist() for column in keys))),
            values.reshape(len(table), embeddings.type.list_size),
            VideoFacts(*header["facts"]),
        )

    def _place(self, video_hash: str) -> str:
        return f"{self.key}/{video_hash[:2]}/{video_hash}.features"

    def _write(self, place: str, content: bytes) -> None:
        self.storage.write(place, _hash(content).hexdigest().encode() + content)

    def _read(self, place: str) -> bytes | None:
        """What `_write` wrote there, None if there is nothing."""
        try:
            content = self.storage.read(place)
        except StorageError:
            raise
        except RunError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise DamagedError(str(error)) from error
        if content[:_DIGITS] != _hash(content[_DIGITS:]).hexdigest().encode():
            raise DamagedError(f"{self.storage.path(place)}: damaged (the checksum does not match)")
        return content[_DIGITS:]


def _hash(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=_DIGITS // 2)
