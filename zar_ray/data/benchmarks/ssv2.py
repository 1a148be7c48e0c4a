"""Something-Something V2: JSON lists of videos with their templates, and `ID.webm` files in one folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from zar_ray.data.benchmarks.layout import Annotations, ClassNames, Files, check_classes
from zar_ray.data.manifest import VideoRow
from zar_ray.data.text_files import read_text
from zar_ray.errors import ManifestError
from zar_ray.untrusted import parse_json

_SPLIT = re.compile(r"(?:^|[^a-z])(train|validation|val|test)$", re.IGNORECASE)
_LABELS = re.compile(r"(?:^|[^a-z])labels$", re.IGNORECASE)


def annotate(files: Files, classes: ClassNames) -> Annotations:
    """Reads `train.json`, `validation.json` and `test.json`, with the official prefix or without.

    The class of a video is its template with the brackets taken off; test videos have none.

    Raises:
        ManifestError: A list is not of the official form, or the labels are another version's.
    """
    jsons = [path for path in files.others if path.suffix.lower() == ".json"]
    lists = [(path, match[1].lower()) for path in jsons if (match := _SPLIT.search(path.stem))]
    for path in jsons:
        if _LABELS.search(path.stem):
            numbers = _read(path, dict)
            try:
                ordered = sorted(numbers, key=lambda label: int(numbers[label]))
            except (TypeError, ValueError):
                raise ManifestError(f"{path}: must hold a number for each label") from None
            check_classes(ordered, classes, path)
    videos: dict[str, VideoRow] = {}
    for path, word in lists:
        split = "val" if word.startswith("val") else word
        for number, entry in enumerate(_read(path, list)):
            if not isinstance(entry, dict) or "id" not in entry:
                raise ManifestError(f"{path}: entry {number} has no id")
            stem = str(entry["id"])
            place = f"{path}, video {stem}"
            if stem in videos:
                raise ManifestError(f"{place}: is listed before, in {videos[stem].split}")
            template = entry.get("template")
            if not isinstance(template, str) and (template is not None or split != "test"):
                raise ManifestError(f"{place}: has no template, which names its class")
            name = None if template is None else classes.get(template, place)
            videos[stem] = VideoRow(f"{stem}.webm", "", class_name=name, split=split)
    return Annotations(tuple(videos.values()), sources=tuple(path.name for path, _ in lists))


def _read(path: Path, kind: type) -> Any:
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, kind):
        raise ManifestError(f"{path}: must hold a JSON {'list' if kind is list else 'object'}")
    return content
