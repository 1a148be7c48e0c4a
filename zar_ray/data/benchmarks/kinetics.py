"""Kinetics-400 and -600: official CSVs (youtube id, start, end, label, split), or class folders alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from zar_ray.data.benchmarks.layout import (
    AnnotatedVideo,
    Annotations,
    ClassNames,
    Files,
    NoAnnotationsError,
)
from zar_ray.data.classes import class_list
from zar_ray.data.listing import NO_SPLIT
from zar_ray.data.text_files import csv_header, csv_rows
from zar_ray.errors import ManifestError

_COLUMNS = ("youtube_id", "time_start", "time_end")
_SPLITS = {"train": "train", "training": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_WORD = re.compile("[a-z]+")


def annotate(files: Files, name: str, classes: str, title: str) -> Annotations:
    """Reads the official CSVs; without any, class folders are the labels and folders above them the splits.

    Files are called ``ID_START_END`` (six digits each), ``ID_START`` or ``ID``, in class folders or not, below a
    folder of their split or not.

    Raises:
        NoAnnotationsError: There are no annotations.
        ManifestError: A CSV has rows that cannot be read.
    """
    known = ClassNames(class_list(classes), title)
    tables = [path for path in files.others if path.suffix.lower() == ".csv" and set(_COLUMNS) <= {*csv_header(path)}]
    videos, notes = _from_csvs(tables, files, known) if tables else _from_folders(files, known)
    if not videos:
        raise NoAnnotationsError(
            f"{files.root}: neither a CSV with the columns label, youtube_id, time_start, time_end and split nor "
            f"class folders of {title} below it; name the CSVs' folder with --annotations"
        )
    sources = tuple(path.name for path in tables) or ("the class folders' names",)
    return Annotations(name, tuple(videos), known.names, sources=sources, notes=tuple(notes))


def _from_csvs(tables: list[Path], files: Files, known: ClassNames) -> tuple[list[AnnotatedVideo], list[str]]:
    differing: list[str] = []
    rows: dict[str, tuple[str | None, list[str]]] = {}
    for path in tables:
        of_file = _split_in(path.stem)
        for place, row in csv_rows(path, _COLUMNS):
            split = _SPLITS.get(row.get("split", "").lower()) or of_file
            if split is None:
                raise ManifestError(f"{place}: no split (train, val or test), neither in a column nor in the file name")
            label = known.get(row["label"], place) if row.get("label") else None
            name, splits = rows.setdefault(_stem(row, place), (label, []))
            if name != label:
                differing.append(f'{place}: "{label}" here, "{name}" before')
            if split not in splits:
                splits.append(split)
    videos = []
    for stem, (label, splits) in rows.items():
        folders = (*splits, *((label,) if label else ()))
        path = next((f for s in _spellings(stem) if (f := files.find(s, *folders, exact=True))), None)
        expected = "/".join((splits[0], *((label,) if label else ()), f"{stem}.mp4"))
        videos.append(AnnotatedVideo(expected, (label,) if label else (), splits[0], tuple(sorted(splits)), path))
    if not differing:
        return videos, []
    return videos, [f"{len(differing):,} entries repeat a video with another class; the first holds ({differing[0]})"]


def _from_folders(files: Files, known: ClassNames) -> tuple[list[AnnotatedVideo], list[str]]:
    videos = []
    unknown = set()
    of_root = _SPLITS.get(files.root.name.lower())
    for path in files.videos:
        folders = PurePosixPath(path).parts[:-1]
        depth = next((i for i in reversed(range(len(folders))) if known.find(folders[i])), None)
        if depth is None:
            unknown.add("/".join(folders) or ".")
            continue
        label = known.get(folders[depth], path)
        split = next((s for folder in reversed(folders[:depth]) if (s := _split_in(folder))), of_root) or NO_SPLIT
        videos.append(AnnotatedVideo(path, (label,), split, (split,), path))
    notes = (
        [f"{len(unknown)} folders are no class, such as {min(unknown)}; their videos are left out"] if unknown else []
    )
    return videos, notes


def _stem(row: dict[str, str], place: str) -> str:
    try:
        times = [math.floor(float(row[column])) for column in ("time_start", "time_end")]
    except ValueError:
        raise ManifestError(f'{place}: start and end must be seconds, not "{row["time_start"]}" and so on') from None
    if not row["youtube_id"]:
        raise ManifestError(f"{place}: the youtube id is empty")
    return f"{row['youtube_id']}_{times[0]:06d}_{times[1]:06d}"


def _spellings(stem: str) -> Iterator[str]:
    """What downloaders call the file of an entry."""
    video, start, end = stem.rsplit("_", 2)
    yield stem
    yield f"{video}_{int(start)}_{int(end)}"
    yield f"{video}_{start}"
    yield f"{video}_{int(start)}"
    yield video


def _split_in(name: str) -> str | None:
    """The split that a file's or a folder's name mentions, as in ``kinetics-400_val`` or ``train_256``."""
    return next((_SPLITS[word] for word in _WORD.findall(name.lower()) if word in _SPLITS), None)
