"""The videos that people name for `zar predict`: files, folders, patterns and lists, before anything is opened."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from zar_ray.data.listing import VIDEO_EXTENSIONS, walk
from zar_ray.errors import ConfigError, reason_of
from zar_ray.file_systems import Location
from zar_ray.options.places import from_home
from zar_ray.storage import Storage, is_uri
from zar_ray.untrusted import storable

STDIN = "-"
"""The word that stands for a list on standard input."""


@dataclass(frozen=True)
class Found:
    """What words name.

    Attributes:
        videos: Paths and URIs as they are named, each file once, in order; a folder's by name.
        hidden: Hidden files and folders that were passed over.
        others: Files in folders, or that patterns name, that are no videos by their names.
        repeated: Files that were named once more.
    """

    videos: tuple[str, ...]
    hidden: int = 0
    others: int = 0
    repeated: int = 0

    @property
    def skipped(self) -> str | None:
        """What was passed over, in words; None if nothing was."""
        counts = {"hidden": self.hidden, "no videos": self.others, "named more than once": self.repeated}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or None


@dataclass(frozen=True)
class _Named:
    """What one word names."""

    videos: Sequence[str]
    hidden: Sequence[object] = ()
    others: Sequence[object] = ()


def find_videos(words: Iterable[str], listed: str | None = None) -> Found:
    """Finds the files that words and a list name, and looks whether they are there.

    A word is a file, a folder (all videos below it, by their extension), a pattern (``*``, ``?``, ``[a-z]``, and ``**``
    for folders at any depth), a URI (of a folder, if it ends with a slash), or `STDIN`. What exists is no pattern.

    Args:
        words: They.
        listed: A file with such words, one a line, or between zero bytes as `find -print0` writes them.

    Raises:
        ConfigError: A file is not there, a folder or a pattern yields no video, or a list cannot be read or is empty.
        RunError: A store does not answer, or cannot list its files.
    """
    places: dict[tuple[str, str], str] = {}
    hidden: set[object] = set()
    others: set[object] = set()
    repeated = 0
    for word in _words(words, listed):
        named = _named(word)
        hidden.update(named.hidden)
        others.update(named.others)
        own = {_identity(video): video for video in named.videos}
        repeated += len(own.keys() & places.keys())
        for key, video in own.items():
            places.setdefault(key, video)
    return Found(tuple(places.values()), len(hidden), len(others), repeated)


def expanded(word: str) -> tuple[str, ...]:
    """The videos of a folder or a pattern; anything else is itself, whether it is there or not.

    Raises:
        ConfigError: A folder or a pattern yields no video.
        RunError: A store does not answer, or cannot list its files.
    """
    several = word.endswith("/") if is_uri(word) else Path(word).is_dir() or _is_pattern(word)
    return tuple(_named(word).videos) if several else (word,)


def looks_like_videos(word: str) -> bool:
    """Whether a word that may be something else reads as a video, a folder of them, a pattern or a list."""
    place = "/" in word and from_home(word).exists()
    named = PurePosixPath(word).suffix.lower() in VIDEO_EXTENSIONS
    return word == STDIN or is_uri(word) or named or place or _is_pattern(word)


def _words(words: Iterable[str], listed: str | None) -> Iterator[str]:
    for word in words:
        yield from _lines(sys.stdin.buffer.read(), "standard input") if word == STDIN else (word,)
    if listed is not None:
        try:
            content = sys.stdin.buffer.read() if listed == STDIN else from_home(listed).read_bytes()
        except OSError as error:
            raise ConfigError(f"--list {listed}: cannot be read ({reason_of(error)})") from error
        yield from _lines(content, f"--list {listed}")


def _lines(content: bytes, where: str) -> Iterator[str]:
    # Names of files may hold any bytes.
    parts = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    lines = [os.fsdecode(part) for part in parts if part.strip()]
    if not lines:
        raise ConfigError(f"{where}: names no videos; it wants one a line")
    yield from lines


def _named(word: str) -> _Named:
    shown = storable(word)
    if is_uri(word):
        return _at_store(word) if word.endswith("/") else _Named([word])
    path = from_home(word)
    if path.is_dir():
        videos, others, hidden = walk(path)
        if not videos:
            seen = f"; {len(others)} other files, {len(hidden)} hidden ones" if others or hidden else ""
            raise ConfigError(f"{shown}: holds no videos (looked below it for {_kinds()}{seen})")
        return _Named([str(one) for one in sorted(videos)], hidden, others)
    if path.exists():
        if not os.access(path, os.R_OK):
            raise ConfigError(f"{shown}: may not be read; see its permissions")
        return _Named([str(path)])
    if not _is_pattern(word):
        raise ConfigError(f"{shown}: no such file or folder{' (a link to nothing)' * path.is_symlink()}")
    return _matching(str(path), shown)


def _matching(pattern: str, shown: str) -> _Named:
    found = [Path(one) for one in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207  a pattern may be absolute
    files = [one for one in found if not one.is_dir()]
    # `**` matches folders on its way down to their files; another pattern that matches one means what is in it.
    walked = [walk(one) for one in found if one.is_dir() and PurePosixPath(pattern).name != "**"]
    hidden = [one for *_, below in walked for one in below]
    videos = [one for one in files if one.suffix.lower() in VIDEO_EXTENSIONS]
    others = [one for one in files if one.suffix.lower() not in VIDEO_EXTENSIONS]
    videos += [one for below, *_ in walked for one in below]
    others += [one for _, below, _ in walked for one in below]
    if not videos:
        seen = f"; {len(others)} files match that are none" if others else ""
        raise ConfigError(f"{shown}: no such file, and as a pattern it matches no video{seen}")
    return _Named([str(one) for one in sorted(set(videos))], hidden, others)


def _at_store(folder: str) -> _Named:
    store = Storage(folder)
    files = [one.name for one in store.walk()]
    hidden = [name for name in files if any(part.startswith(".") for part in name.split("/"))]
    shown = [name for name in files if name not in set(hidden)]
    videos = [name for name in shown if PurePosixPath(name).suffix.lower() in VIDEO_EXTENSIONS]
    if not videos:
        raise ConfigError(f"{folder}: holds no videos (looked below it for {_kinds()})")
    others = [(folder, name) for name in shown if name not in set(videos)]
    return _Named([store.path(name) for name in videos], [(folder, name) for name in hidden], others)


def _identity(video: str) -> tuple[str, str]:
    """What tells files apart: a link to one is another, as views are drawn by the name."""
    if is_uri(video):
        return "", str(Location.parse(video))
    return os.path.realpath(os.path.dirname(video) or "."), os.path.basename(video)  # noqa: PTH119, PTH120


def _is_pattern(word: str) -> bool:
    return glob.has_magic(word) and not Path(word).exists()


def _kinds() -> str:
    return " ".join(sorted(VIDEO_EXTENSIONS))
