"""A folder of videos, or a CSV that lists them, to a manifest.

Two layouts of folders are understood, and both may hold further folders below a class:

- ``CLASS/.../VIDEO``: a class a folder;
- ``SPLIT/CLASS/.../VIDEO`` where every top-level folder that holds videos is called train, val or test.

Videos that lie outside class folders are unlabelled.  Video ids keep the names' characters exactly as they are on the
disk, since they are also the way to the file; class names are put into Unicode's composed form (NFC), so that the text
the model reads does not depend on the file system that a dataset was unpacked on.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.probing import PROBE_TIMEOUT, Probe, ProbeError, Progress, probe_files
from zar_ray.errors import ConfigError, ManifestError, suggestion
from zar_ray.video.options import Decoder
from zar_ray.video.reading import has_decord, probe_video

VIDEO_EXTENSIONS = frozenset(
    ".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .wmv .flv .gif .ts .3gp".split()  # noqa: SIM905
)
SPLIT_FOLDERS = frozenset({"train", "val", "test"})
NO_SPLIT = "all"
_CSV_COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class ListedVideo:
    """A video that a folder, a CSV or a benchmark's annotations name, before anyone has opened it.

    The fields are those of `VideoRow`.
    """

    video_id: str
    path: str
    class_name: str | None
    split: str
    splits: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Listing:
    """All videos of a dataset, sorted by id, and how many other files lay among them."""

    videos: tuple[ListedVideo, ...]
    class_names: tuple[str, ...]
    root: str
    name: str
    ignored: int


def index_folder(
    root: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    decoder: Decoder = "auto",
    workers: int | None = None,
    timeout: float = PROBE_TIMEOUT,
    progress: Progress | None = None,
    probe: Probe = probe_video,
) -> Manifest:
    """Lists a folder's videos and probes every one; see `list_folder` and `probe_listing` for arguments and errors."""
    return probe_listing(list_folder(root, class_names), decoder, workers, timeout, progress, probe)


def index_csv(
    file: str | Path,
    root: str | Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    decoder: Decoder = "auto",
    workers: int | None = None,
    timeout: float = PROBE_TIMEOUT,
    progress: Progress | None = None,
    probe: Probe = probe_video,
) -> Manifest:
    """Lists a CSV's videos and probes every one; see `list_csv` and `probe_listing` for arguments and errors."""
    return probe_listing(list_csv(file, root, class_names), decoder, workers, timeout, progress, probe)


def list_folder(root: str | Path, class_names: Sequence[str] | None = None) -> Listing:
    """Finds the videos below a folder, by their extension; hidden files and folders are passed over.

    Args:
        root: The folder.
        class_names: The classes in label-id order; by default the class folders' names in alphabetical order.  A
            folder without a video is no class.

    Raises:
        ManifestError: The folder is missing, holds no video, or has a class that is not in `class_names`.
    """
    top = Path(root).expanduser().absolute()
    if not top.is_dir():
        raise ManifestError(f"{root}: {'is not a folder' if top.exists() else 'no such folder'}")
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
        videos.append(ListedVideo("/".join(names), str(path), _tidy(folders[0]) if folders else None, split))
    return _listing(videos, class_names, top, top.name or "videos", ignored, str(root))


def list_csv(file: str | Path, root: str | Path | None = None, class_names: Sequence[str] | None = None) -> Listing:
    """Reads a list of videos: UTF-8, comma-separated, with the header ``path,label`` or ``path,label,split``.

    An empty label means an unlabelled video, an empty split "all".  A file that is not there stays in, and becomes a
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
    place = Path(file).expanduser().absolute()
    top = Path(root).expanduser().absolute() if root is not None else place.parent
    videos: list[ListedVideo] = []
    lines: dict[str, int] = {}
    known = None if class_names is None else _known_names(class_names, str(file))
    for line, cells in _csv_rows(place, str(file)):
        at = f"{file}, line {line}"
        if not cells["path"]:
            raise ManifestError(f"{at}: the path is empty")
        path = os.path.normpath(top / cells["path"])
        if path in lines:
            raise ManifestError(f"{at}: {cells['path']} is already in line {lines[path]}")
        lines[path] = line
        label = _tidy(cells.get("label", "")) or None
        if known is not None and label is not None and label not in known:
            raise ManifestError(f'{at}: label "{label}" is not among the class names{suggestion(label, known)}')
        inside = Path(path).is_relative_to(top)
        video_id = Path(path).relative_to(top).as_posix() if inside else Path(path).as_posix()
        videos.append(ListedVideo(video_id, path, label, cells.get("split") or NO_SPLIT))
    if not videos:
        raise ManifestError(f"{file}: lists no videos")
    return _listing(videos, class_names, top, place.stem, 0, str(file))


def probe_listing(
    listing: Listing,
    decoder: Decoder = "auto",
    workers: int | None = None,
    timeout: float = PROBE_TIMEOUT,
    progress: Progress | None = None,
    probe: Probe = probe_video,
) -> Manifest:
    """Opens every listed video and writes down what it is; one that cannot be opened keeps its row, with the error.

    Args:
        listing: The videos.
        decoder: "auto", "decord" or "pyav".
        workers: Processes; by default one a CPU.
        timeout: Seconds a file may take.
        progress: Called as ``progress(done, all)``.
        probe: What opens a file.

    Returns:
        The manifest, rows sorted by video id.

    Raises:
        ConfigError: decord is asked for and not installed; every file would fail for the same reason.
    """
    if decoder == "decord" and not has_decord():
        raise ConfigError("decord is not installed here; use --decoder auto or --decoder pyav")
    label_ids = {name: index for index, name in enumerate(listing.class_names)}
    answers = probe_files([v.path for v in listing.videos], probe, decoder, workers, timeout, progress)
    rows = []
    for video, answer in zip(listing.videos, answers, strict=True):
        row = VideoRow(
            video_id=_storable(video.video_id),
            path=_storable(video.path),
            label_id=None if video.class_name is None else label_ids[video.class_name],
            class_name=video.class_name,
            split=video.split,
            size=_size(video.path),
            splits=video.splits,
            labels=video.labels,
        )
        if row.path != video.path:
            row = replace(row, error="the file's name is not UTF-8; rename it")
        elif isinstance(answer, ProbeError):
            row = replace(row, error="no such file" if _is_missing(video.path) else answer.message)
        else:
            row = replace(
                row,
                frames=answer.frames,
                fps=answer.fps,
                width=answer.width,
                height=answer.height,
                duration=answer.duration,
                decoder=answer.decoder,
            )
        rows.append(row)
    return Manifest.of(rows, listing.class_names, listing.root, listing.name)


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
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in VIDEO_EXTENSIONS:
                videos.append(Path(folder, name))
            else:
                others.append(Path(folder, name))
    return videos, others


def _unreadable(error: OSError) -> None:
    raise ManifestError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def _csv_rows(place: Path, shown: str) -> Iterable[tuple[int, dict[str, str]]]:
    """Yields (line number, cell by column) of each row that is not blank."""
    try:
        # utf-8-sig: spreadsheets begin UTF-8 files with a byte order mark.
        with place.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            header: list[str] | None = None
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if header is None:
                    header = _csv_header(cells, shown)
                    continue
                if len(cells) != len(header):
                    raise ManifestError(
                        f"{shown}, line {reader.line_num}: has {len(cells)} cell{'s' * (len(cells) != 1)}, the header "
                        f'has {len(header)}; put names that hold a comma in "quotes"'
                    )
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except FileNotFoundError:
        raise ManifestError(f"{shown}: no such file") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{shown}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise ManifestError(f"{shown}: is not a CSV ({error})") from error
    except OSError as error:
        raise ManifestError(f"{shown}: cannot be read ({error.strerror})") from error


def _csv_header(cells: Sequence[str], shown: str) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    if "path" not in header:
        raise ManifestError(f'{shown}: must begin with the header "path,label" or "path,label,split"')
    for name in header:
        if name not in _CSV_COLUMNS:
            raise ManifestError(f'{shown}: unknown column "{name}"{suggestion(name, _CSV_COLUMNS)}')
        if header.count(name) > 1:
            raise ManifestError(f'{shown}: column "{name}" occurs more than once')
    return header


def _listing(
    videos: Iterable[ListedVideo], class_names: Sequence[str] | None, root: Path, name: str, ignored: int, shown: str
) -> Listing:
    ordered = tuple(sorted(videos, key=lambda video: video.video_id))
    found = sorted({video.class_name for video in ordered if video.class_name is not None})
    if class_names is None:
        names = tuple(found)
    else:
        names = _known_names(class_names, shown)
        for label in found:
            if label not in names:
                raise ManifestError(f'{shown}: class "{label}" is not among the class names{suggestion(label, names)}')
    return Listing(ordered, names, str(root), name, ignored)


def _known_names(class_names: Sequence[str], shown: str) -> tuple[str, ...]:
    names = tuple(_tidy(name) for name in class_names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ManifestError(f'{shown}: class name "{twice}" is given more than once')
    return names


def _tidy(name: str) -> str:
    return unicodedata.normalize("NFC", _storable(name).strip())


def _storable(text: str) -> str:
    """The text itself where it is Unicode; bytes that are none (file names may hold any) become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_missing(path: str) -> bool:
    try:
        Path(path).stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None
