"""Kinetics-400, Kinetics-600 and Charades: official CSVs; of Kinetics also class folders alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from zar_ray.data.benchmarks.layout import Annotations, ClassNames, Files, check_class_file
from zar_ray.data.listing import NO_SPLIT
from zar_ray.data.manifest import VideoRow
from zar_ray.data.text_files import csv_header, csv_rows
from zar_ray.errors import ManifestError

_KINETICS = ("youtube_id", "time_start", "time_end")
_SPLITS = {name: name for name in ("train", "val", "test")}
_SPLITS |= {"training": "train", "validate": "val", "validation": "val"}
_CHARADES = ("id", "actions")
_CHARADES_SPLIT = re.compile(r"(train|test)", re.IGNORECASE)
_ACTION = re.compile(r"c(\d{3})(?:\s+[\d.]+\s+[\d.]+)?")


def annotate_kinetics(files: Files, classes: ClassNames) -> Annotations:
    """Reads the official CSVs; without any, class folders are the labels and folders above them the splits.

    Files are called ``ID_START_END`` (six digits each), ``ID_START`` or ``ID``, in class folders or not, below a
    folder of their split or not.

    Raises:
        ManifestError: A CSV has rows that cannot be read.
    """
    tables = _tables(files, _KINETICS)
    return _from_csvs(tables, classes) if tables else _from_folders(files, classes)


def _tables(files: Files, columns: Sequence[str]) -> list[Path]:
    return [path for path in files.others if path.suffix.lower() == ".csv" and {*columns} <= {*csv_header(path)}]


def _from_csvs(tables: Sequence[Path], classes: ClassNames) -> Annotations:
    differing: list[str] = []
    videos: dict[str, VideoRow] = {}
    for path in tables:
        of_file = _split_in(path.stem)
        for place, row in csv_rows(path, _KINETICS):
            split = _SPLITS.get(row.get("split", "").lower()) or of_file
            if split is None:
                raise ManifestError(f"{place}: no split (train, val or test), neither in a column nor in the file name")
            name = classes.get(row["label"], place) if row.get("label") else None
            stem = _stem(row, place)
            expected = "/".join(filter(None, (split, name, f"{stem}.mp4")))
            one = videos.setdefault(stem, VideoRow(expected, "", class_name=name, split=split))
            if one.class_name != name:
                differing.append(f'{place}: "{name or ""}" here, "{one.class_name or ""}" before')
            if split not in one.memberships:
                videos[stem] = replace(one, splits=tuple(sorted((*one.memberships, split))))
    count = f"{len(differing):,} entries repeat a video with another class"
    notes = (f"{count}; the first holds ({differing[0]})",) if differing else ()
    return Annotations(tuple(videos.values()), tuple(path.name for path in tables), notes)


def _from_folders(files: Files, classes: ClassNames) -> Annotations:
    videos = []
    unknown = set()
    of_root = _SPLITS.get(files.root.name.lower())
    for path in files.videos:
        folders = PurePosixPath(path).parts[:-1]
        depth = next((i for i in reversed(range(len(folders))) if classes.find(folders[i])), None)
        if depth is None:
            unknown.add("/".join(folders) or ".")
            continue
        label = classes.get(folders[depth], path)
        split = next((s for folder in reversed(folders[:depth]) if (s := _split_in(folder))), of_root) or NO_SPLIT
        videos.append(VideoRow(path, "", class_name=label, split=split))
    strange = f"{len(unknown)} folders are no class, such as {min(unknown, default='')}; their videos are left out"
    return Annotations(tuple(videos), ("the class folders' names",), (strange,) if unknown else ())


def _stem(row: dict[str, str], place: str) -> str:
    try:
        times = [math.floor(float(row[column])) for column in ("time_start", "time_end")]
    except (OverflowError, ValueError):
        raise ManifestError(f'{place}: start and end must be seconds, not "{row["time_start"]}" and so on') from None
    if not row["youtube_id"]:
        raise ManifestError(f"{place}: the youtube id is empty")
    return f"{row['youtube_id']}_{times[0]:06d}_{times[1]:06d}"


def _split_in(name: str) -> str | None:
    """The split that a file's or a folder's name mentions, as in ``kinetics-400_val`` or ``train_256``."""
    return next((_SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLITS), None)


def annotate_charades(files: Files, classes: ClassNames) -> Annotations:
    """Reads `Charades_v1_train.csv` and `Charades_v1_test.csv`, and finds `ID.mp4` files.

    All actions of a video are in one cell (``c092 11.90 21.20;c147 0.00 12.60``); without any, its labels are empty.

    Raises:
        ManifestError: An action cannot be read, or the classes are another version's.
    """
    tables = [(p, match[1].lower()) for p in _tables(files, _CHARADES) if (match := _CHARADES_SPLIT.search(p.stem))]
    check_class_file(files, "charades_v1_classes.txt", classes)
    videos: dict[str, VideoRow] = {}
    for path, split in tables:
        for place, row in csv_rows(path, _CHARADES):
            stem = row["id"]
            if stem in videos:
                raise ManifestError(f"{place}: video {stem} is listed before, in {videos[stem].split}")
            ids = set()
            for text in filter(None, map(str.strip, row["actions"].split(";"))):
                match = _ACTION.fullmatch(text)
                if match is None or int(match[1]) >= len(classes.names):
                    last = len(classes.names) - 1
                    raise ManifestError(f'{place}: "{text}" is not one of the actions c000 to c{last:03d}')
                ids.add(int(match[1]))
            names = tuple(classes.names[i] for i in sorted(ids))
            videos[stem] = VideoRow(f"{stem}.mp4", "", split=split, labels=names)
    return Annotations(tuple(videos.values()), sources=tuple(path.name for path, _ in tables))
