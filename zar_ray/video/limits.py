"""What one video, and decoding it, may take: a file of a few bytes may claim gigabytes of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from zar_ray.errors import VideoTooLargeError

_GIB = 2**30


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
    decoded_bytes: int = 2 * _GIB
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
