"""The videos that a folder holds or a CSV lists, before anyone has opened them.

Two layouts of folders are understood, and both may hold further folders below a class:

- ``CLASS/.../VIDEO``: a class a folder;
- ``SPLIT/CLASS/.../VIDEO`` where every top-level folder that holds videos is called train, val or test.

Videos that lie outside class folders are unlabelled.  Video ids keep the names' characters exactly as they are on the
disk, since they are also the way to the file; class names are put into Unicode's composed form (NFC), so that the text
the model reads does not depend on the file system that a dataset was unpacked on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from zar_ray.data.classes import distinct_names, tidy_name
from zar_ray.data.manifest import VideoRow, absolute_place
from zar_ray.data.shard_listing import is_note, rows_of_shard
from zar_ray.data.text_files import csv_rows
from zar_ray.errors import ManifestError, RunError, StorageError, suggestion
from zar_ray.file_systems import Location
from zar_ray.options.places import at_home, from_home
from zar_ray.storage import Storage, folder_of, is_uri
from zar_ray.video.shards import SUFFIX, read_shard

VIDEO_EXTENSIONS = frozenset(
    ".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .wmv .flv .gif .ts .3gp".split()  # noqa: SIM905
)
SPLIT_FOLDERS = frozenset({"train", "val", "test"})
NO_SPLIT = "all"
_SHARDS_AT_ONCE = 8
# A part of a YouTube video; ids differ by case and punctuation alone.
YOUTUBE = re.compile(r"(?P<id>.{11})_(?P<start>\d{6})_(?P<end>\d{6})")
UCF101 = re.compile(r"v_(?P<name>\w+?)_(?P<group>g\d+)_c\d+")


@dataclass(frozen=True)
class Listing:
    """All videos of a dataset, sorted by id, and how many other files lay among them.

    Nothing but their names, splits and class names need be known of the videos.
    """

    videos: tuple[VideoRow, ...]
    class_names: tuple[str, ...]
    root: str = ""
    name: str = ""
    ignored: int = 0


def source_of(path: str) -> str | None:
    """The recording that a video is a part of, where its name says so."""
    stem = PurePosixPath(path).stem
    if match := UCF101.fullmatch(stem):
        return f"{match['name']} {match['group']}"
    match = YOUTUBE.fullmatch(stem)
    return match["id"] if match else None


def list_folder(root: str | Path, class_names: Sequence[str] | None = None) -> Listing:
    """Finds the videos below a folder or a URI, by their extension, also in tar files; hidden ones are passed over.

    Class names are by default the class folders' in alphabetical order; a folder without a video is no class. Videos in
    a tar file may be labelled there, see `zar_ray.data.shard_listing`; else a folder in it, or one that it lies in, is
    their class.

    Raises:
        ManifestError: The folder is missing, holds no video, or has a class that is not in `class_names`.
    """
    top, files = _files(root)
    videos = [VideoRow(name, path, size=size) for name, path, size in files if _suffix(name) in VIDEO_EXTENSIONS]
    shards = [(name, path) for name, path, _ in files if _suffix(name) == SUFFIX]
    ignored = len(files) - len(videos)
    for rows in _shards(shards, class_names):
        ignored -= bool(rows)
        videos += rows
    if not videos:
        others = f"; {ignored} other file{'s' * (ignored != 1)} ignored" if ignored else ""
        kinds = " ".join([*sorted(VIDEO_EXTENSIONS), SUFFIX])
        raise ManifestError(f"{root}: holds no videos (looked below it for {kinds}{others})")
    folders = [_folders(video) for video in videos]
    split_layout = {(outside + inside)[0] if outside + inside else "" for outside, inside in folders} <= SPLIT_FOLDERS
    placed = []
    for video, (outside, inside) in zip(videos, folders, strict=True):
        split, *below = outside + inside if split_layout else (NO_SPLIT, *outside, *inside)
        # What lies nearest to the video says more: a tar file's own folders before those that it lies in.
        nearest = below[max(0, len(below) - len(inside)) :] or below
        label = video.class_name or (tidy_name(nearest[0]) if nearest and not video.error else None)
        placed.append(replace(video, class_name=label, split=split))
    return _listing(placed, class_names, top, Location.parse(top).name or "videos", ignored, str(root))


def _files(root: str | Path) -> tuple[str, list[tuple[str, str, int | None]]]:
    """A folder's absolute place, and the name below it, the place and, at a URI, the bytes of each file in it."""
    if not is_uri(str(root)):
        top = existing_folder(root)
        paths = [path for kind in walk(top)[:2] for path in kind]
        return str(top), [("/".join(path.relative_to(top).parts), str(path), None) for path in paths]
    try:
        folder = Storage(str(root))
        found = [one for one in folder.walk() if not any(part.startswith(".") for part in one.name.split("/"))]
    except StorageError:
        raise
    except RunError as error:
        raise ManifestError(str(error)) from error
    return folder.location, [(one.name, folder.path(one.name), one.size) for one in found]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _shards(shards: Sequence[tuple[str, str]], class_names: Sequence[str] | None) -> Iterator[list[VideoRow]]:
    """The videos in each tar file, several of which are read at a time."""
    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        read = pool.map(lambda one: read_shard(one[1], is_note), shards)
        for (name, path), shard in zip(shards, read, strict=True):
            yield rows_of_shard(name, path, shard, VIDEO_EXTENSIONS, class_names)


def _folders(video: VideoRow) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The folders that a video or its tar file lies in, and those within the tar file."""
    inside = PurePosixPath(video.member).parts[:-1] if video.member else ()
    parts = tuple(video.video_id.split("/"))
    return parts[: len(parts) - len(inside) - (2 if video.member else 1)], inside


def list_csv(file: str | Path, root: str | Path | None = None, class_names: Sequence[str] | None = None) -> Listing:
    """Reads a list: UTF-8, comma-separated, with the columns ``path``, ``label``, ``split``, ``group``, ``member``.

    All but the first may lack. An empty label means an unlabelled video, an empty split "all", an empty group what
    `source_of` finds in the name; a member is the video's name in the tar file that the path then is. A path may be a
    URI. A file that is not there stays in, and becomes a row with its error.

    Args:
        file: The CSV, or its URI.
        root: Folder that relative paths start from; by default the CSV's.  Video ids are relative to it; a video
            outside it has its absolute path for an id.
        class_names: The classes in label-id order; by default the labels in alphabetical order.

    Raises:
        ManifestError: The CSV cannot be read, names a video twice or has a label that is not in `class_names`; the
            message names the line.
    """
    place = str(file) if is_uri(str(file)) else str(from_home(file))
    top = absolute_place(root) if root is not None else folder_of(place)
    videos: list[VideoRow] = []
    lines: dict[tuple[str, str | None], str] = {}
    known = None if class_names is None else distinct_names(map(tidy_name, class_names), str(file))
    for at, cells in csv_rows(place, ("path",), ("label", "split", "group", "member")):
        if not cells["path"]:
            raise ManifestError(f"{at}: the path is empty")
        video_id, path = _in(top, cells["path"], at)
        member = cells.get("member") or None
        if (path, member) in lines:
            named = cells["path"] if member is None else f"{cells['path']}, {member},"
            raise ManifestError(f"{at}: {named} is already in {lines[path, member]}")
        lines[path, member] = at
        label = tidy_name(cells.get("label", "")) or None
        if known is not None and label is not None and label not in known:
            raise ManifestError(f'{at}: label "{label}" is not among the class names{suggestion(label, known)}')
        split, group = cells.get("split") or NO_SPLIT, cells.get("group") or None
        video_id = video_id if member is None else f"{video_id}/{member.removeprefix('./')}"
        videos.append(VideoRow(video_id, path, class_name=label, split=split, group=group, member=member))
    if not videos:
        raise ManifestError(f"{file}: lists no videos")
    return _listing(videos, class_names, top, PurePosixPath(Location.parse(place).name).stem, 0, str(file))


def _in(top: str, cell: str, at: str) -> tuple[str, str]:
    """A listed video's id and place, where relative paths start from `top`; outside it the place is the id."""
    try:
        if not is_uri(top) and not is_uri(cell):
            path = os.path.normpath(Path(top) / cell)
            inside = Path(path).is_relative_to(top)
            return Path(path).relative_to(top).as_posix() if inside else Path(path).as_posix(), path
        folder = Location.parse(top)
        place = Location.parse(cell) if is_uri(cell) or cell.startswith("/") else folder / os.path.normpath(cell)
    except RunError as error:
        raise ManifestError(f"{at}: {error}") from None
    inside = place.scheme == folder.scheme and place.path.startswith(f"{folder.path}/")
    return place.path[len(folder.path) + 1 :] if inside else str(place), str(place)


def walk(top: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The videos below a folder, symbolic links followed, the other files, and what is hidden and passed over.

    Raises:
        ManifestError: A folder cannot be read.
    """
    videos: list[Path] = []
    others: list[Path] = []
    hidden: list[Path] = []
    # The folders on the way down by identity, so that a link to a folder above ends the walk there.
    above: dict[str, frozenset[tuple[int, int]]] = {}
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_unreadable):
        here = Path(folder).stat()
        way = above.pop(folder, frozenset()) | {(here.st_dev, here.st_ino)}
        kept = []
        for name in sorted(folders):
            below = os.path.join(folder, name)  # noqa: PTH118  the same string that os.walk will use
            if name.startswith("."):
                hidden.append(Path(below))
                continue
            status = Path(below).stat()
            if (status.st_dev, status.st_ino) not in way:
                above[below] = way
                kept.append(name)
        folders[:] = kept
        for name in files:
            kind = videos if Path(name).suffix.lower() in VIDEO_EXTENSIONS else others
            (hidden if name.startswith(".") else kind).append(Path(folder, name))
    return videos, others, hidden


def existing_folder(place: str | Path) -> Path:
    """A folder's absolute path, or a ManifestError."""
    top = at_home(place)
    if not top.is_dir():
        raise ManifestError(f"{place}: {'is not a folder' if top.exists() else 'no such folder'}")
    return top


def _unreadable(error: OSError) -> None:
    raise ManifestError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def _listing(
    videos: Iterable[VideoRow], class_names: Sequence[str] | None, root: str, name: str, ignored: int, shown: str
) -> Listing:
    sources = (replace(video, group=video.group or source_of(video.video_id)) for video in videos)
    ordered = tuple(sorted(sources, key=lambda video: video.video_id))
    found = sorted({video.class_name for video in ordered if video.class_name is not None})
    if class_names is None:
        names = tuple(found)
    else:
        names = distinct_names(map(tidy_name, class_names), shown)
        for label in found:
            if label not in names:
                raise ManifestError(f'{shown}: class "{label}" is not among the class names{suggestion(label, names)}')
    return Listing(ordered, names, root, name, ignored)
