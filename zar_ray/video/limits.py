"""What one video, and decoding it, may take: a file of a few bytes may claim gigabytes of pixels."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from dataclasses import dataclass
from math import inf

import psutil

from zar_ray.errors import VideoTooLargeError

_GIB = 2**30
_FILES = 64  # descriptors of a process that decodes; a decoder opens the file two or three times


@dataclass(frozen=True)
class DecodeLimits:
    """What a video may be, and what its decoding may take; the defaults are those of commands.

    Attributes:
        duration: Seconds of a video.
        side: Pixels of its width and of its height.
        decoded_bytes: Bytes of its resized frames.
        memory: Bytes that a decoding process may allocate beyond what it has when it has started.
        windows: Windows of a video that is cut into such.
    """

    duration: float = inf
    side: int = 16384
    decoded_bytes: int = _GIB
    memory: int = 4 * _GIB
    windows: float = inf

    def check_size(self, width: int, height: int) -> None:
        """Raises a `VideoTooLargeError` (stage ``open``) for pictures whose sides are too long."""
        if max(width, height) > self.side:
            raise VideoTooLargeError(f"{width}×{height} pixels; the limit is {self.side} pixels a side", stage="open")

    def check_duration(self, seconds: float) -> None:
        """Raises a `VideoTooLargeError` (stage ``open``) for a video that lasts too long."""
        if seconds > self.duration:
            raise VideoTooLargeError(f"lasts {seconds:.1f} s; the limit is {self.duration:g} s", stage="open")

    def check_frames(self, count: int, width: int, height: int) -> None:
        """Raises a `VideoTooLargeError` (stage ``plan``) where resized RGB frames would take too much memory."""
        size = 3 * count * width * height
        if size > self.decoded_bytes:
            raise VideoTooLargeError(
                f"{count} frames of {width}×{height} pixels after resizing take {size} bytes; the limit is "
                f"{self.decoded_bytes} bytes",
                stage="plan",
            )


def address_space() -> int:
    """Bytes of address space that this process has; on Linux they are what it may be limited in."""
    return psutil.Process().memory_info().vms


def confine(memory: int) -> None:
    """Lowers what this process may use, for good: so many bytes beyond what it has now, and few files."""
    limits = {
        resource.RLIMIT_CORE: 0,  # a core holds what was sent
        resource.RLIMIT_NOFILE: _FILES,
        resource.RLIMIT_AS: address_space() + memory,
    }
    for kind, wanted in limits.items():
        _, most = resource.getrlimit(kind)
        value = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        # macOS knows the name of RLIMIT_AS, but no such limit
        with contextlib.suppress(ValueError):
            resource.setrlimit(kind, (value, value))


def lacks_memory(error: BaseException) -> bool:
    """Whether an error in a confined process, or what led to it, says that there is no memory left."""
    # A thread whose stack finds no room, such as one of FFmpeg's scaler, is told as one that may be tried again.
    told = (os.strerror(errno.ENOMEM), os.strerror(errno.EAGAIN), "bad_alloc", "can't start new thread")
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, MemoryError) or any(text in str(one) for text in told):
            return True
        one = one.__cause__ or one.__context__
    return False
