"""Copies of what lies elsewhere in files without names, which are gone with whoever holds them, however that ends."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO

from zar_ray.errors import StorageError, reason_of

_AT_ONCE = 2**23  # bytes of one request


def copied(source: IO[bytes], start: int, count: int) -> IO[bytes]:
    """A local file of so many bytes of another, from `start` on; to be closed.

    Raises:
        EOFError: The other file ends before.
        StorageError: There is no room for them in the folder for temporary files.
    """
    target = (tempfile.TemporaryFile if _are_shown() else tempfile.NamedTemporaryFile)()
    try:
        source.seek(start)
        while count:
            block = source.read(min(count, _AT_ONCE))
            if not block:
                raise EOFError
            count -= len(block)
            _write(target, block)
    except BaseException:
        target.close()
        raise
    return target


def path_of(copy: IO[bytes]) -> str:
    """Where any process of this user can open a copy, as long as it is not closed."""
    return f"/proc/{os.getpid()}/fd/{copy.fileno()}" if _are_shown() else copy.name


def _are_shown() -> bool:
    """Whether the system shows open files as paths."""
    return Path("/proc/self/fd").is_dir()


def _write(target: IO[bytes], block: bytes) -> None:
    try:
        target.write(block)
        target.flush()
    except OSError as error:
        raise StorageError(f"{tempfile.gettempdir()}: no room for what is fetched ({reason_of(error)})") from error
