"""Files on a local disk or behind a URI (``s3://``, ``gs://``, ``file://``), written whole or not at all.

What fails for a while is tried again, see `zar_ray.retries`, and what needs many requests makes them side by side.
"""

from __future__ import annotations

import io
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from pyarrow import NativeFile
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from zar_ray.errors import RunError, StorageError
from zar_ray.file_systems import Location, is_uri
from zar_ray.retries import reason_without_secrets, retried

__all__ = ["FileState", "Storage", "folder_of", "is_uri", "suffix_of"]

_T = TypeVar("_T")

REQUESTS = 16
"""Requests at a time: an object store answers each after a while, and many at once."""

_BUFFER = 2**16


def folder_of(location: str) -> str:
    """The folder that a file lies in, as a location."""
    return str(Location.parse(location).parent)


def suffix_of(location: str) -> str:
    """What a file's name ends with, in lower case, such as ``.csv``."""
    return PurePosixPath(Location.parse(location).name).suffix.lower()


class FileState(NamedTuple):
    """What tells whether a file is still the same.

    Attributes:
        name: Its name in the folder that was listed.
        size: Bytes.
        mtime_ns: When it was last written, in nanoseconds; 0 where the store does not say.
    """

    name: str
    size: int
    mtime_ns: int


class Storage:
    """A folder that files live in.

    Args:
        location: A local path (made absolute) or a URI, with options of its file system behind a ``?``, if any.

    Raises:
        RunError: The URI's scheme is unknown or its file system cannot be reached.
    """

    def __init__(self, location: str | Location) -> None:
        self._place = location if isinstance(location, Location) else Location.parse(location)
        self._fs, self._root = self._place.open()
        self.is_local = isinstance(self._fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[Location]]:
        return (type(self), (self._place,))

    @classmethod
    def of_file(cls, location: str) -> tuple[Storage, str]:
        """The folder that a file lies in, and the file's name."""
        folder, name = Location.parse(location).split()
        return cls(folder), name

    @property
    def location(self) -> str:
        """Where it is, as `Storage` takes it."""
        return str(self._place)

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self._place.name

    @property
    def parent(self) -> Storage:
        """The folder that this one lies in."""
        return Storage(self._place.parent)

    @property
    def arrow(self) -> tuple[FileSystem, str]:
        """The file system, and this folder's path in it, for libraries that take Arrow's."""
        return self._fs, self._root

    def path(self, name: str = "") -> str:
        """The full location of a file or folder in here, as a user can name it."""
        return str(self._place / name)

    def child(self, name: str) -> Storage:
        """The storage of a sub-folder, which need not exist yet."""
        return Storage(self._place / name)

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there.

        Raises:
            RunError: That cannot be found out.
        """
        return self._info(name).type != FileType.NotFound

    def names(self, folder: str = "") -> list[str]:
        """The finished files directly in a folder, sorted; empty if there is no such folder.

        Raises:
            RunError: It cannot be listed.
        """
        return list(self.sizes(folder))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The bytes of the finished files directly in a folder by their names, sorted; see `names`."""
        files = [one for one in self._listed(folder) if one.is_file and not one.base_name.startswith(".")]
        return {one.base_name: one.size for one in sorted(files, key=lambda one: one.base_name)}

    def folders(self, folder: str = "") -> list[str]:
        """The folders directly in a folder, sorted; empty if there is no such folder."""
        return sorted(info.base_name for info in self._listed(folder) if info.type == FileType.Directory)

    def walk(self) -> list[FileState]:
        """All files at any depth, sorted by name; the folders in here are listed side by side.

        Raises:
            RunError: They cannot be listed.
        """
        top = self._listed("")
        folders = [info.base_name for info in top if info.type == FileType.Directory]
        below = self._side_by_side(lambda name: self._listed(name, recursive=True), folders)
        every = (info for found in (top, *below) for info in found if info.is_file)
        start = f"{self._root.strip('/')}/".removeprefix("/")  # fsspec's paths may begin with a slash
        return sorted(_state(info.path.lstrip("/").removeprefix(start), info) for info in every)

    def states(self, names: Sequence[str]) -> list[FileState | None]:
        """The states of files, looked at side by side; None for one that is not there."""
        infos = self._side_by_side(self._info, names)
        return [_state(name, info) if info.is_file else None for name, info in zip(names, infos, strict=True)]

    def state(self, name: str) -> FileState:
        """A file's size and when it was written.

        Raises:
            RunError: It is not there, its cause a FileNotFoundError; or that cannot be found out.
        """
        info = self._info(name)
        if not info.is_file:
            if info.type == FileType.NotFound:
                raise RunError(f"{self.path(name)}: no such file") from FileNotFoundError(self.path(name))
            raise RunError(f"{self.path(name)}: is a folder")
        return _state(name, info)

    def read(self, name: str) -> bytes:
        """The whole content of a file.

        Raises:
            RunError: It cannot be read; its cause is a FileNotFoundError where it is not there.
        """

        def work() -> bytes:
            with self._fs.open_input_stream(self._at(name)) as stream:
                return stream.read()

        return self._tried(work, name, "read")

    def opened(self, name: str) -> io.BufferedReader:
        """A file whose parts are read when they are asked for; reading raises what this does.

        Raises:
            RunError: It cannot be read; its cause is a FileNotFoundError where it is not there.
        """
        tried = partial(self._tried, name=name, doing="read")
        return io.BufferedReader(_Ranges(lambda: self._fs.open_input_file(self._at(name)), tried), _BUFFER)

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """So many bytes of a file from `start` on, fewer where it ends before; raises what `read` does."""
        with self.opened(name) as file:
            file.seek(start)
            return file.read(count)

    @contextmanager
    def filling(self, name: str) -> Iterator[Path]:
        """A local file to fill; where the block ends well it becomes the file of that name, whole or not at all.

        Raises:
            RunError: It cannot be written.
        """
        target = Path(self._at(name)) if self.is_local else None
        try:
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=target and target.parent) as scratch:
                file = Path(scratch) / "file"
                yield file
                if target is None:
                    place = self._at(name)
                    self._tried(lambda: copy_files(str(file), place, LocalFileSystem(), self._fs), name, "written")
                    return
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
                file.replace(target)
        except OSError as error:
            raise RunError(f"{self.path(name)}: cannot be written ({' '.join(str(error).split())})") from error

    def write(self, name: str, content: bytes) -> None:
        """Writes a file so that a reader, or a kill at any moment, sees all of it or nothing.

        Object stores publish an upload when it is closed; on a local disk the file is renamed into place.

        Raises:
            RunError: It cannot be written.
        """
        self._tried(lambda: self._write(self._at(name), content), name, "written")

    def _write(self, target: str, content: bytes) -> None:
        if not self.is_local:
            with self._fs.open_output_stream(target) as stream:
                stream.write(content)
            return
        folder, _, base = target.rpartition("/")
        Path(folder).mkdir(parents=True, exist_ok=True)
        partial = Path(folder) / f".{base}.{uuid.uuid4().hex}"
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Deletes a file if it is there.

        Raises:
            RunError: It cannot be deleted.
        """

        def work() -> None:
            try:
                self._fs.delete_file(self._at(name))
            except FileNotFoundError:
                return  # also where the first of two attempts was done without an answer

        self._tried(work, name, "deleted")

    def delete_many(self, names: Sequence[str]) -> None:
        """Deletes files, those that are there, side by side; raises what `delete` does."""
        for _ in self._side_by_side(self.delete, names):
            pass

    def delete_folder(self) -> None:
        """Deletes this folder with all that is in it, if it is there.

        Raises:
            RunError: It cannot be deleted.
        """

        def work() -> None:
            if self._fs.get_file_info(self._root).type != FileType.NotFound:
                self._fs.delete_dir(self._root)

        self._tried(work, "", "deleted")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _info(self, name: str) -> FileInfo:
        return self._tried(lambda: self._fs.get_file_info(self._at(name)), name, "looked at")

    def _listed(self, folder: str, recursive: bool = False) -> list[FileInfo]:
        wanted = FileSelector(self._at(folder), allow_not_found=True, recursive=recursive)
        return self._tried(lambda: self._fs.get_file_info(wanted), folder, "listed")

    def _tried(self, work: Callable[[], _T], name: str, doing: str) -> _T:
        try:
            return retried(work, self.path(name), doing, remote=not self.is_local)
        except StorageError:
            raise
        except OSError as error:
            raise RunError(f"{self.path(name)}: cannot be {doing} ({reason_without_secrets(error)})") from error

    def _side_by_side(self, work: Callable[[str], _T], names: Sequence[str]) -> Iterator[_T]:
        """What work on each name gives, in order; a few times as many as are worked on are held."""
        with ThreadPoolExecutor(REQUESTS) as pool:
            for first in range(0, len(names), 4 * REQUESTS):
                yield from pool.map(work, names[first : first + 4 * REQUESTS])


def _state(name: str, info: FileInfo) -> FileState:
    return FileState(name, info.size, info.mtime_ns or 0)


class _Ranges(io.RawIOBase):
    """Reads a file of Arrow's by ranges, each tried for itself; what has failed is opened anew."""

    def __init__(self, opened: Callable[[], NativeFile], tried: Callable[[Callable[[], Any]], Any]) -> None:
        self._opened, self._tried = opened, tried
        self._file: NativeFile | None = None
        self._at, self._size = 0, tried(lambda: self._now().size())

    def _now(self) -> NativeFile:
        self._file = self._file or self._opened()
        return self._file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))

        def work() -> bytes:
            try:
                file = self._now()
                file.seek(self._at)
                content = file.read(wanted)
            except BaseException:
                self._file = None
                raise
            if len(content) < wanted:
                raise OSError(f"{len(content)} of {wanted} bytes came")
            return content

        content = self._tried(work) if wanted else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
