"""HMDB51: a folder a class, and `CLASS_test_splitN.txt` with a line a video: its name and 1 (train), 2 (test) or 0."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from zar_ray.data.benchmarks.layout import (
    AnnotatedVideo,
    Annotations,
    ClassNames,
    Files,
    NoAnnotationsError,
)
from zar_ray.data.classes import class_list
from zar_ray.data.text_files import read_lines
from zar_ray.errors import ManifestError

_FILE = re.compile(r"(?P<name>.+)_test_split(?P<split>[123])\.txt", re.IGNORECASE)
_PARTS = {"0": "unused", "1": "train", "2": "test"}


def annotate(files: Files) -> Annotations:
    """Reads the split files.

    A video is in `trainN` or `testN` for each split N that uses it, and in `unused` where none does.

    Raises:
        NoAnnotationsError: There are no annotations.
        ManifestError: A class lacks a split file that others have, or a line cannot be read.
    """
    classes = ClassNames(class_list("hmdb51"), "HMDB51")
    found = [(path, match) for path in files.others if (match := _FILE.fullmatch(path.name))]
    if not found:
        raise NoAnnotationsError(
            f"{files.root}: no CLASS_test_splitN.txt below it; unpack the official test_train_splits archive there, "
            "or name its folder with --annotations"
        )
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
        stem, folder = PurePosixPath(video).stem, name.replace(" ", "_")
        used = tuple(f"{part}{split}" for split, part in sorted(parts.items()) if part != "unused")
        videos.append(
            AnnotatedVideo(
                expected=f"{folder}/{video}",
                class_names=(name,),
                split="all",
                splits=used or ("unused",),
                found=files.find(stem, folder),
            )
        )
    source = f"{len(found)} files like {found[0][0].name}"
    return Annotations("hmdb51", tuple(videos), classes.names, sources=(source,))
