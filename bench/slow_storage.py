"""A folder that answers like an object store: each request after a while, and counted."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from pyarrow import PythonFile
from pyarrow.fs import FileSelector, FileSystem, FileSystemHandler, FileType, LocalFileSystem, PyFileSystem

from zar_ray.storage import Storage

# As Arrow's S3 file system has them: a file is looked for, deleted, and its folder looked for; small files are an
# upload begun, filled and ended; a listing names so many, and an upload goes by parts of so many bytes.
_DELETING, _UPLOADING, _LISTED, _PART = 3, 3, 1000, 10 * 2**20


class SlowStorage(Storage):
    """A local folder behind requests.

    Args:
        location: The folder.
        latency: Seconds that a request takes before its bytes come.

    Attributes:
        requests: How many there were.
    """

    def __init__(self, location: str, latency: float) -> None:
        super().__init__(location)
        self.requests, self._latency, self._lock = 0, latency, threading.Lock()
        self._fs = PyFileSystem(_Handler(self, self._fs))
        self.is_local = False

    def ask(self, requests: int = 1) -> None:
        """Waits as long as so many requests after one another take."""
        with self._lock:
            self.requests += requests
        time.sleep(requests * self._latency)


class _File:
    """A local file whose reads, and whose every part of an upload, are requests."""

    def __init__(self, storage: SlowStorage, file: Any) -> None:
        self._storage, self._file, self._sent = storage, file, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        self._storage.ask()
        return self._file.read(size)

    def write(self, content: bytes) -> int:
        self._sent += len(content)
        self._storage.ask(self._sent // _PART)
        self._sent %= _PART
        return self._file.write(content)


class _Handler(FileSystemHandler):
    def __init__(self, storage: SlowStorage, local: FileSystem) -> None:
        self._storage, self._local = storage, local

    def get_type_name(self) -> str:
        return "slow"

    def normalize_path(self, path: str) -> str:
        return self._local.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> Any:
        self._storage.ask(len(paths))
        return self._local.get_file_info(paths)

    def get_file_info_selector(self, selector: FileSelector) -> Any:
        found = self._local.get_file_info(selector)
        self._storage.ask(1 + len(found) // _LISTED)
        return found

    def delete_file(self, path: str) -> None:
        self._storage.ask(_DELETING)
        self._local.delete_file(path)

    def open_input_stream(self, path: str) -> PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> PythonFile:
        self._storage.ask()
        if self._local.get_file_info(path).type == FileType.NotFound:
            raise FileNotFoundError(path)
        return PythonFile(_File(self._storage, Path(path).open("rb")), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        self._storage.ask(_UPLOADING)
        LocalFileSystem().create_dir(path.rpartition("/")[0])
        return PythonFile(_File(self._storage, Path(path).open("wb")), mode="w")

    def create_dir(self, path: str, recursive: bool) -> None:
        self._local.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._local.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._local.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def move(self, src: str, dest: str) -> None:
        self._local.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._local.copy_file(src, dest)

    def open_append_stream(self, path: str, metadata: Any) -> PythonFile:
        raise NotImplementedError
