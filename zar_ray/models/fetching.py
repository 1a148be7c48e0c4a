"""Weights once a node: of what lies elsewhere one process of a node makes a copy here, and the others wait for it.

What is read is named by its place, its size and when it was written, so that another file at the same place is another
copy. The lock goes with the process that holds it, however it ends; then the next one begins anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from zar_ray.errors import ModelError, RunError, reason_of
from zar_ray.options.places import from_home
from zar_ray.storage import FileState, Storage, is_uri

PLACE = "ZAR_NODE_CACHE"
"""Environment variable that names the folder of copies; by default one of this user's below the temporary folder."""

_AT_ONCE = 2**25  # bytes of a request
_KEPT_FOR = 7 * 86400.0  # seconds from its last use that a copy stays
_ESCAPED = re.compile(r"\\([0-7]{3})")

# File systems whose files lie on other machines, as /proc names them; with FUSE all but those that are known as local.
_SHARED = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|ceph|lustre|glusterfs|gpfs|mmfs|beegfs|beegfs_nodev|pvfs2|orangefs|afs|panfs|wekafs|pfs"
    r"|fuse\.(?!fuse-overlayfs|mergerfs|lxcfs|portal|gvfsd).+"
)


def on_this_node(place: str | os.PathLike[str]) -> Path:
    """A file to read in place of another: the file itself, or a copy where it is at a URI or on a shared file system.

    Args:
        place: A path or a URI.

    Raises:
        ModelError: It cannot be read, or there is no room for its copy.
    """
    if not is_uri(str(place)) and not is_shared(Path(place)):
        return Path(place)
    storage, name = Storage.of_file(str(place))
    try:
        state = storage.state(name)
        key = f"{storage.path(name)}\n{state.size}\n{state.mtime_ns}"
        copy = _folder() / f"{_digest(key)}{Path(name).suffix}"
        if not _whole(copy, state.size):
            with one_at_a_time(key):
                if not _whole(copy, state.size):
                    _fetch(storage, state, copy)
        os.utime(copy)  # it is in use
    except RunError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(
            f"{place}: cannot be copied to {_folder()} ({reason_of(error)}); name a folder with room in {PLACE}"
        ) from error
    return copy


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Waits until no other process of this node is in such a block for the same thing."""
    with FileLock(_folder() / f"{_digest(what)}.lock"):
        yield


def is_shared(path: Path) -> bool:
    """Whether a file lies on a file system of another machine, as far as this one tells."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return False
    return bool(_SHARED.fullmatch(file_system_of(path.resolve(), mounts)))


def file_system_of(path: Path, mounts: str) -> str:
    """The type of the file system that a path lies on, by the lines of ``/proc/self/mountinfo``."""
    found, kind = Path(), ""
    for line in mounts.splitlines():
        words, _, about = line.partition(" - ")
        point = Path(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), words.split()[4]))
        # Of several at one place the last covers the others.
        if path.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, about.split()[0]
    return kind


def _whole(copy: Path, size: int) -> bool:
    try:
        return copy.stat().st_size == size
    except FileNotFoundError:
        return False


def _fetch(storage: Storage, state: FileState, copy: Path) -> None:
    unfinished = copy.with_name(f".{copy.name}")
    with unfinished.open("wb") as file:
        while file.tell() < state.size:
            part = storage.read_range(state.name, file.tell(), min(_AT_ONCE, state.size - file.tell()))
            if not part:
                break
            file.write(part)
    if storage.state(state.name) != state or not _whole(unfinished, state.size):
        raise ModelError(f"{storage.path(state.name)}: was written to while it was read; begin again when it is whole")
    unfinished.replace(copy)
    for other in copy.parent.iterdir():
        if other.suffix != ".lock" and time.time() - other.stat().st_mtime > _KEPT_FOR:
            other.unlink(missing_ok=True)


def _folder() -> Path:
    """The folder of copies, which nobody else can write to: what lies there is taken for what it was copied from."""
    named = os.environ.get(PLACE)
    folder = from_home(named) if named else Path(tempfile.gettempdir()) / f"zar-ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        reason = reason_of(error)
        raise ModelError(f"{folder}: cannot hold copies of weights ({reason}); name another in {PLACE}") from None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ModelError(f"{folder}: belongs to others, or they can write to it; name a folder of your own in {PLACE}")
    return folder


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()
