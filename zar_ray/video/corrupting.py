"""Corrupting frames as they are decoded: which frames a corruption must see, and what it gives for those wanted.

Frame by frame is the rule. Motion blur is the mean of a frame and its neighbours; re-encoding is done to the whole
video from its first frame to its last, by one thread, so that it depends on nothing but the video's frames: neither on
which are wanted, nor on the worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Protocol

import av
import av.error
import numpy as np

from zar_ray.errors import ConfigError, VideoError
from zar_ray.video.corruptions import H265, MOTION, Corruption, corrupt_frame
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.streams import reason_of

# x265 reads and writes beyond what it has allocated for pictures of about one block of 64 pixels: what it made of
# them differed from time to time.
_LEAST_SIDE = 128
_ENCODER = "libx265"
# One thread, whatever the machine has: what is encoded would depend on their number.
_ENCODER_OPTIONS = "pools=none:frame-threads=1:wpp=0:log-level=none"

_Shown = Iterator[tuple[int, np.ndarray]]


def require_corruptions(corruptions: Iterable[Corruption | None]) -> None:
    """Looks whether what corruptions need is installed.

    Raises:
        ConfigError: PyAV comes without the encoder that one needs.
    """
    for one in corruptions:
        if one is not None and one.name == "h265" and _ENCODER not in av.codecs_available:
            raise ConfigError(f"--corruption {one}: this PyAV has no encoder {_ENCODER}; leave it out")


def frames_to_read(wanted: np.ndarray, count: int, corruptions: Iterable[Corruption | None]) -> np.ndarray:
    """Which frames some corruptions must see to give those wanted: int64, ascending.

    Args:
        wanted: int64 (F,), ascending.
        count: N, the video's frames.
        corruptions: The corruptions; None is no corruption.
    """
    needed = [wanted]
    for one in corruptions:
        if one is not None and one.name == "h265":
            return np.arange(count, dtype=np.int64)
        if one is not None and one.name == "motion_blur":
            reach = MOTION[one.severity - 1]
            needed += [np.clip(wanted + step, 0, count - 1) for step in range(-reach, reach)]
    return np.unique(np.concatenate(needed))


class Corrupter(Protocol):
    """Takes the frames of `frames_to_read` in order, and gives those wanted, each as soon as it can."""

    def take(self, index: int, frame: np.ndarray) -> _Shown:
        """Gives (index, uint8 (H, W, 3)) of what a frame, uint8 (H, W, 3), makes known."""
        ...

    def end(self) -> _Shown:
        """Gives what is left after the last frame."""
        ...


def corrupter(
    corruption: Corruption | None,
    wanted: np.ndarray,
    size: tuple[int, int],
    seed: int,
    video_id: str,
    limits: DecodeLimits,
) -> Corrupter:
    """Makes a video's corrupter.

    Args:
        corruption: The corruption; None gives frames as they are.
        wanted: int64 (F,), the frames that are wanted, ascending.
        size: Height and width of a frame.
        seed: Seed of the draws.
        video_id: The video's.
        limits: What its frames in memory may take.

    Raises:
        VideoTooLargeError: So many frames as are looked at together would take too much.
    """
    if corruption is not None and corruption.name == "motion_blur":
        reach = MOTION[corruption.severity - 1]
        limits.check_frames(2 * reach, size[1], size[0])
        return _MotionBlur(reach, wanted)
    if corruption is not None and corruption.name == "h265":
        return _Reencoding(H265[corruption.severity - 1], wanted, size)
    return _FrameByFrame(corruption, wanted, seed, video_id)


class _FrameByFrame:
    def __init__(self, corruption: Corruption | None, wanted: np.ndarray, seed: int, video_id: str) -> None:
        self._corruption, self._key = corruption, (seed, video_id)
        self._wanted = set(wanted.tolist())

    def take(self, index: int, frame: np.ndarray) -> _Shown:
        if index in self._wanted:
            given = self._corruption
            yield index, frame if given is None else corrupt_frame(frame, given, *self._key, index)

    def end(self) -> _Shown:
        return iter(())


class _MotionBlur:
    """The mean of the frames i - c to i + c - 1; at the video's ends of those that there are."""

    def __init__(self, reach: int, wanted: np.ndarray) -> None:
        self._reach = reach
        self._wanted = deque(wanted.tolist())
        self._seen: deque[tuple[int, np.ndarray]] = deque(maxlen=2 * reach)

    def take(self, index: int, frame: np.ndarray) -> _Shown:
        self._seen.append((index, frame))
        while self._wanted and index >= self._wanted[0] + self._reach - 1:
            yield self._blurred()

    def end(self) -> _Shown:
        while self._wanted:
            yield self._blurred()

    def _blurred(self) -> tuple[int, np.ndarray]:
        middle = self._wanted.popleft()
        around = [one for index, one in self._seen if -self._reach <= index - middle < self._reach]
        total, count = np.zeros(around[0].shape, np.int32), len(around)
        for one in around:
            total += one
        return middle, ((2 * total + count) // (2 * count)).astype(np.uint8)


class _Reencoding:
    """What H.265 leaves of the frames at a constant rate factor, decoded again."""

    def __init__(self, rate: int, wanted: np.ndarray, size: tuple[int, int]) -> None:
        self._wanted, self._size = set(wanted.tolist()), size
        self._coded = [max(_LEAST_SIDE, length + length % 2) for length in size]
        encoder: Any = av.CodecContext.create(_ENCODER, "w")
        encoder.height, encoder.width = self._coded
        encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 25), Fraction(25)
        encoder.options = {"crf": str(rate), "preset": "medium", "x265-params": _ENCODER_OPTIONS}
        self._encoder: Any = encoder
        self._decoder: Any = av.CodecContext.create("hevc", "r")
        self._decoder.thread_count = 1

    def take(self, index: int, frame: np.ndarray) -> _Shown:
        margins = [(0, coded - length) for coded, length in zip(self._coded, self._size, strict=True)]
        whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(frame, (*margins, (0, 0)), "edge")), "rgb24")
        whole.pts, whole.time_base = index, self._encoder.time_base
        return self._shown(whole)

    def end(self) -> _Shown:
        yield from self._shown(None)
        yield from self._decoded(None)
        if self._wanted:
            raise VideoError(f"H.265 loses {len(self._wanted)} of its frames")

    def _shown(self, frame: av.VideoFrame | None) -> _Shown:
        try:
            for packet in self._encoder.encode(frame):
                yield from self._decoded(packet)
        except av.error.FFmpegError as error:
            raise VideoError(f"cannot be encoded as H.265: {reason_of(error)}") from error

    def _decoded(self, packet: av.Packet | None) -> _Shown:
        for frame in self._decoder.decode(packet):
            if frame.pts in self._wanted:
                self._wanted.discard(frame.pts)
                yield frame.pts, frame.to_ndarray(format="rgb24")[: self._size[0], : self._size[1]]
