"""UCF101: a folder a class, `classInd.txt`, and `trainlistNN.txt` and `testlistNN.txt` with a line a video."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from zar_ray.data.benchmarks.layout import (
    AnnotatedVideo,
    Annotations,
    ClassNames,
    Files,
    NoAnnotationsError,
    check_classes,
)
from zar_ray.data.classes import class_list
from zar_ray.data.text_files import read_lines
from zar_ray.errors import ManifestError

_LIST = re.compile(r"(?P<part>train|test)list0?(?P<split>[123])\.txt", re.IGNORECASE)


def annotate(files: Files) -> Annotations:
    """Reads the lists; `HandStandPushups` in file names and `HandstandPushups` as label are one class.

    A video is in `trainN` or `testN` for each split N that lists it.

    Raises:
        NoAnnotationsError: There are no annotations.
        ManifestError: A line cannot be read, or `classInd.txt` has other classes.
    """
    classes = ClassNames(class_list("ucf101"), "UCF101")
    lists = sorted((path, match) for path in files.others if (match := _LIST.fullmatch(path.name)))
    if not lists:
        raise NoAnnotationsError(
            f"{files.root}: no testlistNN.txt below it; unpack the official UCF101TrainTestSplits archive there, or "
            "name its folder with --annotations"
        )
    for path in files.others:
        if path.name.lower() == "classind.txt":
            check_classes((line.split(maxsplit=1)[-1] for _, line in read_lines(path)), classes, path)
    members: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for path, match in lists:
        for place, line in read_lines(path):
            words = line.split()  # a training list repeats the label's number
            video = PurePosixPath(words[0])
            if len(words) > 2 or len(video.parts) < 2:
                raise ManifestError(f'{place}: must be CLASS/VIDEO.avi, with the class number or without, not "{line}"')
            name = classes.get(video.parts[-2], place)
            if labels.setdefault(video.stem, name) != name:
                raise ManifestError(f"{place}: {video.stem} is of class {name} here, {labels[video.stem]} elsewhere")
            split = f"{match['part'].lower()}{match['split']}"
            if split in members.setdefault(video.stem, []):
                raise ManifestError(f"{place}: {video.stem} is listed before in this split")
            members[video.stem].append(split)
    videos = tuple(
        AnnotatedVideo(
            expected=f"{labels[stem]}/{stem}.avi",
            class_names=(labels[stem],),
            split="all",
            splits=tuple(sorted(splits)),
            found=files.find(stem, labels[stem]),
        )
        for stem, splits in members.items()
    )
    return Annotations("ucf101", videos, classes.names, sources=tuple(path.name for path, _ in lists))
