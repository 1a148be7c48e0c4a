"""HMDB51: a folder a class, and `CLASS_test_splitN.txt` with a line a video: its name and 1 (train), 2 (test) or 0."""

from __future__ import annotations

import re

from zar_ray.data.benchmarks.layout import Annotations, ClassNames, Files
from zar_ray.data.manifest import VideoRow
from zar_ray.data.text_files import read_lines
from zar_ray.errors import ManifestError

_FILE = re.compile(r"(?P<name>.+)_test_split(?P<split>[123])\.txt", re.IGNORECASE)
_PARTS = {"0": "unused", "1": "train", "2": "test"}


def annotate(files: Files, classes: ClassNames) -> Annotations:
    """Reads the split files.

    A video is in `trainN` or `testN` for each split N that uses it, and in `unused` where none does.

    Raises:
        ManifestError: A class lacks a split file that others have, or a line cannot be read.
    """
    found = [(path, match) for path in files.others if (match := _FILE.fullmatch(path.name))]
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
            if not video.strip() or part not in _PARTS:
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
