"""Charades: CSVs with all actions of a video in one cell (``c092 11.90 21.20;c147 0.00 12.60``), and `ID.mp4` files."""

from __future__ import annotations

import re

from zar_ray.data.benchmarks.layout import Annotations, ClassNames, Files, check_class_file
from zar_ray.data.manifest import VideoRow
from zar_ray.data.text_files import csv_header, csv_rows
from zar_ray.errors import ManifestError

_COLUMNS = ("id", "actions")
_SPLIT = re.compile(r"(train|test)", re.IGNORECASE)
_ACTION = re.compile(r"c(\d{3})(?:\s+[\d.]+\s+[\d.]+)?")


def annotate(files: Files, classes: ClassNames) -> Annotations:
    """Reads `Charades_v1_train.csv` and `Charades_v1_test.csv`; a video without actions has an empty list of labels.

    Raises:
        ManifestError: An action cannot be read, or the classes are another version's.
    """
    tables = [
        (path, match[1].lower())
        for path in files.others
        if path.suffix.lower() == ".csv" and (match := _SPLIT.search(path.stem)) and {*_COLUMNS} <= {*csv_header(path)}
    ]
    check_class_file(files, "charades_v1_classes.txt", classes)
    videos: dict[str, VideoRow] = {}
    for path, split in tables:
        for place, row in csv_rows(path, _COLUMNS):
            stem = row["id"]
            if stem in videos:
                raise ManifestError(f"{place}: video {stem} is listed before, in {videos[stem].split}")
            ids = sorted(
                {_action(text, len(classes.names), place) for text in row["actions"].split(";") if text.strip()}
            )
            names = tuple(classes.names[i] for i in ids)
            videos[stem] = VideoRow(f"{stem}.mp4", "", split=split, labels=names)
    return Annotations(tuple(videos.values()), sources=tuple(path.name for path, _ in tables))


def _action(text: str, count: int, place: str) -> int:
    match = _ACTION.fullmatch(text.strip())
    if match is None or int(match[1]) >= count:
        raise ManifestError(f'{place}: "{text.strip()}" is not one of the actions c000 to c{count - 1:03d}')
    return int(match[1])
