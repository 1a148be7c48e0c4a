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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from zar_ray.data.classes import distinct_names, tidy_name
from zar_ray.data.manifest import VideoRow
from zar_ray.data.text_files import csv_rows
from zar_ray.errors import ManifestError, suggestion

VIDEO_EXTENSIONS = frozenset(
    ".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .wmv .flv .gif .ts .3gp".split()  # noqa: SIM905
)
SPLIT_FOLDERS = frozenset({"train", "val", "test"})
NO_SPLIT = "all"
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
    """Finds the videos below a folder, by their extension; hidden files and folders are passed over.

    Class names are by default the class folders' in alphabetical order; a folder without a video is no class.

    Raises:
        ManifestError: The folder is missing, holds no video, or has a class that is not in `class_names`.
    """
    top = existing_folder(root)
    paths, others = walk(top)
    ignored = len(others)
    if not paths:
        others = f"; {ignored} other file{'s' * (ignored != 1)} ignored" if ignored else ""
        kinds = " ".join(sorted(VIDEO_EXTENSIONS))
        raise ManifestError(f"{root}: holds no videos (looked below it for {kinds}{others})")
    parts = [path.relative_to(top).parts for path in paths]
    split_layout = {p[0] if len(p) > 1 else "" for p in parts} <= SPLIT_FOLDERS
    videos = []
    for path, names in zip(paths, parts, strict=True):
        split = names[0] if split_layout else NO_SPLIT
        folders = names[1:-1] if split_layout else names[:-1]
        label = tidy_name(folders[0]) if folders else None
        videos.append(VideoRow("/".join(names), str(path), class_name=label, split=split))
    return _listing(videos, class_names, top, top.name or "videos", ignored, str(root))


def list_csv(file: str | Path, root: str | Path | None = None, class_names: Sequence[str] | None = None) -> Listing:
    """Reads a list of videos: UTF-8, comma-separated, with the columns ``path``, ``label``, ``split``, ``group``.

    All but the first may lack. An empty label means an unlabelled video, an empty split "all", an empty group what
    `source_of` finds in the name.  A file that is not there stays in, and becomes a
    row with its error.

    Args:
        file: The CSV.
        root: Folder that relative paths start from; by default the CSV's.  Video ids are relative to it; a video
            outside it has its absolute path for an id.
        class_names: The classes in label-id order; by default the labels in alphabetical order.

    Raises:
        ManifestError: The CSV cannot be read, names a video twice or has a label that is not in `class_names`; the
            message names the line.
    """
    place = Path(file).expanduser()
    top = (Path(root).expanduser() if root is not None else place.parent).absolute()
    videos: list[VideoRow] = []
    lines: dict[str, str] = {}
    known = None if class_names is None else distinct_names(map(tidy_name, class_names), str(file))
    for at, cells in csv_rows(place, ("path",), ("label", "split", "group")):
        if not cells["path"]:
            raise ManifestError(f"{at}: the path is empty")
        path = os.path.normpath(top / cells["path"])
        if path in lines:
            raise ManifestError(f"{at}: {cells['path']} is already in {lines[path]}")
        lines[path] = at
        label = tidy_name(cells.get("label", "")) or None
        if known is not None and label is not None and label not in known:
            raise ManifestError(f'{at}: label "{label}" is not among the class names{suggestion(label, known)}')
        inside = Path(path).is_relative_to(top)
        video_id = Path(path).relative_to(top).as_posix() if inside else Path(path).as_posix()
        split, group = cells.get("split") or NO_SPLIT, cells.get("group") or None
        videos.append(VideoRow(video_id, path, class_name=label, split=split, group=group))
    if not videos:
        raise ManifestError(f"{file}: lists no videos")
    return _listing(videos, class_names, top, place.stem, 0, str(file))


def walk(top: Path) -> tuple[list[Path], list[Path]]:
    """The videos below a folder, symbolic links followed, and the other files; hidden ones are passed over.

    Raises:
        ManifestError: A folder cannot be read.
    """
    videos: list[Path] = []
    others: list[Path] = []
    # The folders on the way down by identity, so that a link to a folder above ends the walk there.
    above: dict[str, frozenset[tuple[int, int]]] = {}
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_unreadable):
        here = Path(folder).stat()
        way = above.pop(folder, frozenset()) | {(here.st_dev, here.st_ino)}
        kept = []
        for name in sorted(folders):
            below = os.path.join(folder, name)  # noqa: PTH118  the same string that os.walk will use
            status = Path(below).stat()
            if not name.startswith(".") and (status.st_dev, status.st_ino) not in way:
                above[below] = way
                kept.append(name)
        folders[:] = kept
        for name in files:
            if not name.startswith("."):
                kind = videos if Path(name).suffix.lower() in VIDEO_EXTENSIONS else others
                kind.append(Path(folder, name))
    return videos, others


def existing_folder(place: str | Path) -> Path:
    """A folder's absolute path, or a ManifestError."""
    top = Path(place).expanduser().absolute()
    if not top.is_dir():
        raise ManifestError(f"{place}: {'is not a folder' if top.exists() else 'no such folder'}")
    return top


def _unreadable(error: OSError) -> None:
    raise ManifestError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def _listing(
    videos: Iterable[VideoRow], class_names: Sequence[str] | None, root: Path, name: str, ignored: int, shown: str
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
    return Listing(ordered, names, str(root), name, ignored)
