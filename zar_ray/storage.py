"""Small files on a local disk or behind a URI (``s3://``, ``gs://``, ``file://``), written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pyarrow import ArrowInvalid, NativeFile
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from zar_ray.errors import RunError

REQUESTS = 16
"""Requests at a time: an object store answers each after a while, and many at once."""

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def is_uri(location: str) -> bool:
    """Whether a location names a file system of its own, rather than a local path."""
    return bool(_URI.match(location))


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
        return list(self.sizes(folder))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The bytes of the finished files directly in a folder by their names, sorted; see `names`."""
        found = self._fs.get_file_info(FileSelector(self._at(folder), allow_not_found=True))
        files = [info for info in found if info.is_file and not info.base_name.startswith(".")]
        return {info.base_name: info.size for info in sorted(files, key=lambda info: info.base_name)}

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

    def opened(self, name: str) -> NativeFile:
        """A file whose parts are read when they are asked for.

        Raises:
            OSError: It is not there, or cannot be read.
        """
        return self._fs.open_input_file(self._at(name))

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
                    copy_files(str(file), self._at(name), LocalFileSystem(), self._fs)
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

    def delete_many(self, names: Iterable[str]) -> None:
        """Deletes files that are there, many at a time; see `delete`."""
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(self.delete, names))

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
