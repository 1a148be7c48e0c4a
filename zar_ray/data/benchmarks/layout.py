"""A benchmark's folder as it was downloaded, what its annotations say, and how the two fit together.

An adapter reads annotations and says which video each entry means; here files are found whatever their folder or
extension, and what is missing is counted by split and class.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from zar_ray.data.classes import by_key, name_key
from zar_ray.data.listing import YOUTUBE, Listing, existing_folder, source_of, walk
from zar_ray.data.manifest import VideoRow
from zar_ray.data.text_files import read_lines
from zar_ray.errors import ManifestError, suggestion

UNLABELLED = "(no label)"
_SHOWN = 10  # classes with missing videos that a split shows


class Files:
    """The files below a benchmark's folder, and below that of its annotations where that is another.

    Attributes:
        root: The videos' folder, absolute.
        videos: Paths of the videos relative to it, with forward slashes, sorted.
        others: Absolute paths of all other files, sorted.

    Raises:
        ManifestError: A folder is missing or cannot be read.
    """

    def __init__(self, root: str | Path, annotations: str | Path | None = None) -> None:
        self.root = existing_folder(root)
        paths, others, _ = walk(self.root)
        if annotations is not None and not (beside := existing_folder(annotations)).is_relative_to(self.root):
            others += walk(beside)[1]
        self.videos = sorted(path.relative_to(self.root).as_posix() for path in paths)
        self.others = sorted(set(others))  # one folder may hold the other
        self._exact: defaultdict[str, list[str]] = defaultdict(list)
        self._loose: defaultdict[str, list[str]] = defaultdict(list)
        for video in self.videos:
            stem = PurePosixPath(video).stem
            self._exact[stem].append(video)
            self._loose[name_key(stem)].append(video)

    def find(self, stem: str, *near: str, exact: bool = False) -> str | None:
        """The video of a name, whatever its extension and folder.

        Args:
            stem: The file's name without its extension.
            near: Folder names, such as class and split, that decide where several files have the name.
            exact: Only this spelling; otherwise case and punctuation may differ, as where unpacking changed names.
        """
        found = self._exact.get(stem) or ([] if exact else self._loose.get(name_key(stem), []))
        if len(found) < 2:
            return found[0] if found else None
        keys = {name_key(name) for name in near}
        return max(found, key=lambda path: len(keys & {name_key(p) for p in PurePosixPath(path).parts[:-1]}))

    def locate(self, video: VideoRow) -> str | None:
        """The file of an annotated video: where it is expected, else the one of its name."""
        if video.video_id in self._exact.get(video.stem, ()):
            return video.video_id
        near = (*PurePosixPath(video.video_id).parts[:-1], *video.memberships, *video.label_names)
        part = YOUTUBE.fullmatch(video.stem)
        if part is None:
            return self.find(video.stem, *near)
        youtube_id, start, end = part.groups()
        # What downloaders call the file of an entry.
        ends = ("", f"_{int(start)}", f"_{start}", f"_{int(start)}_{int(end)}", f"_{start}_{end}")
        names = (youtube_id + end for end in reversed(ends))
        return next((found for name in names if (found := self.find(name, *near, exact=True))), None)


@dataclass(frozen=True)
class Annotations:
    """What a benchmark's annotations say of its videos: labels and splits.

    A video's id is where the official layout has it, relative to the root.
    """

    videos: tuple[VideoRow, ...] = ()
    sources: tuple[str, ...] = ()  # the annotation files that were read, or what stands in for them
    notes: tuple[str, ...] = ()  # what to tell the user, a line each


@dataclass(frozen=True)
class LayoutReport:
    """What was found and what was not; the counts add up to those of the annotations."""

    sources: tuple[str, ...]  # the annotation files that were read
    listed: dict[str, int]  # annotated videos by split
    missing: dict[tuple[str, str], int]  # those without a file, by (split, class)
    left_out: dict[str, int]  # videos of splits of which no file is there at all; they make no rows
    skipped: bool  # whether missing videos of other splits were left out too, rather than kept with an error
    unused: tuple[str, ...]  # files below the root that no annotation names, sorted
    notes: tuple[str, ...]  # what the adapter has to say

    def lines(self) -> Iterator[str]:
        """The report for a terminal: a line a split, a line a class with missing videos (the worst ones), the rest."""
        yield f"read {', '.join(self.sources)}"
        by_split: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for (split, name), count in self.missing.items():
            by_split[split][name] += count
        for split, count in sorted(self.listed.items()):
            if split in self.left_out:
                yield f"{split}: none of {count:,} videos is here; the split is left out"
                continue
            absent = by_split[split]
            end = f", {absent.total():,} missing" if absent else ""
            kept = " (left out)" if self.skipped else " (kept, with an error each)"
            yield f"{split}: {count:,} videos{end}{kept if absent else ''}"
            for name, number in sorted(absent.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]:
                yield f"  {name}: {number} missing"
            if len(absent) > _SHOWN:
                yield f"  ... and {len(absent) - _SHOWN} more classes with missing videos"
        if self.unused:
            yield f"{len(self.unused):,} files are in no annotation, such as {self.unused[0]}; they are not used"
        yield from self.notes


def to_listing(
    name: str, class_names: tuple[str, ...], annotations: Annotations, files: Files, available_only: bool = False
) -> tuple[Listing, LayoutReport]:
    """Puts annotations and files together.

    A video without a file is a row with an error, so that counts add up; a split without any file (one that was not
    downloaded) makes no rows, and the report says so.  With `available_only` all missing videos are left out.

    Raises:
        ManifestError: None of the videos is there, or an entry occurs twice.
    """
    videos = annotations.videos
    found, shared = located(videos, files)
    listed = Counter(split for video in videos for split in video.memberships)
    there = Counter(split for video, path in zip(videos, found, strict=True) if path for split in video.memberships)
    left_out = {split: count for split, count in listed.items() if not there[split]}
    if not there:
        raise ManifestError(
            f"{files.root}: holds none of the {len(videos):,} videos of {name} that "
            f"{', '.join(annotations.sources)} names; --root must be the folder of the videos"
        )
    missing: Counter[tuple[str, str]] = Counter()
    rows: dict[str, VideoRow] = {}
    for video, path in zip(videos, found, strict=True):
        splits = tuple(split for split in video.memberships if split not in left_out)
        if path is None:
            missing.update((split, label) for split in splits for label in video.label_names or (UNLABELLED,))
            if available_only or not splits:
                continue
        video_id = path or video.video_id
        if video_id in rows:
            raise ManifestError(f'{files.root}: the annotations of {name} have "{video_id}" twice')
        kept = None if splits == (video.split,) else splits
        path, group = str(files.root / video_id), source_of(video.video_id)
        rows[video_id] = replace(video, video_id=video_id, path=path, splits=kept, group=group)
    doubtful = (f"{shared:,} entries share a file with another one; they count as missing",) if shared else ()
    report = LayoutReport(
        sources=annotations.sources,
        listed=dict(listed),
        missing=dict(missing),
        left_out=left_out,
        skipped=available_only,
        unused=tuple(sorted(set(files.videos) - rows.keys())),
        notes=(*annotations.notes, *doubtful),
    )
    ordered = tuple(rows[video_id] for video_id in sorted(rows))
    return Listing(ordered, class_names, str(files.root), name), report


def located(videos: Sequence[VideoRow], files: Files) -> tuple[list[str | None], int]:
    """The file of each video, and how many share theirs with another one, to which it is given.

    Such entries are parts of one YouTube video whose file is called by the id alone, or names alike but for
    punctuation of which one is missing; the file goes to the one of its exact name if there is one.
    """
    found = [files.locate(video) for video in videos]
    owner: dict[str, VideoRow] = {}
    for video, path in zip(videos, found, strict=True):
        if path and (path not in owner or PurePosixPath(path).stem == video.stem != owner[path].stem):
            owner[path] = video
    kept = [path if path and owner[path] is video else None for video, path in zip(videos, found, strict=True)]
    return kept, sum(path is not None for path in found) - len(owner)


class ClassNames:
    """A benchmark's class names, in label-id order, looked up by any spelling."""

    def __init__(self, names: Sequence[str], benchmark: str) -> None:
        self.names = tuple(names)
        self._by_key = by_key(names)
        self._benchmark = benchmark

    def find(self, spelled: str) -> str | None:
        """The class that a folder or a label means; None for no class."""
        return self._by_key.get(name_key(spelled))

    def get(self, spelled: str, place: str) -> str:
        """The class that an annotation means, or a ManifestError that names `place`."""
        name = self.find(spelled)
        if name is None:
            near = suggestion(spelled, self.names)
            raise ManifestError(f'{place}: "{spelled}" is no class of {self._benchmark}{near}')
        return name


def check_classes(names: Iterable[str], known: ClassNames, place: Path) -> None:
    """Raises a ManifestError, with the first difference, unless an official file of names has the order of ours."""
    listed = tuple(names)
    if len(listed) != len(known.names):
        raise ManifestError(f"{place}: has {len(listed)} classes, expected {len(known.names)}; is it another version?")
    for number, (name, ours) in enumerate(zip(listed, known.names, strict=True)):
        if name_key(name) != name_key(ours):
            raise ManifestError(f'{place}: class {number} is "{name}", expected "{ours}"; is it another version?')


def check_class_file(files: Files, name: str, known: ClassNames) -> None:
    """Does `check_classes` for an official file with a number and a name a line, where it lies below the folders."""
    for path in files.others:
        if path.name.lower() == name:
            check_classes((line.split(maxsplit=1)[-1] for _, line in read_lines(path)), known, path)
