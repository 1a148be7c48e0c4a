"""Lists as repositories publish them: `path label`, one video a line, with the names of the labels in a file beside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from zar_ray.data.benchmarks.layout import Annotations
from zar_ray.data.classes import by_key, class_list, distinct_names, known_class_lists, name_key, tidy_name
from zar_ray.data.manifest import VideoRow
from zar_ray.data.protocols import SplitSpec
from zar_ray.data.text_files import csv_rows, read_lines
from zar_ray.errors import ConfigError, ManifestError, suggestion
from zar_ray.options.places import from_home

_ENTRY = re.compile(r"(?P<path>.*[^\s,])(?:\s+|\s*,\s*)(?P<label>-?\d{1,9})")
_ANOTHER_NUMBER = re.compile(r"[\s,;|]-?[\d.]+$")
_OFFICIAL = ("train", "val", "test")


@dataclass(frozen=True)
class VideoList:
    """A list (`place` is its file) and the names of its labels, in label-id order."""

    place: str
    videos: tuple[VideoRow, ...]  # its lines: a path relative to the videos' folder and a label each
    places: tuple[str, ...]  # where each of them stands, for messages
    class_names: tuple[str, ...]
    labels_place: str  # where the names come from, for messages
    split: str = "all"  # the manifest's split whose videos it names
    spec: SplitSpec | None = None  # the split of a benchmark that it stands for


def read_labels(place: str) -> tuple[str, ...]:
    """Class names in label-id order from a shipped list's name (``hmdb51_base``) or a file.

    The file has one name a line, or is a CSV with the header ``id,name``.

    Raises:
        ManifestError: There is no such list or file, or its content is no list of distinct names.
    """
    path = from_home(place)
    if not path.is_file():
        if place in known_class_lists():
            return class_list(place)
        near = suggestion(place, known_class_lists()) if "/" not in place and "." not in place else ""
        raise ManifestError(f"{place}: no such file of class names{near}")
    lines = list(read_lines(path))
    if lines and name_key(lines[0][1]) == "idname":
        named = [(at, row["id"], row["name"]) for at, row in csv_rows(path, ("id", "name"))]
        for expected, (at, number, _) in enumerate(named):
            if number != str(expected):
                raise ManifestError(f"{at}: has the id {number}, expected {expected}; ids must count from 0")
        lines = [(at, name) for at, _, name in named]
    return distinct_names((tidy_name(name) for _, name in lines), place)


def read_list(place: str, labels: str) -> VideoList:
    """Reads a list of ``path label`` lines (a space, a tab or a comma between them); labels as for `read_labels`.

    Raises:
        ManifestError: A file cannot be read, or a line is of another form, or has a label without a name or several
            numbers after its path.
    """
    names = read_labels(labels)
    videos, places = [], []
    for at, line in read_lines(from_home(place)):
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise ManifestError(f'{at}: must be a path and a label\'s number, not "{line}"')
        if _ANOTHER_NUMBER.search(match["path"]):
            raise ManifestError(
                f'{at}: "{line}" has several numbers after the path, and a list has one label a video; names that end '
                "in a number need their extension"
            )
        label = int(match["label"])
        if not 0 <= label < len(names):
            raise ManifestError(
                f"{at}: has label {label}, and {labels} names {len(names)} classes (0 to {len(names) - 1}); "
                "are these the list's labels?"
            )
        videos.append(VideoRow(match["path"], "", label, names[label]))
        places.append(at)
    if not videos:
        raise ManifestError(f"{place}: lists no videos")
    return VideoList(str(place), tuple(videos), tuple(places), names, labels)


def read_lists(given: Sequence[str], labels: Sequence[str], specs: Sequence[SplitSpec] = ()) -> list[VideoList]:
    """Reads what ``--list [SPLIT=]FILE ...`` and ``--labels FILE ...`` name.

    Args:
        given: The lists. SPLIT is the split of the benchmark that a list stands for, or what the manifest shall call
            it; without it a benchmark's splits come in their order, else the file's name is taken.
        labels: Their class names, one for all or one each; by default those of the benchmark's splits.
        specs: The benchmark's splits.

    Raises:
        ConfigError: Numbers or names do not fit together.
        ManifestError: A file cannot be read.
    """
    if labels and len(labels) not in (1, len(given)):
        raise ConfigError(f"--labels: {len(labels)} given for {len(given)} lists; give one for all, or one each")
    if not labels and not specs:
        raise ConfigError("--list: give the names of its labels with --labels FILE, or a class list's name")
    named = [_split_and_file(text, specs) for text in given]
    if specs and any(split is None for split, _ in named):
        if len(named) != len(specs):
            known = ", ".join(spec.name for spec in specs)
            raise ConfigError(f"--list: say which split {given[0]} is, as SPLIT=FILE (splits: {known})")
        named = [(split or spec.name, file) for (split, file), spec in zip(named, specs, strict=True)]
    by_name = {spec.name: spec for spec in specs}
    lists = []
    for number, (split, file) in enumerate(named):
        spec = by_name.get(split or "")
        own = labels[min(number, len(labels) - 1)] if labels else spec.classes or "" if spec else ""
        member = (spec.videos or (spec.name,))[0] if spec else split or Path(file).stem
        lists.append(replace(read_list(file, own), split=member, spec=spec))
    return lists


def merge_lists(
    name: str, class_names: Sequence[str], lists: Sequence[VideoList], annotations: Annotations | None = None
) -> Annotations:
    """Adds lists to what a benchmark's annotations say, or takes them alone; spells classes as `class_names` do.

    A benchmark's videos are told apart by their names. Of lists alone some may have one name in several folders.

    Raises:
        ManifestError: A list names a video twice, has a class that is not among `class_names`, or calls a video by
            another class than the annotations or another list do.
    """
    apart = _in_several_folders(lists) if annotations is None else frozenset()
    annotations = annotations or Annotations()
    known = set(class_names)
    spelled = by_key(class_names)
    videos = {video.stem: video for video in annotations.videos}
    for one in lists:
        seen: dict[str, str] = {}
        for at, entry in zip(one.places, one.videos, strict=True):
            key = str(PurePosixPath(entry.video_id).with_suffix("")) if entry.stem in apart else entry.stem
            if key in seen:
                raise ManifestError(f"{at}: {entry.video_id} is already in {seen[key].rpartition(', ')[2]}")
            seen[key] = at
            said = str(entry.class_name)
            label = said if said in known else spelled.get(name_key(said))
            if label is None:
                raise ManifestError(f'{at}: class "{said}" of {one.labels_place} is no class of {name}')
            video = videos.get(key)
            if video is None:
                official = [part for part in PurePosixPath(entry.video_id).parts[:-1] if part in _OFFICIAL][:1]
                path, split = entry.video_id.lstrip("/"), official[0] if official else "all"
                video = VideoRow(path, "", class_name=label, split=split, splits=tuple(official))
            if label not in video.label_names:
                raise ManifestError(
                    f'{at}: calls the video "{label}", which is "{", ".join(video.label_names)}" elsewhere; '
                    f'"zar data audit --list {one.place} --labels {one.labels_place}" looks for mistakes in labels'
                )
            videos[key] = replace(video, splits=tuple(dict.fromkeys((*video.memberships, one.split))))
    sources = tuple(Path(one.place).name for one in lists)
    return replace(annotations, videos=tuple(videos.values()), sources=(*annotations.sources, *sources))


def _in_several_folders(lists: Sequence[VideoList]) -> frozenset[str]:
    """Names that videos of one list have in several folders."""
    found = set()
    for one in lists:
        folders: dict[str, PurePosixPath] = {}
        for entry in one.videos:
            folder = PurePosixPath(entry.video_id).parent
            if folders.setdefault(entry.stem, folder) != folder:
                found.add(entry.stem)
    return frozenset(found)


def _split_and_file(text: str, specs: Sequence[SplitSpec]) -> tuple[str | None, str]:
    split, sign, file = text.partition("=")
    if not sign or from_home(text).exists():
        return None, text
    if specs and split not in [spec.name for spec in specs]:
        raise ConfigError(f'--list: no split "{split}"{suggestion(split, [spec.name for spec in specs])}')
    return split, file
