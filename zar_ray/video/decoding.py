"""Decoding what a plan names: each frame once, resized at once, so that full-size frames never pile up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zar_ray.errors import VideoError
from zar_ray.video.corrupting import corrupter, frames_to_read
from zar_ray.video.corruptions import Corruption
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.options import Decoder, Resizer
from zar_ray.video.reading import VideoInfo, open_video
from zar_ray.video.streams import Deadline
from zar_ray.video.transforms import CLIP_SCALING, Scaling, resize_frame, resized_size

# A picture stands still while no colour value leaves this distance of the stretch's first frame (of 255): above what
# coding leaves of a repeated picture, below anything that moves.
_STILL_DIFFERENCE = 24
_STILL_SECONDS = 0.7
_STILL_FRAMES = 4


class FramePlan(Protocol):
    """The part of a `zar_ray.video.plans.ViewPlan` that decoding needs."""

    @property
    def frames(self) -> np.ndarray:
        """int64 (F,), ascending distinct frame indices."""
        ...

    @property
    def short_side(self) -> int:
        """Short side of the resized frames, in pixels."""
        ...


@dataclass(frozen=True, eq=False)
class DecodedVideo:
    """The frames of one video that its plan names.

    Attributes:
        frames: uint8 (F, h, w, 3), contiguous, resized, in the plan's order.
        info: What is known of the video, and the decoder that gave these pixels.
        warning: What is wrong with the video although it could be read.
        seconds: Time that opening, decoding and resizing took.
        also: The same frames resized otherwise, as `decode_video` was asked, in order.
    """

    frames: np.ndarray
    info: VideoInfo
    warning: str | None
    seconds: float
    also: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, eq=False)
class GivenFrames:
    """A video that somebody else has decoded.

    Attributes:
        frames: uint8 (N, H, W, 3), RGB, upright, all frames that are shown.
        fps: Frames a second.
    """

    frames: np.ndarray
    fps: float

    def __post_init__(self) -> None:
        """Refuses what is no video, with a `VideoError` (stage ``open``)."""
        shape, kind = self.frames.shape, self.frames.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or not self.frames.size:
            said = f"{kind} {shape}"
            raise VideoError(f"an array of {said}; a video is uint8 (frames, height, width, 3)", stage="open")
        if not 0 < self.fps < float("inf"):
            raise VideoError(f"{self.fps:g} frames a second; must be more than 0", stage="open")

    @property
    def info(self) -> VideoInfo:
        """What is known of it; its decoder is ``array``."""
        count, height, width, _ = self.frames.shape
        return VideoInfo(count, self.fps, width, height, count / self.fps, "array")

    @property
    def warning(self) -> str | None:
        """None: nothing was read."""
        return None

    def read(self, indices: Sequence[int] | np.ndarray, deadline: Deadline) -> Iterator[np.ndarray]:
        """Gives the named frames, as a `zar_ray.video.reading.VideoReader` does."""
        return (self.frames[int(index)] for index in indices)


class _Readable(Protocol):
    """What gives frames."""

    @property
    def info(self) -> VideoInfo: ...

    @property
    def warning(self) -> str | None: ...

    def read(self, indices: Sequence[int] | np.ndarray, deadline: Deadline) -> Iterator[np.ndarray]: ...


@dataclass(frozen=True)
class Resize:
    """What becomes of frames: how they are corrupted, if they are, and then resized.

    Attributes:
        short_side: Short side of the resized frames, in pixels.
        scaling: How they are resized, whatever the size.
        corruption: What is done to them before.
    """

    short_side: int
    scaling: Scaling
    corruption: Corruption | None = None


def decode_video(
    path: str | os.PathLike[str],
    plan_of: Callable[[VideoInfo], FramePlan],
    scaling: Scaling = CLIP_SCALING,
    decoder: Decoder = "auto",
    expected: VideoInfo | None = None,
    timeout: float | None = None,
    also: Sequence[Resize] = (),
    limits: DecodeLimits | None = None,
    resizer: Resizer = "pil",
    corruption: Corruption | None = None,
    draws: tuple[int, str] = (0, ""),
) -> DecodedVideo:
    """Decodes and resizes the frames that a plan names.

    Args:
        path: The file.
        plan_of: Makes the plan once the video's frames and size are known.
        scaling: How frames come to the plan's size.
        decoder: What reads it.
        expected: What the manifest says; the video must have these frames and this size.
        timeout: Seconds it may take.
        also: Further ways to resize the same frames, which are decoded once all the same.
        limits: What the video may be and take.
        resizer: Whose kernel resizes.
        corruption: What is done to the frames before they are resized to the plan's size.
        draws: What keys the draws of corruptions besides a frame's index: a seed, and the video's id.

    Raises:
        VideoError: The file cannot be opened or is not the expected one (stage ``open``); a frame cannot be decoded
            or it takes too long (stage ``decode``); or what `plan_of` raises.
        VideoTooLargeError: It is beyond the limits; found before any memory is taken.
        ConfigError: The decoder is not installed.
    """
    started = time.monotonic()
    deadline, limits = Deadline(timeout), limits or DecodeLimits()
    with open_video(path, decoder, deadline, limits) as reader:
        info = reader.info
        limits.check_duration(info.duration)
        if expected is not None:
            here, there = ((one.frames, one.width, one.height) for one in (info, expected))
            if here != there:
                raise VideoError(
                    f"{info.frames} frames of {info.width}×{info.height}, but the manifest has {expected.frames} "
                    f"of {expected.width}×{expected.height}; index the data set again",
                    stage="open",
                )
        plan = plan_of(info)
        ways = (Resize(plan.short_side, scaling, corruption), *also)
        resized, warning = _resized(reader, plan, ways, limits, resizer, deadline, draws)
    return DecodedVideo(resized[0], info, warning, time.monotonic() - started, tuple(resized[1:]))


def resize_given(
    video: GivenFrames,
    plan_of: Callable[[VideoInfo], FramePlan],
    scaling: Scaling = CLIP_SCALING,
    resizer: Resizer = "pil",
) -> DecodedVideo:
    """Takes from a decoded video what `decode_video` takes from a file; the same frames give the same pixels.

    Raises:
        VideoTooLargeError: The frames would take more memory resized than a video may.
        VideoError: What `plan_of` raises.
    """
    started = time.monotonic()
    plan = plan_of(video.info)
    ways = (Resize(plan.short_side, scaling),)
    (frames,), warning = _resized(video, plan, ways, DecodeLimits(), resizer, Deadline())
    return DecodedVideo(frames, video.info, warning, time.monotonic() - started)


def _resized(
    video: _Readable,
    plan: FramePlan,
    ways: Sequence[Resize],
    limits: DecodeLimits,
    resizer: Resizer,
    deadline: Deadline,
    draws: tuple[int, str] = (0, ""),
) -> tuple[list[np.ndarray], str | None]:
    """A plan's frames in each of some ways, and what is wrong with the video."""
    info = video.info
    sizes = [resized_size(info.height, info.width, way.short_side, way.scaling.mode) for way in ways]
    for height, width in sizes:
        limits.check_frames(len(plan.frames), width, height)
    resized = [np.empty((len(plan.frames), *size, 3), dtype=np.uint8) for size in sizes]
    row_of = {index: row for row, index in enumerate(plan.frames.tolist())}
    of_corruption: dict[Corruption | None, list[int]] = {}
    for number, way in enumerate(ways):
        of_corruption.setdefault(way.corruption, []).append(number)
    size = info.height, info.width
    corrupters = {one: corrupter(one, plan.frames, size, *draws, limits) for one in of_corruption}
    needed = frames_to_read(plan.frames, info.frames, of_corruption)

    def keep(numbers: list[int], shown: Iterable[tuple[int, np.ndarray]]) -> None:
        for index, frame in shown:
            deadline.check()
            for number in numbers:
                way = ways[number]
                resized[number][row_of[index]] = resize_frame(frame, way.short_side, way.scaling, resizer)

    for index, frame in zip(needed.tolist(), video.read(needed, deadline), strict=True):
        deadline.check()
        for one, numbers in of_corruption.items():
            keep(numbers, corrupters[one].take(index, frame))
    for one, numbers in of_corruption.items():
        keep(numbers, corrupters[one].end())
    # What is corrupted may stand still because of that.
    plain = next(iter(of_corruption.get(None, ())), None)
    still = None if plain is None else _still_stretch(resized[plain], plan.frames, info)
    return resized, "; ".join(note for note in (video.warning, still) if note) or None


def _still_stretch(frames: np.ndarray, indices: np.ndarray, info: VideoInfo) -> str | None:
    """Says where the picture freezes while the rest of the video moves.

    Damage that an earlier conversion decoded and encoded anew is invisible to any decoder, but leaves such stretches.

    Args:
        frames: uint8 (F, h, w, 3).
        indices: Their indices in the video, (F,).
        info: The video.
    """
    longest, start = (0, 0), 0
    for row in range(1, len(frames)):
        if _differ(frames[start], frames[row]):
            start = row
        longest = max(longest, (row - start, start))
    steps, start = longest
    first, last = int(indices[start]), int(indices[start + steps])
    span = last - first + 1
    seconds = span / info.fps if info.fps else span / 25
    if steps + 1 < _STILL_FRAMES or seconds < _STILL_SECONDS or 2 * span > info.frames:
        return None
    return f"the picture stands still in frames {first} to {last} ({seconds:.1f} s), as damaged recordings do"


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    # most pairs differ everywhere: a few pixels decide
    for step in (16, 1):
        x, y = a[::step, ::step], b[::step, ::step]
        if int((np.maximum(x, y) - np.minimum(x, y)).max()) > _STILL_DIFFERENCE:
            return True
    return False
