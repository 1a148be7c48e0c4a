"""A request's body: counted while it streams in, kept in a private file without a name, and read from there."""

from __future__ import annotations

import mmap
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import anyio
import numpy as np
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from zar_ray.serving.options import LimitConfig
from zar_ray.serving.problems import RequestError

# Bytes of all of a form's texts, or of a JSON body.
_TEXT_BYTES = 2**20
_NAME_LENGTH = 255


@dataclass(frozen=True, eq=False)
class Form:
    """A multipart body.

    Attributes:
        fields: Its text fields; several of one name in their order.
        name: The video's file name, without folders.
        content: uint8 (n,), the video, on the pages of its file.
        seconds: What it took to arrive.
    """

    fields: dict[str, list[str]]
    name: str
    content: np.ndarray
    seconds: float


class _Parser(MultiPartParser):
    """Bounds all texts together, takes them for nothing but UTF-8, and a video for nothing but a file."""

    _texts = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._texts += end - start
            if self._texts > _TEXT_BYTES:
                raise MultiPartException(f"its texts come to more than {_TEXT_BYTES} bytes")
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            self._current_part.data.decode()
        super().on_part_end()

    def on_headers_finished(self) -> None:
        self._charset = "utf-8"
        (self._current_part.content_disposition or b"").decode()
        super().on_headers_finished()
        if self._current_part.field_name == "video" and self._current_part.file is None:
            raise RequestError(
                "invalid-parameters",
                "video: its part has no filename, which makes it a text; send a file, as curl does with -F video=@FILE",
            )


def announced_size(request: Request, limits: LimitConfig) -> int:
    """Bytes that a body may come to: what its header says, or the limit where it says nothing.

    Raises:
        RequestError: The header announces more than the limit (``body-too-large``), or no number (``bad-request``).
    """
    header = request.headers.get("content-length")
    if header is None:
        return limits.body_bytes
    if not re.fullmatch(r"\d{1,18}", header):
        raise RequestError("bad-request", "Content-Length is not a number of bytes")
    if int(header) > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    return int(header)


@asynccontextmanager
async def read_form(request: Request, limits: LimitConfig) -> AsyncIterator[Form]:
    """Receives a multipart body with one file; the file is gone when the block ends, also if the process is killed.

    Raises:
        RequestError: It is too large or too slow, is no form, or lacks the video.
    """
    started = time.monotonic()
    chunks = _counted(request, limits.body_bytes)
    parser = _Parser(request.headers, chunks, max_files=1, max_fields=limits.labels + 16)
    try:
        with _arriving(limits):
            form = await parser.parse()
    except MultiPartException as error:
        raise RequestError("bad-request", f"the form cannot be read: {error.message}") from None
    except UnicodeDecodeError:
        raise RequestError("bad-request", "the form cannot be read: its texts and names must be UTF-8") from None
    except (KeyError, ValueError, AssertionError) as error:
        # Headers that are no multipart's: starlette's parser looks them up and decodes them without checks.
        raise RequestError("bad-request", f"the form cannot be read: {type(error).__name__}") from None
    try:
        yield _form(form, time.monotonic() - started)
    finally:
        await form.close()


async def read_json(request: Request, limits: LimitConfig) -> bytes:
    """Receives a JSON body.

    Raises:
        RequestError: It is too large or too slow.
    """
    with _arriving(limits):
        return b"".join(
            [chunk async for chunk in _counted(request, min(_TEXT_BYTES, limits.body_bytes), "; upload the video")]
        )


@contextmanager
def _arriving(limits: LimitConfig) -> Iterator[None]:
    """How long a body may take, and what it means that it does not arrive."""
    try:
        with anyio.fail_after(limits.receive_seconds):
            yield
    except TimeoutError:
        raise RequestError("timeout", f"the body took longer than {limits.receive_seconds:g} s to arrive") from None
    except ClientDisconnect:
        raise RequestError("bad-request", "the client hung up") from None


async def _counted(request: Request, limit: int, advice: str = "") -> AsyncGenerator[bytes]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large(limit, advice)
        yield chunk


def _form(form: Any, seconds: float) -> Form:
    fields: dict[str, list[str]] = {}
    video: UploadFile | None = None
    for key, value in form.multi_items():
        if isinstance(value, str):
            fields.setdefault(key, []).append(value)
        elif key == "video":
            video = value
        else:
            raise RequestError(
                "invalid-parameters", f"{key[:80]}: no file is expected here; the file is the field video"
            )
    if video is None:
        raise RequestError("invalid-parameters", "video: the form has no file of this name")
    return Form(fields, _base_name(video.filename or "video"), _content(video.file), seconds)


def _base_name(name: str) -> str:
    """The last part of a path in any system's notation."""
    # Browsers and our client write a quotation mark so.
    last = PurePosixPath(name.replace("%22", '"').replace("\\", "/")).name
    return "".join(character for character in last if character.isprintable())[:_NAME_LENGTH] or "video"


def _content(file: IO[Any]) -> np.ndarray:
    """uint8 (n,): the file's bytes, without a copy of those that lie on disk."""
    size = file.seek(0, 2)
    if size == 0:
        return np.empty(0, dtype=np.uint8)
    # Asking for the number puts onto disk what starlette keeps in memory because it is small.
    number = file.fileno()
    file.flush()
    return np.frombuffer(mmap.mmap(number, size, access=mmap.ACCESS_READ), dtype=np.uint8)


def _too_large(limit: int, advice: str = "") -> RequestError:
    return RequestError("body-too-large", f"the body is larger than {limit} bytes{advice}")
