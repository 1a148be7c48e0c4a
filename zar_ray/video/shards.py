"""Tar files of videos, as WebDataset makes them: what members one holds, and at which bytes, without unpacking it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass

from zar_ray.errors import RunError, StorageError
from zar_ray.storage import Storage

SUFFIX = ".tar"
BLOCK = tarfile.BLOCKSIZE
"""Bytes of a member's header, which lies directly before its content."""

_LARGEST_NOTE = 2**20
_LONGEST_NAME = 100
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Member:
    """A file in a shard.

    Attributes:
        name: Its path in the shard.
        offset: Where its content begins, in bytes.
        size: Bytes of its content.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Shard:
    """What a shard holds.

    Attributes:
        members: Its files, in order; of several of one name the last.
        notes: The contents of the small ones that were asked for, by name.
        error: Why there may be more of them than could be found.
    """

    members: tuple[Member, ...]
    notes: dict[str, bytes]
    error: str | None


def read_shard(path: str, is_note: Callable[[str], bool] = lambda name: False) -> Shard:
    """Walks through a shard's headers, by ranges.

    Args:
        path: Its local path or URI.
        is_note: Whether a member's content is wanted, by its name; none of more than a megabyte is read.

    Raises:
        StorageError: The store does not answer.
    """
    members: dict[str, Member] = {}
    notes: dict[str, bytes] = {}
    try:
        folder, name = Storage.of_file(path)
        with folder.opened(name) as file:
            if (packed := _packing(file)) is not None:
                return Shard((), {}, f"is packed with {packed}, where no video can be found by its bytes; unpack that")
            with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as archive:
                while (info := archive.next()) is not None:
                    if not info.isreg() or info.issparse():
                        continue
                    members[info.name] = Member(info.name, info.offset_data, info.size)
                    if info.size <= _LARGEST_NOTE and is_note(info.name):
                        file.seek(info.offset_data)
                        notes[info.name] = file.read(info.size)
                error = _break(file, archive.offset)
    except StorageError:
        raise
    except RunError as caught:
        error = str(caught).removeprefix(f"{path}: ")
    except (tarfile.TarError, OSError, ValueError) as caught:
        error = f"is a broken tar file, after {len(members)} members ({' '.join(str(caught).split())})"
    return Shard(tuple(members.values()), notes, error)


def header_fits(header: bytes, member: str, size: int) -> bool:
    """Whether the block before a member's content is its header, so that the shard is still what it was."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    # Other names lie in front of the header, which then holds something like them.
    plain = member.isascii() and len(member) < _LONGEST_NAME
    return info.size == size and (info.name == member or not plain)


def _packing(file: io.BufferedReader) -> str | None:
    head = file.read(8)
    file.seek(0)
    return next((name for start, name in _COMPRESSED.items() if head.startswith(start)), None)


def _break(file: io.BufferedReader, offset: int) -> str | None:
    """Why the walk ended where it did, unless that is the end: tarfile takes what is no header for one."""
    file.seek(offset)
    block = file.read(BLOCK)
    if not block.strip(b"\0"):
        return None
    return f"is a broken tar file (there is no header at byte {offset})"
