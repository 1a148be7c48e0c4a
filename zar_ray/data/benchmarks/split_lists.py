"""HMDB51 and UCF101: a folder a class, and text files with the videos of each split."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from zar_ray.data.benchmarks.layout import Annotations, ClassNames, Files, check_class_file
from zar_ray.data.manifest import VideoRow
from zar_ray.data.text_files import read_lines
from zar_ray.errors import ManifestError

_HMDB_FILE = re.compile(r"(?P<name>.+)_test_split(?P<split>[123])\.txt", re.IGNORECASE)
_PARTS = {"0": "unused", "1": "train", "2": "test"}
_UCF_LIST = re.compile(r"(?P<part>train|test)list0?(?P<split>[123])\.txt", re.IGNORECASE)


def annotate_hmdb51(files: Files, classes: ClassNames) -> Annotations:
    """Reads HMDB51's `CLASS_test_splitN.txt`: a video's name and 1 (train), 2 (test) or 0 a line.

    A video is in `trainN` or `testN` for each split N that uses it, and in `unused` where none does.

    Raises:
        ManifestError: A class lacks a split file that others have, or a line cannot be read.
    """
    found = [(path, match) for path in files.others if (match := _HMDB_FILE.fullmatch(path.name))]
    if not found:
        return Annotations()
    members: dict[tuple[str, str], dict[str, str]] = {}
    seen: dict[tuple[str, str], str] = {}
    for path, match in found:
        name, split = classes.get(match["name"], str(path)), match["split"]
        if (name, split) in seen:
            raise ManifestError(f"{path}: is a second list of split {split} of {name}, beside {seen[name, split]}")
        seen[name, split] = str(path)
        for place, line in read_lines(path):
            video, _, part = line.rpartition(" ")
            if not video.strip() or part not in _PARTS or video.strip().endswith((" 0", " 1", " 2")):
                raise ManifestError(f'{place}: must be a file name and 0, 1 or 2, not "{line}"')
            members.setdefault((name, video.strip()), {})[split] = _PARTS[part]
    splits = sorted({split for _, split in seen})
    for name in classes.names:
        for split in splits:
            if (name, split) not in seen:
                raise ManifestError(
                    f"{files.root}: no {name.replace(' ', '_')}_test_split{split}.txt below it, though other classes "
                    "have theirs"
                )
    videos = []
    for (name, video), parts in members.items():
        used = tuple(f"{part}{split}" for split, part in sorted(parts.items()) if part != "unused")
        place = f"{name.replace(' ', '_')}/{video}"
        videos.append(VideoRow(place, "", class_name=name, splits=used or ("unused",)))
    return Annotations(tuple(videos), sources=(f"{len(found)} files like {found[0][0].name}",))


def annotate_ucf101(files: Files, classes: ClassNames) -> Annotations:
    """Reads UCF101's `classInd.txt`, and `trainlistNN.txt` and `testlistNN.txt` with `CLASS/VIDEO.avi` a line.

    `HandStandPushups` in file names and `HandstandPushups` as label are one class.

    A video is in `trainN` or `testN` for each split N that lists it.

    Raises:
        ManifestError: A line cannot be read, or `classInd.txt` has other classes.
    """
    lists = sorted((path, match) for path in files.others if (match := _UCF_LIST.fullmatch(path.name)))
    check_class_file(files, "classind.txt", classes)
    videos: dict[str, VideoRow] = {}
    for path, match in lists:
        split = f"{match['part'].lower()}{match['split']}"
        for place, line in read_lines(path):
            words = line.split()  # a training list repeats the label's number
            video = PurePosixPath(words[0])
            if len(words) > 2 or len(video.parts) < 2:
                raise ManifestError(f'{place}: must be CLASS/VIDEO.avi, with the class number or without, not "{line}"')
            name, stem = classes.get(video.parts[-2], place), video.stem
            one = videos.get(stem) or VideoRow(f"{name}/{stem}.avi", "", class_name=name, splits=())
            if one.class_name != name:
                raise ManifestError(f"{place}: {stem} is of class {name} here, {one.class_name} elsewhere")
            if split in one.memberships:
                raise ManifestError(f"{place}: {stem} is listed before in this split")
            videos[stem] = replace(one, splits=tuple(sorted((*one.memberships, split))))
    return Annotations(tuple(videos.values()), sources=tuple(path.name for path, _ in lists))
