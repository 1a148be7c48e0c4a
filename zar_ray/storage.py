"""Small files on a local disk or behind a URI (``s3://``, ``gs://``, ``file://``), written whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from zar_ray.errors import RunError

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def is_uri(location: str) -> bool:
    """Whether a location names a file system of its own, rather than a local path."""
    return bool(_URI.match(location))


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
    """A folder that results live in.

    Args:
        location: A local path (made absolute) or a URI that Arrow's file systems know.

    Raises:
        RunError: The URI's scheme is unknown or its file system cannot be reached.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/") if is_uri(location) else str(Path(location).expanduser().absolute())
        try:
            self._fs, self._root = FileSystem.from_uri(self.location)
        except (ArrowInvalid, OSError) as error:
            raise RunError(f"{location}: cannot be used as an output ({' '.join(str(error).split())})") from error
        self.is_local = isinstance(self._fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (type(self), (self.location,))

    @classmethod
    def of_file(cls, location: str) -> tuple[Storage, str]:
        """The folder that a file lies in, and the file's name."""
        folder, _, name = (location if is_uri(location) else str(Path(location).absolute())).rpartition("/")
        return cls(folder or "/"), name

    def path(self, name: str = "") -> str:
        """The full location of a file or folder in here, as a user can name it."""
        return f"{self.location}/{name}" if name else self.location

    def child(self, name: str) -> Storage:
        """The storage of a sub-folder, which need not exist yet."""
        return Storage(self.path(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there."""
        return self._fs.get_file_info(self._at(name)).type != FileType.NotFound

    def names(self, folder: str = "") -> list[str]:
        """The finished files directly in a folder, sorted; empty if there is no such folder."""
        found = self._fs.get_file_info(FileSelector(self._at(folder), allow_not_found=True))
        return sorted(info.base_name for info in found if info.is_file and not info.base_name.startswith("."))

    def folders(self, folder: str = "") -> list[str]:
        """The folders directly in a folder, sorted; empty if there is no such folder."""
        found = self._fs.get_file_info(FileSelector(self._at(folder), allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def walk(self) -> list[FileState]:
        """All files at any depth, sorted by name.

        Raises:
            RunError: They cannot be listed.
        """
        try:
            found = self._fs.get_file_info(FileSelector(self._root, allow_not_found=True, recursive=True))
        except OSError as error:
            raise RunError(f"{self.path()}: cannot be listed ({' '.join(str(error).split())})") from error
        start = len(self._root) + 1
        return sorted(FileState(info.path[start:], info.size, info.mtime_ns or 0) for info in found if info.is_file)

    def state(self, name: str) -> FileState:
        """A file's size and when it was written.

        Raises:
            RunError: It is not there, its cause a FileNotFoundError; or that cannot be found out.
        """
        try:
            info = self._fs.get_file_info(self._at(name))
        except OSError as error:
            raise RunError(f"{self.path(name)}: cannot be looked at ({' '.join(str(error).split())})") from error
        if not info.is_file:
            raise RunError(f"{self.path(name)}: no such file") from FileNotFoundError(name)
        return FileState(name, info.size, info.mtime_ns or 0)

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """So many bytes of a file from `start` on; fewer where it ends before.

        Raises:
            RunError: It cannot be read.
        """
        try:
            with self._fs.open_input_file(self._at(name)) as file:
                return file.read_at(count, start)
        except OSError as error:
            raise RunError(f"{self.path(name)}: cannot be read ({' '.join(str(error).split())})") from error

    def read(self, name: str) -> bytes:
        """The whole content of a file.

        Raises:
            RunError: It cannot be read.
        """
        try:
            with self._fs.open_input_stream(self._at(name)) as stream:
                return stream.read()
        except OSError as error:
            raise RunError(f"{self.path(name)}: cannot be read ({' '.join(str(error).split())})") from error

    def write(self, name: str, content: bytes) -> None:
        """Writes a file so that a reader, or a kill at any moment, sees all of it or nothing.

        Object stores publish an upload when it is closed; on a local disk the file is renamed into place.

        Raises:
            RunError: It cannot be written.
        """
        target = self._at(name)
        folder, _, base = target.rpartition("/")
        try:
            if not self.is_local:
                with self._fs.open_output_stream(target) as stream:
                    stream.write(content)
                return
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
        except OSError as error:
            raise RunError(f"{self.path(name)}: cannot be written ({' '.join(str(error).split())})") from error

    def delete(self, name: str) -> None:
        """Deletes a file if it is there.

        Raises:
            RunError: It cannot be deleted.
        """
        try:
            self._fs.delete_file(self._at(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"{self.path(name)}: cannot be deleted ({' '.join(str(error).split())})") from error

    def delete_many(self, names: Sequence[str]) -> None:
        """Deletes files, those that are there; raises what `delete` does."""
        for name in names:
            self.delete(name)

    def delete_folder(self) -> None:
        """Deletes this folder with all that is in it, if it is there.

        Raises:
            RunError: It cannot be deleted.
        """
        try:
            if self.exists():
                self._fs.delete_dir(self._root)
        except OSError as error:
            raise RunError(f"{self.path()}: cannot be deleted ({' '.join(str(error).split())})") from error
