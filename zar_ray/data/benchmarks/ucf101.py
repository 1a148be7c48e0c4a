"""UCF101: a folder a class, `classInd.txt`, and `trainlistNN.txt` and `testlistNN.txt` with a line a video."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from zar_ray.data.benchmarks.layout import Annotations, ClassNames, Files, check_class_file
from zar_ray.data.manifest import VideoRow
from zar_ray.data.text_files import read_lines
from zar_ray.errors import ManifestError

_LIST = re.compile(r"(?P<part>train|test)list0?(?P<split>[123])\.txt", re.IGNORECASE)


def annotate(files: Files, classes: ClassNames) -> Annotations:
    """Reads the lists; `HandStandPushups` in file names and `HandstandPushups` as label are one class.

    A video is in `trainN` or `testN` for each split N that lists it.

    Raises:
        ManifestError: A line cannot be read, or `classInd.txt` has other classes.
    """
    lists = sorted((path, match) for path in files.others if (match := _LIST.fullmatch(path.name)))
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
