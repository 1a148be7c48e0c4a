"""The videos in tar files, with labels as WebDataset keeps them: beside a video, in files of the same key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from zar_ray.data.classes import tidy_name
from zar_ray.data.manifest import VideoRow
from zar_ray.errors import ManifestError
from zar_ray.untrusted import parse_json
from zar_ray.video.shards import Shard

_NOTES = ("cls", "json", "txt")
_NAMED_IN_JSON = ("label", "class_name", "class", "label_name", "cls")
_LONGEST_LABEL = 200


def is_note(member: str) -> bool:
    """Whether a member may say what a video shows."""
    return _key(member)[1] in _NOTES


def rows_of_shard(
    place: str, path: str, shard: Shard, extensions: frozenset[str], class_names: Sequence[str] | None
) -> list[VideoRow]:
    """The videos in a shard, with the label that stands beside each, if any.

    A shard that is broken is one row more, with its error; what comes before the break is there.

    Args:
        place: The shard's name, which the ids of its videos begin with.
        path: Its local path or URI.
        shard: What it holds.
        extensions: By which videos are told, in lower case.
        class_names: The classes that a number in a ``.cls`` file counts, from 0; None where numbers are the names.

    Raises:
        ManifestError: A number is not that of a class.
    """
    notes: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, content in shard.notes.items():
        key, kind = _key(name)
        notes[key][kind] = content.decode("utf-8", "replace").strip()
    rows = []
    for member in shard.members:
        if PurePosixPath(member.name).suffix.lower() not in extensions or _is_hidden(member.name):
            continue
        video_id = f"{place}/{member.name.removeprefix('./')}"
        label = _label(notes.get(_key(member.name)[0], {}), class_names, f"{path}, {member.name}")
        rows.append(
            VideoRow(video_id, path, class_name=label, size=member.size, member=member.name, offset=member.offset)
        )
    if shard.error is not None:
        rows.append(VideoRow(place, path, error=shard.error))
    return rows


def _key(member: str) -> tuple[str, str]:
    """A member's key, up to the first dot of its name, and its kind, in lower case."""
    folder, slash, name = member.removeprefix("./").rpartition("/")
    stem, _, kind = name.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()


def _is_hidden(member: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(member).parts)


def _label(notes: dict[str, str], class_names: Sequence[str] | None, at: str) -> str | None:
    """What a video's notes call it: a name in ``.json`` before a number in ``.cls``, and ``.txt`` last."""
    number: str | None = notes.get("cls")
    try:
        said = parse_json(notes["json"]) if "json" in notes else None
    except ValueError:
        said = None
    named = said if isinstance(said, dict) else {}
    for name in _NAMED_IN_JSON:
        if isinstance(value := named.get(name), str) and tidy_name(value):
            return tidy_name(value)
        if isinstance(value, int) and number is None:
            number = str(value)
    if number is not None and number.isdecimal() and class_names is not None:
        if int(number) >= len(class_names):
            raise ManifestError(f"{at}: is of class {number}, and {len(class_names)} class names are given")
        return tidy_name(class_names[int(number)])
    if (text := number or notes.get("txt")) and len(text) <= _LONGEST_LABEL:
        return tidy_name(text) or None
    return None
