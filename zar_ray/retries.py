"""What may fail for a while, such as a request to an object store, is tried again, and here alone."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from zar_ray.errors import StorageError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

PATIENCE = "ZAR_STORAGE_PATIENCE"
"""The environment variable with the seconds for which a request is tried again."""

_PATIENCE_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 8.0
_SECONDS_BETWEEN_WARNINGS = 30.0

# What no waiting mends. All else that a store behind a network says may be over in a moment.
_FOR_GOOD = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_SAID_FOR_GOOD = re.compile(
    r"ACCESS_DENIED|NO_SUCH_|SIGNATURE_DOES_NOT_MATCH|INVALID_(?!RESPONSE)|UNRECOGNIZED_CLIENT|MISSING_|NOT_IMPLEMENTED"
    r"|EXPIRED|HTTP status (?!408|425|429)[34]\d\d"  # S3
    r"|PERMISSION_DENIED|UNAUTHENTICATED|FAILED_PRECONDITION"  # Google
    r"|AuthenticationFailed|Authorization\w*(?:Failure|Mismatch)|(?:Container|Resource)NotFound"  # Azure
)
_NAME = re.compile(r"'.*'", re.DOTALL)  # a file may be called anything
_WAIT_STATUS = {408, 425, 429}
# On a disk nothing is over in a moment, but for what network file systems say of their servers.
_BUSY = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}

# A key or token that an error's text repeats, and the query of an address, which may be signed.
_SECRETS = re.compile(r"(SECRET|TOKEN|PASSWORD|ACCESS_KEY|STORAGE_KEY|ACCOUNT_KEY)", re.IGNORECASE)
_QUERY = re.compile(r"(https?://[^\s?'\"]+|url: [^\s?'\"]+)\?[^\s'\")]*")
_SHORTEST_SECRET = 8

_telling = threading.Lock()
_told_at = -_SECONDS_BETWEEN_WARNINGS


def retried(work: Callable[[], _T], place: str, doing: str, *, remote: bool = True) -> _T:
    """Does something with a file system, again with growing pauses where it fails for what may be over in a moment.

    Args:
        work: What is done; it must do no harm to do it twice.
        place: Where, for messages.
        doing: What is done, such as ``read``, to go into "cannot be ...".
        remote: Whether the file system is behind a network.

    Raises:
        OSError: It fails for good: there is no such file, or access is denied.
        StorageError: It kept failing.
    """
    started, pause, attempts = time.monotonic(), _FIRST_PAUSE, 0
    patience = patience_seconds()
    while True:
        try:
            return work()
        except _failures() as error:
            attempts += 1
            if not _may_pass(error, remote):
                if isinstance(error, OSError):
                    raise
                raise OSError(reason_without_secrets(error)) from error
            waited = time.monotonic() - started
            if waited + pause > patience:
                raise StorageError(
                    f"{place}: cannot be {doing} ({reason_without_secrets(error)}); "
                    f"tried {attempts} times in {waited:.0f} s"
                ) from error
            _tell(place, error, patience)
        time.sleep(pause * random.uniform(0.5, 1.0))  # apart, so that many do not come back at once
        pause = min(2 * pause, _LONGEST_PAUSE)


def patience_seconds() -> float:
    """For how long a request is tried again."""
    try:
        return max(0.0, float(os.environ.get(PATIENCE) or _PATIENCE_SECONDS))
    except ValueError:
        return _PATIENCE_SECONDS


def reason_without_secrets(error: BaseException) -> str:
    """What an error says, in one line, without what the environment holds of keys and without queries of addresses."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRETS.search(name):
            text = text.replace(value, "***")
    return _QUERY.sub(r"\1?...", text)[:300]


def _failures() -> tuple[type[Exception], ...]:
    """What file systems raise: OSError, and what a few of fsspec's let through."""
    found: list[type[Exception]] = [OSError]
    for module, name in (("aiohttp", "ClientError"), ("httpx", "HTTPError")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _may_pass(error: BaseException, remote: bool) -> bool:
    if not remote:
        return isinstance(error, OSError) and error.errno in _BUSY
    if isinstance(error, _FOR_GOOD):
        return False
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status >= 500 or status in _WAIT_STATUS
    return not _SAID_FOR_GOOD.search(_NAME.sub("", str(error)))


def _tell(place: str, error: BaseException, patience: float) -> None:
    """Says that something is waited for, now and then, however many requests wait."""
    global _told_at
    with _telling:
        if time.monotonic() - _told_at < _SECONDS_BETWEEN_WARNINGS:
            return
        _told_at = time.monotonic()
    logger.warning("%s: %s; tried again for up to %.0f s", place, reason_without_secrets(error), patience)
