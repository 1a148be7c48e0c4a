"""From a location to the file system behind it: a local path, or a URI of a store that Arrow or fsspec knows.

A URI's path is taken as it stands, as stores' own tools take it: ``s3://bucket/50% off #1.mp4`` is the object of that
name. ``file://`` alone is decoded, as it is made by programs. What follows a last ``?`` is options only if all of it is
known ones; else it belongs to the name. Credentials come from the environment, as each store's own tools have them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from pyarrow import PythonFile
from pyarrow.fs import (
    AzureFileSystem,
    FileSystem,
    FSSpecHandler,
    GcsFileSystem,
    LocalFileSystem,
    PyFileSystem,
    S3FileSystem,
    resolve_s3_region,
)

from zar_ray.errors import RunError, suggestion
from zar_ray.retries import retried

_URI = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)$", re.DOTALL)
_OPTIONS = re.compile(r"^(.*)\?((?:(?:endpoint_override|region|scheme|anonymous)=[^&?]*(?:&(?=.)|$))+)$", re.DOTALL)
_SIGNED = re.compile(
    r"[?&](X-Amz-(Signature|Credential|Security-Token)|X-Goog-Signature|sig|signature|token|access_token|key)=", re.I
)
_SAME = {"gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}
_REQUEST_SECONDS, _CONNECT_SECONDS = 30, 10


def is_uri(location: str) -> bool:
    """Whether a location names a file system of its own, rather than a local path."""
    return bool(_URI.match(location))


@dataclass(frozen=True)
class Location:
    """Where a file or a folder lies.

    Attributes:
        scheme: What the URI begins with, in lower case; empty for a local path.
        path: What follows, without a slash at its end: of a local path all, absolute.
        options: Options of its file system, as they stand behind the ``?``.
    """

    scheme: str
    path: str
    options: str = ""

    @classmethod
    def parse(cls, location: str) -> Location:
        """Takes a path or a URI apart.

        Raises:
            RunError: It is not UTF-8; or the URI holds a password, a key or a signature, or names nothing.
        """
        try:
            location.encode()
        except UnicodeEncodeError:
            raise RunError(f"{location}: is not UTF-8, which file systems want here; rename it") from None
        match = _URI.match(location)
        if match is None:
            return cls("", str(Path(os.path.expanduser(location)).absolute()))  # noqa: PTH111
        scheme, rest = match["scheme"].lower(), match["rest"]
        hidden = f"{scheme}://..."
        before_path = rest.split("/", 1)[0]
        if "@" in before_path and (":" in before_path or _SAME.get(scheme, scheme) == "http"):
            raise RunError(f"{hidden}: holds a user name or a password; credentials come from the environment")
        if _SAME.get(scheme, scheme) == "http":
            if _SIGNED.search(rest):
                raise RunError(f"{hidden}: is signed, which makes it a credential; name the store or a host instead")
            return cls(scheme, rest.rstrip("/"))
        found = _OPTIONS.match(rest)
        path, options = (found[1], found[2]) if found else (rest, "")
        path = path.rstrip("/") or ("/" if scheme == "file" else "")
        if not path:
            raise RunError(f"{location}: names no bucket or folder")
        if scheme == "file" and not path.startswith("/"):
            raise RunError(f"{location}: must be absolute, as file:///{path}")
        return cls(scheme, path, options)

    def __str__(self) -> str:
        if not self.scheme:
            return self.path
        return f"{self.scheme}://{self.path}" + (f"?{self.options}" if self.options else "")

    def __truediv__(self, name: str) -> Location:
        """A file or folder in this folder."""
        return replace(self, path=f"{self.path.rstrip('/')}/{name}") if name else self

    @property
    def name(self) -> str:
        """The last part of the path, without an address's query."""
        return self.split()[1].partition("?")[0] if self.kind == "http" else self.split()[1]

    @property
    def parent(self) -> Location:
        """The folder that it lies in; of a bucket itself the bucket."""
        return self.split()[0]

    def split(self) -> tuple[Location, str]:
        """The folder that it lies in, and the rest, which leads from there to it."""
        path, query = self.path, ""
        if self.kind == "http":
            path, mark, query = self.path.partition("?")
            query = mark + query
        folder, _, name = path.rpartition("/")
        above = replace(self, path=folder or "/") if folder or not self.scheme else self
        return above, name + query

    @property
    def kind(self) -> str:
        """The kind of store, whatever its schemes are called; empty for a local path."""
        return _SAME.get(self.scheme, self.scheme)

    def open(self) -> tuple[FileSystem, str]:
        """The file system, which is made once in a process, and the path in it.

        Raises:
            RunError: There is no such kind of store, or it cannot be used here.
        """
        if self.kind in ("", "file"):
            return _LOCAL, unquote(self.path) if self.scheme else self.path
        if self.kind not in _STORES:
            known = suggestion(self.scheme, ["file", *_STORES, *_SAME])
            raise RunError(f"{self}: no such kind of place{known}")
        try:
            return _STORES[self.kind](self)
        except (OSError, ValueError, ImportError) as error:
            raise RunError(f"{self}: cannot be used ({' '.join(str(error).split())})") from error


_LOCAL = LocalFileSystem()


class _Fsspec(FSSpecHandler):
    """Opens a file without asking first whether it is one: that answer is no as well where the host fails."""

    def open_input_stream(self, path: str) -> PythonFile:
        return PythonFile(self.fs.open(path, mode="rb"), mode="r")

    open_input_file = open_input_stream


def _s3(location: Location) -> tuple[FileSystem, str]:
    options = dict(parse_qsl(location.options))
    bucket = location.path.split("/", 1)[0]
    named = options.get("endpoint_override") or _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    scheme, _, endpoint = named.rpartition("://")
    region = options.get("region") or (None if endpoint else _s3_region(bucket))
    secure = options.get("scheme") or scheme or "https"
    return _s3_system(endpoint.rstrip("/"), secure, region, "anonymous" in options), location.path


@cache
def _s3_region(bucket: str) -> str:
    return retried(lambda: resolve_s3_region(bucket), f"s3://{bucket}", "found")


@cache
def _s3_system(endpoint: str, scheme: str, region: str | None, anonymous: bool) -> FileSystem:
    return S3FileSystem(
        endpoint_override=endpoint or None,
        scheme=scheme,
        region=region,
        anonymous=anonymous,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        # A small object is then written by one request rather than three.
        allow_delayed_open=True,
    )


def _gs(location: Location) -> tuple[FileSystem, str]:
    options = dict(parse_qsl(location.options))
    return _gs_system(options.get("endpoint_override"), options.get("scheme"), "anonymous" in options), location.path


@cache
def _gs_system(endpoint: str | None, scheme: str | None, anonymous: bool) -> FileSystem:
    return GcsFileSystem(
        endpoint_override=endpoint,
        scheme=scheme or "https",
        anonymous=anonymous,
        retry_time_limit=timedelta(seconds=_REQUEST_SECONDS),
    )


def _az(location: Location) -> tuple[FileSystem, str]:
    """``az://CONTAINER/PATH``, or ``abfs://CONTAINER@ACCOUNT[.dfs.core.windows.net]/PATH``."""
    place, slash, path = location.path.partition("/")
    container, _, host = place.partition("@")
    account = host.partition(".")[0] or _environment("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise ValueError("set AZURE_STORAGE_ACCOUNT")
    return _az_system(account), f"{container}{slash}{path}"


@cache
def _az_system(account: str) -> FileSystem:
    key = _environment("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY") or None
    token = _environment("AZURE_STORAGE_SAS_TOKEN") or None
    return AzureFileSystem(account, account_key=key, sas_token=None if key else token)


def _hf(location: Location) -> tuple[FileSystem, str]:
    return _hf_system(), location.path


@cache
def _hf_system() -> FileSystem:
    from huggingface_hub import HfFileSystem

    return PyFileSystem(_Fsspec(HfFileSystem()))


def _http(location: Location) -> tuple[FileSystem, str]:
    # What asks hosts is slow to load.
    from zar_ray.http_files import HOSTS, is_allowed

    if not is_allowed(str(location)):
        raise PermissionError(f"its host is not among those that {HOSTS} names")
    return _http_system(), str(location)


@cache
def _http_system() -> FileSystem:
    from zar_ray.http_files import HttpFiles

    return PyFileSystem(_Fsspec(HttpFiles()))


_STORES: dict[str, Callable[[Location], tuple[Any, str]]] = {"s3": _s3, "gs": _gs, "az": _az, "hf": _hf, "http": _http}


def _environment(*names: str) -> str:
    """The first of some environment variables that is set."""
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
