"""Files at ``http://`` and ``https://`` hosts that whoever runs zar-ray has named, read whole or by ranges."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

HOSTS = "ZAR_HTTP_HOSTS"
"""The environment variable with the hosts that may be asked, as ``HOST`` or ``HOST:PORT``, separated by commas."""

_SECONDS = (10.0, 60.0)  # to connect, and between two bytes


def is_allowed(url: str) -> bool:
    """Whether an address is of a host that may be asked; a host without a port stands for the scheme's own."""
    try:
        parts = urlsplit(url)
        usual = {"http": 80, "https": 443}.get(parts.scheme)
        port = parts.port or usual
    except ValueError:
        return False
    named = {one.strip().lower() for one in os.environ.get(HOSTS, "").split(",")} - {""}
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    return bool(host) and (f"{host}:{port}" in named or (port == usual and host in named))


class HttpFiles(AbstractFileSystem):
    """What fsspec wants to know of files behind HTTP. User names and passwords come from ``~/.netrc``."""

    protocol = "http"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self._session = _Session()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and whether ranges can be asked for; of the answer to a GET's head, as some hosts know no HEAD."""
        with self._get(path, stream=True) as answer:
            length = answer.headers.get("Content-Length", "")
            packed = answer.headers.get("Content-Encoding", "identity") != "identity"
            if not length.isdigit() or packed:
                raise OSError("the host does not say how long the file is")
            ranges = answer.headers.get("Accept-Ranges", "").lower() == "bytes"
            return {"name": path, "type": "file", "size": int(length), "ranges": ranges}

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """Bytes from `start` to before `end`; of the whole file where the host gives no ranges."""
        answer = self._get(path, headers={"Range": f"bytes={start}-{end - 1}"})
        return answer.content if answer.status_code == requests.codes.partial_content else answer.content[start:end]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> AbstractBufferedFile:
        if mode != "rb":
            raise PermissionError("http:// is for reading alone")
        about = self.info(path)
        cache = "none" if about["ranges"] else "all"
        return _HttpFile(self, path, "rb", cache_type=cache, size=about["size"])

    def _get(self, path: str, stream: bool = False, headers: dict[str, str] | None = None) -> requests.Response:
        plain = {"Accept-Encoding": "identity", **(headers or {})}
        answer = self._session.get(path, headers=plain, stream=stream, timeout=_SECONDS)
        if answer.status_code in (requests.codes.not_found, requests.codes.gone):
            raise FileNotFoundError(f"HTTP status {answer.status_code}")
        answer.raise_for_status()
        return answer


class _HttpFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        content = self.fs.fetch(self.path, start, end)
        if len(content) != end - start:
            raise OSError(f"{len(content)} of {end - start} bytes came")
        return content


class _Session(requests.Session):
    """Follows to no host that was not named either."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target is not None and not is_allowed(urljoin(resp.url, target)):
            raise PermissionError(f"the host sends on to another one, which {HOSTS} does not name")
        return target
