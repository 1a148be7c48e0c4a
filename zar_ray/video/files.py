"""A video wherever it lies, as a file that decoders can open: on a disk, behind a URI, or in a tar file."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from zar_ray.errors import RunError, StorageError, VideoError
from zar_ray.local_copies import copied, path_of
from zar_ray.storage import Storage, is_uri
from zar_ray.video.shards import BLOCK, Member, header_fits, read_shard
from zar_ray.video.streams import reason_of


class VideoFile(os.PathLike[str]):
    """Gives a local path where one is asked for.

    What lies elsewhere is fetched then, once, into a temporary file without a name, which is gone with this object or
    this process; of a tar file only the member's bytes. Any process of this user may open the path meanwhile.

    Args:
        path: The video's local path or URI, or that of the tar file that it is in.
        member: Its name in the tar file.
        offset: Where it begins there, if that is known; else the tar file is searched.
        size: How many bytes it has there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        member: str | None = None,
        offset: int | None = None,
        size: int | None = None,
    ) -> None:
        place = os.fspath(path)
        self.path, self.member = place if is_uri(place) else str(Path(place).absolute()), member
        self._offset, self._size = offset, size
        self._fetched: IO[bytes] | None = None

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._fetched is not None:
            self._fetched.close()
            self._fetched = None

    def __reduce__(self) -> tuple[type[VideoFile], tuple[Any, ...]]:
        return (type(self), (self.path, self.member, self._offset, self._size))

    def __str__(self) -> str:
        return self.path if self.member is None else f"{self.path}#{self.member}"

    @property
    def offset(self) -> int | None:
        """Where it begins in a tar file, once that is known."""
        return self._offset

    def __fspath__(self) -> str:
        """A path that can be opened until this is closed.

        Raises:
            VideoError: There is no such file, or it cannot be read (stage ``open``).
            StorageError: The store does not answer, or there is no room for the file here.
        """
        if self.member is None and not is_uri(self.path):
            return self.path
        if self._fetched is None:
            self._fetched = self._fetch()
        return path_of(self._fetched)

    def state(self) -> dict[str, Any]:
        """What tells, as JSON values, whether the file is still the same, without fetching it.

        Raises:
            VideoError: There is no such file (stage ``open``).
            StorageError: The store does not answer.
        """
        within = {} if self.member is None else {"member": self.member}
        if not is_uri(self.path):  # whose name need not be UTF-8
            status = self._status()
            return {"path": self.path, **within, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        try:
            folder, name = Storage.of_file(self.path)
            _, size, mtime_ns = folder.state(name)
        except RunError as error:
            raise self._unusable(error) from error
        return {"path": self.path, **within, "size": size, "mtime_ns": mtime_ns}

    def _status(self) -> os.stat_result:
        try:
            return Path(self.path).stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            what = "no such file" if missing else f"cannot be read: {reason_of(error)}"
            raise VideoError(what, stage="open") from error

    def _fetch(self) -> IO[bytes]:
        try:
            folder, name = Storage.of_file(self.path)
            with folder.opened(name) as source:
                if self.member is None:
                    start, left = 0, source.seek(0, os.SEEK_END)
                else:
                    member = self._found()
                    start, left = member.offset, member.size
                    source.seek(max(0, start - BLOCK))
                    if not header_fits(source.read(BLOCK), member.name, member.size):
                        raise VideoError("the tar file has changed; index the data set again", stage="open")
                return copied(source, start, left)
        except EOFError:
            raise VideoError("the file ends before the video does", stage="open") from None
        except RunError as error:
            raise self._unusable(error) from error

    def _found(self) -> Member:
        assert self.member is not None
        if self._offset is not None and self._size is not None:
            return Member(self.member, self._offset, self._size)
        members, error = _members(self.path)
        if self.member not in members:
            raise VideoError(f"the tar file {error or f'has no member {self.member}'}", stage="open")
        self._offset, self._size = members[self.member].offset, members[self.member].size
        return members[self.member]

    def _unusable(self, error: RunError) -> Exception:
        """What a failure to read means: the store's, or this video's."""
        if isinstance(error, StorageError):
            return error
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return VideoError("no such file", stage="open")
        return VideoError(str(error).removeprefix(f"{self.path}: "), stage="open")


@lru_cache(maxsize=16)
def _members(path: str) -> tuple[dict[str, Member], str | None]:
    shard = read_shard(path)
    return {member.name: member for member in shard.members}, shard.error
