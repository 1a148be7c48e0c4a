"""A file that an option names: a local path, or a URI that answers what its users ask a path."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePosixPath
from typing import Annotated, overload

import tyro
from pydantic import PlainSerializer, PlainValidator

from zar_ray.file_systems import Location
from zar_ray.storage import Storage, is_uri


class RemoteFile(str):
    """A file at a URI. The methods are those of `pathlib.Path`; reading may raise a RunError."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """What it is called."""
        return Location.parse(self).name

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """What its name ends with."""
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> RemoteFile:
        """A file beside it."""
        return RemoteFile(Location.parse(self).parent / name)

    def is_absolute(self) -> bool:
        """Whether it names the same place for every process: a URI does."""
        return True

    def is_file(self) -> bool:
        """Whether it is there."""
        folder, name = Storage.of_file(self)
        return folder.states([name]) != [None]

    exists = is_file

    def read_bytes(self) -> bytes:
        """The whole content."""
        folder, name = Storage.of_file(self)
        return folder.read(name)

    def read_text(self, encoding: str) -> str:
        """The whole content."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Opens it for reading bytes."""
        assert mode == "rb"
        folder, name = Storage.of_file(self)
        return folder.opened(name)


def file_of(place: str | os.PathLike[str]) -> Path | RemoteFile:
    """The file that a path or a URI names.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(place, str | os.PathLike):
        raise ValueError("must be a path or a URI")  # noqa: TRY004  which pydantic takes for a wrong value
    return RemoteFile(place) if isinstance(place, str) and is_uri(place) else Path(place)


@overload
def from_home(place: RemoteFile) -> RemoteFile: ...


@overload
def from_home(place: Path | str) -> Path: ...


def from_home(place: Path | str) -> Path | RemoteFile:
    """A path where ``~`` may stand for a home folder (of nobody's it stays, and nothing is there); a URI as it is."""
    if isinstance(place, RemoteFile):
        return place
    return Path(os.path.expanduser(place))  # noqa: PTH111  pathlib's raises what is no mistake's


@overload
def at_home(place: RemoteFile) -> RemoteFile: ...


@overload
def at_home(place: Path | str) -> Path: ...


def at_home(place: Path | str) -> Path | RemoteFile:
    """The whole path of `from_home`; a URI as it is."""
    return place if isinstance(place, RemoteFile) else from_home(place).absolute()


AnyFile = Path | RemoteFile
FilePlace = Annotated[
    Path,
    PlainValidator(file_of),
    PlainSerializer(str, when_used="json"),
    # The command line builds values before pydantic sees them, and would make a path of a URI.
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE|URI",
        instance_from_str=lambda words: file_of(words[0]),
        is_instance=lambda value: isinstance(value, AnyFile),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""The type of an option's file, a `Path` or a `RemoteFile`."""
