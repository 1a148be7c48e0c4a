"""A benchmark's folder as it was downloaded, what its annotations say, and how the two fit together.

An adapter reads annotations and says which video each entry means; here files are found whatever their folder or
extension, and what is missing is counted by split and class.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from zar_ray.data.classes import by_key, name_key
from zar_ray.data.listing import Listing, existing_folder, walk
from zar_ray.data.manifest import VideoRow
from zar_ray.errors import ManifestError, suggestion

UNLABELLED = "(no label)"


class NoAnnotationsError(ManifestError):
    """There is nothing below a folder that would say what its videos are."""


@dataclass(frozen=True)
class Files:
    """The files below a benchmark's folder, and below that of its annotations where that is another.

    Attributes:
        root: The videos' folder, absolute.
        videos: Paths of the videos relative to it, with forward slashes, sorted.
        others: Absolute paths of all other files, sorted.
    """

    root: Path
    videos: tuple[str, ...]
    others: tuple[Path, ...]
    _exact: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)
    _loose: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def below(cls, root: str | Path, annotations: str | Path | None = None) -> Files:
        """Walks through the folders.

        Raises:
            ManifestError: A folder is missing or cannot be read.
        """
        top = existing_folder(root)
        paths, others = walk(top)
        if annotations is not None and not (beside := existing_folder(annotations)).is_relative_to(top):
            others += walk(beside)[1]
        videos = sorted(path.relative_to(top).as_posix() for path in paths)
        files = cls(top, tuple(videos), tuple(sorted(set(others))))  # one folder may hold the other
        for video in videos:
            stem = PurePosixPath(video).stem
            files._exact.setdefault(stem, []).append(video)
            files._loose.setdefault(name_key(stem), []).append(video)
        return files

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


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video as the annotations have it.

    Attributes:
        expected: Where the official layout has it, relative to the root; the id of a video that is missing.
        class_names: Its labels: none, one, or several in a multi-label benchmark.
        split: The official split where a video has one, else "all".
        splits: All splits it is in.
        found: The file, relative to the root; None where there is none.
    """

    expected: str
    class_names: tuple[str, ...]
    split: str
    splits: tuple[str, ...]
    found: str | None = None

    @property
    def key(self) -> str:
        """The file's name without folder and extension."""
        return PurePosixPath(self.expected).stem


@dataclass(frozen=True)
class Annotations:
    """What a benchmark's annotations say, files already looked up.

    Attributes:
        name: The benchmark.
        videos: All annotated videos.
        class_names: The classes in label-id order.
        multi_label: Whether a video may have several classes.
        sources: The annotation files that were read, or what stands in for them.
        notes: What to tell the user, a line each.
    """

    name: str
    videos: tuple[AnnotatedVideo, ...]
    class_names: tuple[str, ...]
    multi_label: bool = False
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayoutReport:
    """What was found and what was not; the counts add up to those of the annotations.

    Attributes:
        sources: The annotation files that were read.
        listed: Annotated videos by split.
        missing: Those without a file, by (split, class).
        left_out: Splits of which no file is there at all, with their number of videos; they make no rows.
        skipped: Whether missing videos of other splits were left out too, rather than kept with an error.
        unused: Files below the root that no annotation names, sorted.
        notes: What the adapter has to say.
    """

    sources: tuple[str, ...]
    listed: dict[str, int]
    missing: dict[tuple[str, str], int]
    left_out: dict[str, int]
    skipped: bool
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self, most: int = 10) -> Iterator[str]:
        """The report for a terminal: a line a split, a line a class with missing videos (the `most` worst), the rest.

        Args:
            most: Classes to show a split.
        """
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
            for name, number in sorted(absent.items(), key=lambda item: (-item[1], item[0]))[:most]:
                yield f"  {name}: {number} missing"
            if len(absent) > most:
                yield f"  ... and {len(absent) - most} more classes with missing videos"
        if self.unused:
            yield f"{len(self.unused):,} files are in no annotation, such as {self.unused[0]}; they are not used"
        yield from self.notes


Adapter = Callable[[Files], Annotations]


def to_listing(annotations: Annotations, files: Files, available_only: bool = False) -> tuple[Listing, LayoutReport]:
    """Puts annotations and files together.

    A video without a file is a row with an error, so that counts add up; a split without any file (one that was not
    downloaded) makes no rows, and the report says so.

    Args:
        annotations: What the adapter read.
        files: The files.
        available_only: Leave out all missing videos; the report counts them.

    Raises:
        ManifestError: None of the videos is there, or an entry occurs twice.
    """
    videos, doubtful = _one_entry_a_file(annotations.videos)
    listed = Counter(split for video in videos for split in video.splits)
    there = Counter(split for video in videos if video.found is not None for split in video.splits)
    left_out = {split: count for split, count in listed.items() if not there[split]}
    if not there:
        raise ManifestError(
            f"{files.root}: holds none of the {len(videos):,} videos of {annotations.name} that "
            f"{', '.join(annotations.sources)} names; --root must be the folder of the videos"
        )
    missing: Counter[tuple[str, str]] = Counter()
    rows: dict[str, VideoRow] = {}
    for video in videos:
        splits = tuple(split for split in video.splits if split not in left_out)
        if video.found is None:
            missing.update((split, name) for split in splits for name in video.class_names or (UNLABELLED,))
            if available_only or not splits:
                continue
        row = _listed(replace(video, splits=splits), annotations.multi_label, files.root)
        if row.video_id in rows:
            raise ManifestError(f'{files.root}: the annotations of {annotations.name} have "{row.video_id}" twice')
        rows[row.video_id] = row
    ordered = tuple(rows[video_id] for video_id in sorted(rows))
    unused = sorted(set(files.videos) - rows.keys())
    listing = Listing(ordered, annotations.class_names, str(files.root), annotations.name, ignored=0)
    report = LayoutReport(
        sources=annotations.sources,
        listed=dict(listed),
        missing=dict(missing),
        left_out=left_out,
        skipped=available_only,
        unused=tuple(unused),
        notes=(*annotations.notes, *doubtful),
    )
    return listing, report


def _one_entry_a_file(videos: Sequence[AnnotatedVideo]) -> tuple[list[AnnotatedVideo], list[str]]:
    """Gives a file that several entries were found to mean to one of them, the one of its exact name if there is one.

    Such entries are parts of one YouTube video whose file is called by the id alone, or names alike but for
    punctuation of which one is missing.
    """
    owner: dict[str, AnnotatedVideo] = {}
    for video in videos:
        if video.found is not None and (
            video.found not in owner or PurePosixPath(video.found).stem == video.key != owner[video.found].key
        ):
            owner[video.found] = video
    kept = [v if v.found is None or owner[v.found] is v else replace(v, found=None) for v in videos]
    lost = sum(before.found != after.found for before, after in zip(videos, kept, strict=True))
    return kept, [f"{lost:,} entries share a file with another one; they count as missing"] if lost else []


def _listed(video: AnnotatedVideo, multi_label: bool, root: Path) -> VideoRow:
    video_id = video.found or video.expected
    names = video.class_names
    return VideoRow(
        video_id=video_id,
        path=str(root / video_id),
        class_name=names[0] if names and not multi_label else None,
        split=video.split,
        splits=None if video.splits == (video.split,) else video.splits,
        labels=names if multi_label else None,
    )


class ClassNames:
    """A benchmark's class names, looked up by any spelling.

    Args:
        names: The names in label-id order.
        benchmark: The benchmark, for messages.
    """

    def __init__(self, names: Sequence[str], benchmark: str) -> None:
        self.names = tuple(names)
        self._by_key = MappingProxyType(by_key(names))
        self._benchmark = benchmark

    def find(self, spelled: str) -> str | None:
        """The class that a folder or a label means; None for no class."""
        return self._by_key.get(name_key(spelled))

    def get(self, spelled: str, place: str) -> str:
        """The class that an annotation means.

        Raises:
            ManifestError: It is no class of the benchmark; the message names `place`.
        """
        name = self.find(spelled)
        if name is None:
            near = suggestion(spelled, self.names) if len(self.names) < 60 else _near(spelled, self.names)
            raise ManifestError(f'{place}: "{spelled}" is no class of {self._benchmark}{near}')
        return name


def _near(spelled: str, names: Sequence[str]) -> str:
    """A near miss among many names, without listing them all."""
    said = suggestion(spelled, names)
    return said if "did you mean" in said else ""


def check_classes(names: Iterable[str], known: ClassNames, place: Path) -> None:
    """Checks that an official file of class names has the names and the order of ours.

    Raises:
        ManifestError: It differs; the message names the first difference.
    """
    listed = tuple(names)
    if len(listed) != len(known.names):
        raise ManifestError(f"{place}: has {len(listed)} classes, expected {len(known.names)}; is it another version?")
    for number, (name, ours) in enumerate(zip(listed, known.names, strict=True)):
        if name_key(name) != name_key(ours):
            raise ManifestError(f'{place}: class {number} is "{name}", expected "{ours}"; is it another version?')
