"""The manifest: one Arrow row a video, in one Parquet file, which every job reads.

The class names, the data's root folder and the dataset's name travel in the file's schema metadata, so one file says
everything about a dataset.  A video that could not be opened stays in with its error: nothing is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zar_ray.columns import Bytes, Name, Number, Real, Text, Texts, rows_to_table, schema_of, table_to_rows
from zar_ray.data.classes import distinct_names
from zar_ray.errors import ManifestError, RunError, suggestion
from zar_ray.options.places import at_home
from zar_ray.storage import Storage, is_uri
from zar_ray.untrusted import parse_json, stand_in
from zar_ray.video.files import VideoFile

_METADATA_KEY = b"zar_ray.manifest"
_FORMAT = 1
_HASHED_AT_ONCE = 2**14
# A manifest's texts repeat much, but not without end.
_ROWS_AT_ONCE, _SPARE_BYTES, _MOST_TIMES = 1024, 2**28, 100
_ABSOLUTE = r"^(/|[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]+://)"
_REMAKE = 'make one with "zar data index FOLDER"'
# What the numbers of a run depend on.  Paths are left out, so that a dataset copied elsewhere is the same dataset; an
# error counts by its presence, since its words may change with a library's version.
_SIZES = ("frames", "width", "height", "size")
_IDENTITY = ("video_id", "label_id", "class_name", "split", *_SIZES, "splits", "labels", "group")


@dataclass(frozen=True)
class VideoRow:
    """One row of a manifest.

    Attributes:
        video_id: The path relative to the dataset's root, with forward slashes.
        path: The file's absolute path, or its URI.
        label_id: Position of the class name among the manifest's, from 0; None for an unlabelled video.
        class_name: The label's text; None for an unlabelled video.
        split: Which part of the dataset, "all" where there is one part.
        frames: Number of frames that are shown.
        fps: Frames a second.
        width: Width of the upright picture in stored pixels, of the first one where it changes.
        height: Its height.
        duration: Seconds.
        size: Bytes of the file.
        decoder: The decoder that opened it, such as "pyav".
        error: Why the video cannot be used; then the fields that could not be found out are None.
        splits: All splits that the video is in, where that is not `split` alone: several official splits, or lists.
        labels: The class names of a video that may show several; it then has no `label_id` and no `class_name`. None
            in a dataset whose videos have one class.
        group: What it was cut from, or has in common with other videos of the same group, such as a film, a YouTube
            video or a person: decisions about these say less than about as many others. None where nothing is known.
        member: The video's name in a tar file, which `path` then is; None where `path` is the video itself.
        offset: Where it begins in the tar file, in bytes; None where that is to be searched for.
    """

    video_id: Name
    path: Name
    label_id: Number = None
    class_name: Text = None
    split: Name = "all"
    frames: Number = None
    fps: Real = None
    width: Number = None
    height: Number = None
    duration: Real = None
    size: Bytes = None
    decoder: Text = None
    error: Text = None
    splits: Texts = None
    labels: Texts = None
    group: Text = None
    member: Text = None
    offset: Bytes = None

    def file(self) -> VideoFile:
        """The video as decoders open it; to be closed, as what it fetches takes room."""
        return VideoFile(self.path, self.member, self.offset, self.size)

    @property
    def stem(self) -> str:
        """The file's name without folder and extension."""
        return PurePosixPath(self.video_id).stem

    @property
    def label_names(self) -> tuple[str, ...]:
        """The class names of the video: one, or several, or none."""
        if self.labels is not None:
            return self.labels
        return () if self.class_name is None else (self.class_name,)

    @property
    def memberships(self) -> tuple[str, ...]:
        """All splits that the video is in."""
        return (self.split,) if self.splits is None else self.splits


MANIFEST_SCHEMA = schema_of(VideoRow)
"""Columns of a manifest: the attributes of `VideoRow`."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """A dataset's videos; checked when made, so whoever holds one may rely on it.

    Raises:
        ManifestError: The table's columns or values do not fit together.
    """

    table: pa.Table  # the videos, with `MANIFEST_SCHEMA`
    class_names: tuple[str, ...]  # the K label texts; a row's `label_id` is a position in them
    root: str  # absolute folder that video ids are relative to
    name: str

    def __post_init__(self) -> None:
        # The schema's metadata is written anew from the fields, so that there is one truth.
        object.__setattr__(self, "table", _checked(self.table, self.class_names, self.name))

    def __len__(self) -> int:
        return self.table.num_rows

    @classmethod
    def of(cls, rows: Iterable[VideoRow], class_names: Sequence[str], root: str | Path, name: str) -> Manifest:
        """Builds a manifest from rows; `root` is made absolute."""
        return cls(rows_to_table(rows, MANIFEST_SCHEMA), tuple(class_names), absolute_place(root), name)

    def rows(self) -> Iterator[VideoRow]:
        """Yields the rows in the table's order."""
        for batch in self.table.to_batches():
            yield from table_to_rows(batch, VideoRow)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that occur, in alphabetical order."""
        alone = self.table.filter(pc.field("splits").is_null())["split"]
        return tuple(sorted({*alone.to_pylist(), *_flat(self.table["splits"])}))

    def select(self, split: str | None = None, limit: int | None = None) -> Manifest:
        """Takes one split, or some videos, or both; the class names stay all.

        Args:
            split: The split to keep; None keeps all.
            limit: Keep this many videos, evenly spread over the videos sorted by id, and so over the classes where
                ids start with a class folder.  None keeps all, in the table's order.

        Raises:
            ManifestError: There is no such split.
        """
        table = self.table
        if split is not None:
            if split not in self.splits:
                raise ManifestError(f'{self.name}: no split "{split}"{suggestion(split, self.splits)}')
            table = table.filter(pa.array(self.members([split])))
        if limit is not None and limit < table.num_rows:
            if limit < 1:
                raise ManifestError(f"{self.name}: a limit of {limit} videos leaves nothing; it must be at least 1")
            middle = (2 * np.arange(limit) + 1) * table.num_rows // (2 * limit)
            table = table.sort_by("video_id").take(middle)
        return self if table is self.table else dataclasses.replace(self, table=table)

    def keep(self, video_ids: Iterable[str]) -> Manifest:
        """Takes the videos of these ids, in the table's order; the class names stay all.

        Raises:
            ManifestError: There is no video of one of the ids.
        """
        wanted = pa.array(list(video_ids), pa.string())
        table = self.table.filter(pc.field("video_id").isin(wanted))
        # Looked up in what is kept: a few of a million videos are asked for again and again.
        there = pc.call_function("is_in", [wanted], pc.SetLookupOptions(table["video_id"]))
        if len(absent := wanted.filter(pc.call_function("invert", [there]))):
            raise ManifestError(f'{self.name}: no video "{min(absent.to_pylist())}"')
        return self if len(table) == len(self) else dataclasses.replace(self, table=table)

    def members(self, splits: Iterable[str]) -> np.ndarray:
        """Bool (N,): which videos are in any of some splits."""
        wanted = pc.SetLookupOptions(pa.array(list(splits), pa.string()))
        lists = self.table["splits"].combine_chunks()
        alone = pc.call_function("is_in", [self.table["split"]], wanted).to_numpy()
        inside = alone & lists.is_null().to_numpy(zero_copy_only=False)
        listed = pc.call_function("is_in", [lists.flatten()], wanted).to_numpy(zero_copy_only=False)
        inside[pc.call_function("list_parent_indices", [lists]).to_numpy()[listed]] = True
        return inside

    def fingerprint(self) -> str:
        """A short hash (12 hexadecimal digits) of what results depend on.

        It is the same for any order of the rows and wherever the files lie.
        """
        digest = hashlib.sha256()
        for piece in self._identity():
            digest.update(piece.encode())
        return digest.hexdigest()[:12]

    def _identity(self) -> Iterator[str]:
        """The JSON that `zar_ray.options.base.fingerprint` would hash, bit by bit: whole it would take gigabytes."""
        table = self.table.sort_by("video_id")
        yield f'{{"class_names":{_json(self.class_names)},"columns":{{'
        for number, name in enumerate(sorted(_IDENTITY)):
            yield f'{"," * bool(number)}"{name}":'
            yield from _list_json(table[name])
        yield '},"failed":'
        yield from _list_json(table["error"].is_valid())
        yield "}"


def _json(values: object) -> str:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def _list_json(column: pa.ChunkedArray) -> Iterator[str]:
    yield "["
    for start in range(0, len(column), _HASHED_AT_ONCE):
        yield "," * bool(start) + _json(column.slice(start, _HASHED_AT_ONCE).to_pylist())[1:-1]
    yield "]"


def read_manifest(path: str | Path) -> Manifest:
    """Reads a manifest from a file or a URI such as ``s3://bucket/manifest.parquet``.

    Raises:
        ManifestError: The file is missing, is not Parquet, or does not hold a valid manifest; the message names it.
    """
    folder, name = _place(path)
    if not folder.exists(name):
        raise ManifestError(f"{path}: no such manifest; {_REMAKE}")
    unreadable = (RunError, OSError, MemoryError, pa.ArrowException)
    try:
        content = folder.read(name)
        if (instead := stand_in(content[:512])) is not None:
            raise ManifestError(f"{path}: {instead}")
        file = pq.ParquetFile(io.BytesIO(content))
        stored = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
    except unreadable as error:
        raise ManifestError(f"{path}: cannot be read as a Parquet manifest ({_first_line(error)})") from error
    if stored is None:
        raise ManifestError(f"{path}: is Parquet but not a manifest of zar-ray (no class names in it); {_REMAKE}")
    try:
        header = parse_json(stored)
        version, name, root = int(header["format"]), str(header["name"]), str(header["root"])
        class_names = tuple(str(name) for name in header["class_names"])
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: the manifest's class names and root cannot be read; {_REMAKE}") from error
    if version != _FORMAT:
        raise ManifestError(f"{path}: has manifest format {version}, this zar-ray reads format {_FORMAT}; {_REMAKE}")
    try:
        table = _read_table(file, _SPARE_BYTES + _MOST_TIMES * len(content), str(path))
    except unreadable as error:
        raise ManifestError(f"{path}: cannot be read as a Parquet manifest ({_first_line(error)})") from error
    return Manifest(_checked(table, class_names, str(path)), class_names, root, name)


def _read_table(file: pq.ParquetFile, most: int, place: str) -> pa.Table:
    """A file's table with `MANIFEST_SCHEMA`, bit by bit: a few bytes of Parquet may stand for any number of rows.

    Raises:
        ManifestError: Its columns do not fit, or it takes more memory than `most` bytes.
    """
    tables, size = [_with_schema(file.schema_arrow.empty_table(), place)], 0
    for batch in file.iter_batches(_ROWS_AT_ONCE):
        tables.append(_with_schema(pa.Table.from_batches([batch]), place))
        size += tables[-1].nbytes
        if size > most:
            raise ManifestError(
                f"{place}: unpacks to more than {most} bytes; it is damaged, or made to fill the memory"
            )
    table = pa.concat_tables(tables).combine_chunks()
    table.validate(full=True)  # texts that are no UTF-8 would be found out anywhere later
    return table


def count_rows(path: str | Path) -> int | None:
    """How many videos a local manifest holds, from its footer alone; None where there is none that can be read."""
    try:
        return None if is_uri(str(path)) else pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException):
        return None


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Writes a manifest to a file or a URI; a reader sees the old file or the new one, never half of one.

    Raises:
        ManifestError: The place cannot be written.
    """
    header = {"format": _FORMAT, "name": manifest.name, "root": manifest.root, "class_names": manifest.class_names}
    stored = {_METADATA_KEY: json.dumps(header, ensure_ascii=False).encode()}
    content = io.BytesIO()
    pq.write_table(manifest.table.replace_schema_metadata(stored), content)
    folder, name = _place(path)
    try:
        folder.write(name, content.getvalue())
    except RunError as error:
        raise ManifestError(str(error)) from error


def _checked(table: pa.Table, class_names: tuple[str, ...], place: str) -> pa.Table:
    """Returns the table with exactly `MANIFEST_SCHEMA`, or raises a ManifestError that names `place`."""
    if class_names:
        distinct_names(class_names, place)
    table = _with_schema(table, place)
    for name in ("video_id", "path", "split", "group"):
        if len(table.filter(pc.field(name) == "")):
            raise ManifestError(f"{place}: has rows with an empty {name}")
    ids = table["video_id"]
    if len(counts := ids.value_counts()) < len(ids):
        twice = next(c["values"].as_py() for c in counts if c["counts"].as_py() > 1)
        raise ManifestError(f'{place}: video id "{twice}" occurs more than once')
    absolute = pc.call_function("match_substring_regex", [table["path"]], pc.MatchSubstringOptions(_ABSOLUTE))
    if len(relative := table["path"].filter(pc.call_function("invert", [absolute]))):
        raise ManifestError(f'{place}: path "{relative[0]}" is not absolute')
    # The first row with values that contradict each other, where null counts as no contradiction.
    names = pa.array(class_names, pa.string())
    unknown = sorted(_flat(table["labels"]) - set(class_names), key=str)
    if unknown:
        raise ManifestError(f'{place}: has the label "{unknown[0]}", which is not among its class names')
    looked_up = table.append_column("members", pc.call_function("list_value_length", [table["splits"]]))
    looked_up = looked_up.append_column(
        "named", pc.call_function("index_in", [table["class_name"]], pc.SetLookupOptions(names))
    )
    label, name, named = pc.field("label_id"), pc.field("class_name"), pc.field("named")
    frames, width, height = (
        pc.field(column).is_null() | (pc.field(column) < 1) for column in ("frames", "width", "height")
    )
    for wrong, complaint in (
        (label.is_null() != name.is_null(), "label_id and class_name must both be there or both be empty"),
        ((label < 0) | (label >= len(class_names)), f"label_id is not one of the {len(class_names)} classes"),
        (pc.field("labels").is_valid() & label.is_valid(), "has both a label_id and several labels"),
        (pc.field("members") == 0, "has a list of splits with none in it"),
        (name.is_valid() & (named.is_null() | (named != label)), "class_name is not the name of its label_id"),
        (
            pc.field("error").is_null() & (frames | width | height),
            "has no error, so frames, width and height must be there and positive",
        ),
    ):
        if len(rows := looked_up.filter(wrong)):
            raise ManifestError(f'{place}: video "{rows["video_id"][0]}": {complaint}')
    return table


def _with_schema(table: pa.Table, place: str) -> pa.Table:
    """Checks the columns; other widths of the same kind (a 64-bit label id, a large string) are converted."""
    names = table.column_names
    if len(set(names)) < len(names):
        raise ManifestError(f"{place}: has two columns of one name; {_REMAKE}")
    if missing := [name for name in MANIFEST_SCHEMA.names if name not in names]:
        raise ManifestError(f"{place}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; {_REMAKE}")
    if unknown := [name for name in names if name not in MANIFEST_SCHEMA.names]:
        raise ManifestError(
            f"{place}: has the unknown column{'s' * (len(unknown) > 1)} {', '.join(unknown)}; "
            f"a manifest holds {', '.join(MANIFEST_SCHEMA.names)}"
        )
    columns = []
    for field in MANIFEST_SCHEMA:
        column = table[field.name]
        if not _same_kind(column.type, field.type):
            raise ManifestError(f"{place}: column {field.name} holds {column.type}, must hold {field.type}")
        if not field.nullable and column.null_count:
            raise ManifestError(f"{place}: has rows without a {field.name}")
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise ManifestError(f"{place}: column {field.name} does not fit {field.type} ({error})") from error
    return pa.Table.from_arrays(columns, schema=MANIFEST_SCHEMA)


def _same_kind(have: pa.DataType, want: pa.DataType) -> bool:
    if pa.types.is_null(have):
        return True
    if pa.types.is_string(want):
        value = have.value_type if pa.types.is_dictionary(have) else have
        return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
    if pa.types.is_list(want):
        return (pa.types.is_list(have) or pa.types.is_large_list(have)) and _same_kind(have.value_type, want.value_type)
    if pa.types.is_integer(want):
        return pa.types.is_integer(have)
    return pa.types.is_floating(have)


def _flat(lists: pa.ChunkedArray) -> set[str]:
    """The distinct values of a column of lists."""
    return set(pc.call_function("list_flatten", [lists]).unique().to_pylist())


def _place(path: str | Path) -> tuple[Storage, str]:
    """The folder of a path or URI, and the file's name in it."""
    try:
        return Storage.of_file(str(path))
    except RunError as error:
        raise ManifestError(f"{path}: no such kind of place ({_first_line(error)})") from error


def absolute_place(root: str | Path) -> str:
    """An absolute path, symbolic links kept; a URI stays as it is."""
    return str(root) if is_uri(str(root)) else str(at_home(root))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
