"""Image features kept between runs, so that a run whose images are stored neither decodes nor encodes.

DIR/
hashes/HH/PATHHASH.json     a video file's content hash, with the size and time it was taken at
SPACEKEY/space.json         what the features in this folder depend on
SPACEKEY/HH/HASH.parquet    the features of one video, one row an image

Files are replaced whole (`zar_ray.storage.Storage.write`): of two workers that write one video at once, the later
may lose the earlier one's additions, which costs encoding them again, but a reader always finds a finished file.
Nothing is trusted that is read: a file that is not exactly what was written is reported as damaged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zar_ray.errors import RunError, VideoError
from zar_ray.models.options import Precision
from zar_ray.options.base import fingerprint
from zar_ray.provenance import package_version
from zar_ray.storage import Storage
from zar_ray.video.inspection import reason_of
from zar_ray.video.options import Decoder

if TYPE_CHECKING:
    from zar_ray.video.plans import ViewPlan
    from zar_ray.video.transforms import Interpolation, Preprocessing

# To be raised whenever the same space, video and image would no longer mean the same features.
LAYOUT = 1

_SPACE = "space.json"
_HASHES = "hashes"
_HEADER = b"zar_ray.features"
_BOX = ("short_side", "top", "left", "size")
_HASH_BYTES = 16


@dataclass(frozen=True)
class FeatureSpace:
    """All that an image's features depend on, besides the video and the image.

    The short side that a checkpoint was trained with is not part of it: every image names its own.

    Attributes:
        model: The model's fingerprint.
        precision: The image encoder's precision.
        decoder: Which decoder was asked for.
        decord: decord's version, ``none`` where it is not installed.
        pyav: PyAV's version, ``none`` where it is not installed.
        input_size: R, side of the encoder's square input in pixels.
        mean: Mean per RGB channel that pixels are normalised with.
        std: Standard deviation per RGB channel.
        interpolation: Filter of the resize.
        layout: `LAYOUT` of the code that wrote them.
    """

    model: str
    precision: Precision
    decoder: Decoder
    decord: str
    pyav: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    layout: int = LAYOUT

    @classmethod
    def of(
        cls, model_fingerprint: str, precision: Precision, decoder: Decoder, preprocessing: Preprocessing
    ) -> FeatureSpace:
        """The space of a run in this environment, whose decoders' versions it takes.

        Args:
            model_fingerprint: A hash of the model's weights.
            precision: The image encoder's precision.
            decoder: The run's choice of decoder.
            preprocessing: The model's.
        """
        return cls(
            model_fingerprint,
            precision,
            decoder,
            package_version("decord") or "none",
            package_version("av") or "none",
            preprocessing.input_size,
            preprocessing.mean,
            preprocessing.std,
            preprocessing.interpolation,
        )

    @property
    def description(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @property
    def key(self) -> str:
        """A short stable hash of the description: the name of the space's folder."""
        return fingerprint(self.description)


@dataclass(frozen=True, order=True)
class ImageKey:
    """What is encoded at once, within one video.

    Attributes:
        frames: Frame indices: one where the encoder takes single images, all T where it takes a view as a whole.
        short_side: Short side of the resized frames, in pixels.
        top: Offset of the crop in the resized frame.
        left: Offset of the crop in the resized frame.
        size: Side of the crop.
    """

    frames: tuple[int, ...]
    short_side: int
    top: int
    left: int
    size: int


def image_keys(plan: ViewPlan) -> tuple[ImageKey, ...]:
    """The keys of a plan's I distinct images, one a row of ``plan.images``, for encoders of single images."""
    frames = plan.frames.tolist()
    return tuple(
        ImageKey((frames[frame],), plan.short_side, plan.boxes[box].top, plan.boxes[box].left, plan.boxes[box].size)
        for frame, box in plan.images.tolist()
    )


@dataclass(frozen=True)
class VideoFacts:
    """What a result row says of a video that only decoding it tells.

    Attributes:
        decoder: What gave the pixels, ``decord`` or ``pyav``.
        warning: What is wrong with the video although it could be read.
        frames: N, its frames.
        width: Width as displayed, in pixels.
        height: Height as displayed.
    """

    decoder: str
    warning: str | None
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class VideoContent:
    """What a video file holds now.

    Attributes:
        hash: Hash of its bytes, 32 hexadecimal digits.
        stale: Whether features are stored of what the file held before, which no longer count for it.
    """

    hash: str
    stale: bool


@dataclass(frozen=True, eq=False)
class Stored:
    """Features that were found.

    Attributes:
        embeddings: float32 (I, D), as they were written, in the order asked for.
        facts: The video's.
    """

    embeddings: np.ndarray
    facts: VideoFacts


@dataclass(frozen=True)
class Missing:
    """Features that have to be computed, and why.

    Attributes:
        reason: ``absent``: nothing is stored of the video; ``incomplete``: some images are not; ``damaged``: what is
            stored cannot be used, and the next write replaces it.
        detail: The same in words, with the file where one is damaged.
    """

    reason: Literal["absent", "incomplete", "damaged"]
    detail: str


class FeatureStore:
    """The features of one space, in a folder that many processes and runs share.

    Args:
        storage: The store's folder, which may hold other spaces too.
        space: What the features depend on.
    """

    def __init__(self, storage: Storage, space: FeatureSpace) -> None:
        self.storage = storage
        self.space = space
        self._folder = space.key

    def prepare(self) -> None:
        """Writes the space's description; called before the work starts, it shows a folder that cannot be written.

        Raises:
            RunError: The folder cannot be written.
        """
        text = json.dumps(self.space.description, indent=2, ensure_ascii=False) + "\n"
        self.storage.write(f"{self._folder}/{_SPACE}", text.encode())

    def content(self, path: str | os.PathLike[str]) -> VideoContent:
        """Hashes a file's bytes, unless it has the size and modification time of its last hash.

        Args:
            path: The file.

        Raises:
            VideoError: The file cannot be read (stage ``open``).
            RunError: The store cannot be written.
        """
        absolute = str(Path(path).absolute())
        name = hashlib.blake2b(os.fsencode(absolute), digest_size=_HASH_BYTES).hexdigest()
        name = f"{_HASHES}/{name[:2]}/{name}.json"
        known = self._known_content(name, absolute)
        try:
            with Path(absolute).open("rb") as stream:
                state = _state(stream.fileno())
                if known is not None and known[0] == state:
                    return VideoContent(known[1], stale=False)
                digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=_HASH_BYTES)).hexdigest()
                settled = _state(stream.fileno()) == state
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            what = "no such file" if missing else f"cannot be read: {reason_of(error)}"
            raise VideoError(what, stage="open") from error
        if settled:  # else it was written to meanwhile, and the hash may be of neither content
            entry = {"path": absolute, "size": state[0], "mtime_ns": state[1], "hash": digest}
            self.storage.write(name, json.dumps(entry).encode())
        before = known[1] if known is not None else digest
        return VideoContent(digest, stale=before != digest and self.storage.exists(self._entry(before)))

    def _known_content(self, name: str, absolute: str) -> tuple[tuple[int, int], str] | None:
        """Size and time, and hash, that the cache has of a file; None where it has none, or one that is damaged."""
        try:
            entry = json.loads(self.storage.read(name))
            known = (int(entry["size"]), int(entry["mtime_ns"])), str(entry["hash"])
            same = entry["path"] == absolute
        except (RunError, ValueError, TypeError, KeyError):
            return None
        return known if same and _is_hash(known[1]) else None

    def _entry(self, video_hash: str) -> str:
        return f"{self._folder}/{video_hash[:2]}/{video_hash}.parquet"

    def read(self, video_hash: str, keys: Sequence[ImageKey]) -> Stored | Missing:
        """Looks a video's images up.

        Args:
            video_hash: The video's `VideoContent.hash`.
            keys: The I images, in any order.

        Returns:
            The features, if all of them are there.
        """
        try:
            entry = self._load(video_hash)
        except _DamagedError as error:
            return Missing("damaged", str(error))
        if entry is None:
            return Missing("absent", "no features are stored of this video")
        row_of = {key: row for row, key in enumerate(entry.keys)}
        rows = [row_of[key] for key in keys if key in row_of]
        if len(rows) < len(keys):
            return Missing("incomplete", f"{len(rows)} of {len(keys)} images are stored")
        return Stored(entry.embeddings[np.array(rows, dtype=np.int64)], entry.facts)

    def write(self, video_hash: str, keys: Sequence[ImageKey], embeddings: np.ndarray, facts: VideoFacts) -> None:
        """Adds a video's images to those that are stored.

        What is stored counts no more if it is damaged, or was decoded otherwise than `facts` says: no video's features
        mix two decoders. An image that is stored already is replaced. The video keeps an earlier warning if it has
        no new one.

        Args:
            video_hash: The video's `VideoContent.hash`.
            keys: The I images, each once.
            embeddings: float32 (I, D), finite, one row an image.
            facts: The video's.

        Raises:
            ValueError: The embeddings are not as above, or an image comes twice.
            RunError: The store cannot be written.
        """
        keys = tuple(keys)
        if embeddings.dtype != np.float32 or embeddings.ndim != 2 or not embeddings.shape[1]:
            raise ValueError(f"embeddings are {embeddings.dtype} {embeddings.shape}, not float32 (images, dimensions)")
        if len(embeddings) != len(keys) or len(set(keys)) != len(keys):
            raise ValueError(f"{len(embeddings)} embeddings of {len(keys)} images, {len(set(keys))} of them distinct")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings are not finite")
        try:
            old = self._load(video_hash)
        except _DamagedError:
            old = None
        new = _Entry(keys, embeddings, facts)
        self.storage.write(self._entry(video_hash), self._encode(video_hash, new if old is None else _merge(old, new)))
        if not self.storage.exists(f"{self._folder}/{_SPACE}"):
            self.prepare()

    def _load(self, video_hash: str) -> _Entry | None:
        """The whole entry of a video, None if there is none.

        Raises:
            _DamagedError: There is one that is not what was written for this video and space.
        """
        name = self._entry(video_hash)
        try:
            content = self.storage.read(name)
        except RunError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise _DamagedError(str(error)) from error
        try:
            return self._decode(video_hash, content)
        except Exception as error:  # a damaged file makes the parsers raise nearly anything
            what = " ".join(str(error).split()) or type(error).__name__
            raise _DamagedError(f"{self.storage.path(name)}: damaged ({what})") from error

    def _encode(self, video_hash: str, entry: _Entry) -> bytes:
        """A Parquet file, the same bytes for the same content."""
        order = sorted(range(len(entry.keys)), key=lambda row: entry.keys[row])
        keys = [entry.keys[row] for row in order]
        embeddings = np.ascontiguousarray(entry.embeddings[np.array(order, dtype=np.int64)])
        columns = [
            pa.array([list(key.frames) for key in keys], pa.list_(pa.int32())),
            *(pa.array([getattr(key, name) for key in keys], pa.int32()) for name in _BOX),
            pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1]),
        ]
        header = self._header(video_hash, embeddings.shape[1]) | {"facts": dataclasses.asdict(entry.facts)}
        header["checksum"] = _checksum(header, keys, embeddings)
        schema = _schema(embeddings.shape[1]).with_metadata({_HEADER: json.dumps(header).encode()})
        buffer = io.BytesIO()
        pq.write_table(
            pa.Table.from_arrays(columns, schema=schema),
            buffer,
            # Floats compress only with their bytes apart; those of a bfloat16 encoder are half zeros.
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=True,
            write_statistics=False,
            write_page_checksum=True,
        )
        return buffer.getvalue()

    def _decode(self, video_hash: str, content: bytes) -> _Entry:
        """The entry that `_encode` made of it; raises anything if it is not exactly that."""
        table = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True).read(use_threads=False)
        header = json.loads((table.schema.metadata or {})[_HEADER])
        dimensions = header["dimensions"]
        expected = self._header(video_hash, dimensions)
        if {name: header.get(name) for name in expected} != expected:
            raise ValueError("belongs to another video or space")
        if not table.schema.equals(_schema(dimensions)) or any(column.null_count for column in table.columns):
            raise ValueError("has other columns than it should")
        frames, *box = (table[name].to_pylist() for name in ("frames", *_BOX))
        keys = tuple(ImageKey(tuple(indices), *rest) for indices, *rest in zip(frames, *box, strict=True))
        values = table["embedding"].combine_chunks().flatten()
        embeddings = values.to_numpy().reshape(len(keys), dimensions)
        # Parquet's own checksums leave out the footer: the header, the types and the order of the columns.
        if header.pop("checksum") != _checksum(header, keys, embeddings):
            raise ValueError("the checksum does not match")
        if not np.isfinite(embeddings).all():
            raise ValueError("holds values that are not finite")
        return _Entry(keys, embeddings, VideoFacts(**header["facts"]))

    def _header(self, video_hash: str, dimensions: int) -> dict[str, Any]:
        return {"space": self.space.description, "video": video_hash, "dimensions": dimensions}


class _DamagedError(Exception):
    """An entry that cannot be used."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """All that is stored of a video: I keys, float32 (I, D) and the facts."""

    keys: tuple[ImageKey, ...]
    embeddings: np.ndarray
    facts: VideoFacts


def _merge(old: _Entry, new: _Entry) -> _Entry:
    """The new entry with those images of the old one that it lacks, if the two fit together."""
    same_video = dataclasses.replace(old.facts, warning=None) == dataclasses.replace(new.facts, warning=None)
    if not same_video or old.embeddings.shape[1] != new.embeddings.shape[1]:
        return new
    present = set(new.keys)
    kept = [row for row, key in enumerate(old.keys) if key not in present]
    return _Entry(
        new.keys + tuple(old.keys[row] for row in kept),
        np.concatenate([new.embeddings, old.embeddings[np.array(kept, dtype=np.int64)]]),
        dataclasses.replace(new.facts, warning=new.facts.warning or old.facts.warning),
    )


def _schema(dimensions: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("frames", pa.list_(pa.int32())),
            *(pa.field(name, pa.int32()) for name in _BOX),
            pa.field("embedding", pa.list_(pa.float32(), dimensions)),
        ]
    )


def _checksum(header: dict[str, Any], keys: Sequence[ImageKey], embeddings: np.ndarray) -> str:
    """Hash of all that an entry says, however the file holds it."""
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    images = [[*key.frames, key.short_side, key.top, key.left, key.size] for key in keys]
    digest.update(json.dumps([header, images], sort_keys=True).encode())
    digest.update(np.ascontiguousarray(embeddings, dtype="<f4").data)
    return digest.hexdigest()


def _is_hash(text: str) -> bool:
    return len(text) == 2 * _HASH_BYTES and not set(text) - set("0123456789abcdef")


def _state(file: int) -> tuple[int, int]:
    """Size and modification time of an open file."""
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns
