"""SQLite files as MLflow's stores: how a URI names one, and what its first use needs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_PREFIX = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """The URI of a database file; what would begin a query or an escape in it is escaped."""
    return f"{_PREFIX}{path}".replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The database file that a URI names; None where it names a store of another kind."""
    return Path(unquote(uri.removeprefix(_PREFIX).partition("?")[0])) if uri.startswith(_PREFIX) else None


@contextlib.contextmanager
def made_by_one(path: Path, uri: str) -> Iterator[None]:
    """Lets one process at a time open a database: MLflow makes and migrates its tables without a lock.

    The lock is the folder's own, so that no file is left behind, and ends with the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Some network file systems lock no folders.
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
        # MLflow makes the folder by its name in the URI, escapes and all.
        misnamed = Path(uri.removeprefix(_PREFIX)).parent
        if misnamed != path.parent:
            with contextlib.suppress(OSError):
                for empty in (misnamed, *misnamed.parents):
                    empty.rmdir()
