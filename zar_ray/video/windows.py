"""How a long video is cut into windows, and which of its frames are needed when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from zar_ray.errors import VideoError, VideoTooLargeError
from zar_ray.video.plans import ViewPlan


@dataclass(frozen=True)
class WindowCut:
    """How a video is cut.

    Attributes:
        window: Seconds of a window.
        stride: Seconds from one window's start to the next; None for as many as a window has.
    """

    window: float
    stride: float | None = None


@dataclass(frozen=True)
class WindowSpan:
    """Where one window of a video lies.

    Attributes:
        number: From 0.
        start: Seconds from the video's start: `number` strides.
        end: Seconds from the video's start; the video's end for one that would reach beyond.
        start_frame: Its first frame.
        frames: Its frames, at least 1.
    """

    number: int
    start: float
    end: float
    start_frame: int
    frames: int


def cut_windows(frames: int, fps: float, windows: WindowCut, most: float) -> tuple[WindowSpan, ...]:
    """The windows of a video; one that would start after the video's last frame does not exist.

    A time t is frame floor(t·fps + 1/2), in exact arithmetic.

    Args:
        frames: N, the video's frames.
        fps: Frames a second.
        windows: How long they are, and how far apart they start.
        most: Windows that there may be.

    Raises:
        VideoError: The frame rate is unknown.
        VideoTooLargeError: There would be too many windows.
    """
    if fps <= 0:
        raise VideoError("its frame rate is unknown, so it cannot be cut into windows", stage="plan")
    # the fractions that the numbers stand for: binary 0.3 would round to the wrong side of a half
    rate = Fraction(fps).limit_denominator(1_000_000)
    length = Fraction(repr(windows.window))
    stride = length if windows.stride is None else Fraction(repr(windows.stride))
    half = Fraction(1, 2)
    count = ceil((frames - half) / (stride * rate))
    if count > most:
        raise VideoTooLargeError(f"{count} windows; the limit is {most} windows", stage="plan")
    spans = []
    for number in range(count):
        first = int(number * stride * rate + half)
        last = min(max(int((number * stride + length) * rate + half), first + 1), frames)
        end = min(number * stride + length, frames / rate)
        spans.append(WindowSpan(number, float(number * stride), float(end), first, last - first))
    return tuple(spans)


class WindowSchedule:
    """When each window's frames are there, and how long each frame is needed.

    Attributes:
        frames: int64 (U,), ascending distinct indices in the video of the frames that any window needs.
        rows: For each window int64 (F,), its frames as rows of `frames`.
        complete: For each window the row with which it can be delivered, after the windows before it.
        last_use: int64 (U,), the last window that needs a frame.
        most_held: Frames that are held at the busiest moment.

    Args:
        spans: The windows.
        plans: Their views.
    """

    def __init__(self, spans: Sequence[WindowSpan], plans: Sequence[ViewPlan]) -> None:
        wanted = [span.start_frame + plan.frames for span, plan in zip(spans, plans, strict=True)]
        self.frames = np.unique(np.concatenate(wanted))
        self.rows = [np.searchsorted(self.frames, one) for one in wanted]
        self.complete = np.maximum.accumulate([rows[-1] for rows in self.rows])
        self.last_use = np.zeros(len(self.frames), dtype=np.int64)
        for number, rows in enumerate(self.rows):
            self.last_use[rows] = number
        released = np.sort(self.complete[self.last_use])
        row = np.arange(len(self.frames))
        self.most_held = int((row + 1 - np.searchsorted(released, row)).max())
