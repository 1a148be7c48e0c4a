"""What files and names of others may be instead of what they should, found out before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_DEEPEST = 100
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
_LONGEST_NAME = 200
_NOT_IN_NAMES = "/\\%?#"  # they end a name, or stand for something else, in a path or a URI


def stand_in(head: bytes) -> str | None:
    """What a file is that lies in another's place, with the way out; None where its beginning is of no such file."""
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; fetch that with git lfs pull"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return "is a web page or XML, not the file itself; what it says may tell why the download failed"
    return None


def folder_name(name: str) -> str:
    """A name of one's own for a folder, which is made below another one.

    Raises:
        ValueError: It is no name of one folder.
    """
    bad_sign = any(sign in _NOT_IN_NAMES or not sign.isprintable() for sign in name)
    if not name or bad_sign or name.strip(" .") != name or len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        shown = name if len(name) <= _LONGEST_NAME else f"{name[:30]}…"
        raise ValueError(f"{shown!r} is not the name of one folder; take letters, digits, - and _")
    return name


def storable(text: str) -> str:
    """The text itself where it is Unicode; bytes that are none (file names may hold any) become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def parse_json(text: str | bytes, **how: Any) -> Any:
    """JSON, as `json.loads` reads it.

    Raises:
        ValueError: It is none, or nested deeper than what is made of it could bear.
    """
    try:
        content = json.loads(text, **how)
    except RecursionError:
        raise ValueError("nested too deep") from None
    require_plain(content)
    return content


def require_plain(content: object, most: float = float("inf")) -> None:
    """Refuses mappings and lists that are nested deep, or hold more than so many values, each as often as it is named.

    Raises:
        ValueError: They are, or do.
    """
    level, count = [content], 0
    for _ in range(_DEEPEST):
        inside = [list(one.values()) if isinstance(one, Mapping) else one for one in level]
        inside = [one for one in inside if isinstance(one, list | tuple)]
        count += sum(map(len, inside))
        if count > most:
            raise ValueError(f"it holds more than {most:,} values")
        level = [value for one in inside for value in one]
        if not level:
            return
    raise ValueError("nested too deep")
