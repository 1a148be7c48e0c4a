"""Which frames of a video the published systems read, in training and in evaluation, as their official code has it.

Every way is a pure function of the numbers of frames and of what is drawn, so that the same draws choose the same
frames on every machine. Indices are int64 (T,) and below the video's number of frames, N.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np

from zar_ray.video.options import Sampling

Draw = Callable[[int], int]
"""Draws an integer below n, from 0, each as often as the others."""

# Frames between two of a dense clip: A5's shares of the video's frame rate, 1, 1/2, three times 1/3, and 1/4.
_DENSE_STEPS = (1, 2, 3, 3, 3, 4)


def part_centres(start: int, length: int, count: int, frames: int) -> np.ndarray:
    """The centres of `count` equal parts of a segment: floor(start + (i + 1/2)·length/count), clipped to N `frames`.

    Returns:
        int64 (count,), ascending; indices repeat where the segment is shorter.
    """
    parts = np.arange(count, dtype=np.int64)
    return np.minimum(start + (2 * parts + 1) * length // (2 * count), frames - 1)


def evaluated_frames(
    sampling: Sampling, number: int, views: int, count: int, frames: int, draw: Draw, stride: int
) -> np.ndarray:
    """Frames of one of several evaluation views of a whole video.

    - ``parts``: each of T equal parts gives each view one: view j of n takes floor((i + (j + 1/2)/n)·N/T), and a single
      one the parts' centres.
    - ``segments``: a single view is the same; several are drawn each, as for training. So do ViFi-CLIP and X-CLIP.
    - ``ticks``: half a frame earlier than ``parts``, floor((i + 1/2)·N/T - 1/2), or floor(i·N/T) of N up to T. So do
      ActionCLIP and EZ-CLIP, and TSN (Wang et al., ECCV 2016), for a single view.
    - ``stride``: every so-manieth frame; views start evenly spread, and a single one lies in the middle. The last frame
      repeats behind a video that is too short. So does Vita-CLIP.
    - ``dense``: a clip drawn for each view, as for training. So does A5.

    Args:
        sampling: Which way.
        number: j, from 0.
        views: n.
        count: T.
        frames: N.
        draw: What ``segments`` of several views and ``dense`` draw from.
        stride: Frames from one to the next under ``stride``.
    """
    if sampling == "ticks":
        return _tick_centres(views * count, frames)[number::views]
    if sampling == "stride":
        room = max(0, frames - 1 - (count - 1) * stride)
        start = room // 2 if views == 1 else round(Fraction(room * number, views - 1))
        return np.minimum(start + np.arange(count, dtype=np.int64) * stride, frames - 1)
    if sampling == "dense" or (sampling == "segments" and views > 1):
        return drawn_frames(sampling, count, frames, draw, stride)
    return part_centres(0, frames, views * count, frames)[number::views]


def drawn_frames(sampling: Sampling, count: int, frames: int, draw: Draw, stride: int) -> np.ndarray:
    """Frames of a training sample, of all ways but ``parts``, which `zar_ray.training.samples` has.

    - ``segments``: one of each of T parts of floor(N/T) frames; what is left at the end is never drawn. Of N below T,
      i·N/T rounded half to even, where N is the first frame again.
    - ``ticks``: one of each of the parts between floor(i·N/T). Of N up to T, all, and the rest drawn among them.
    - ``stride``: every so-manieth, from a start that is drawn; the last of them repeats where the video is too short.
    - ``dense``: T of every frame, every second, third or fourth one, as often as A5 draws them, from a start that is
      drawn. Of fewer, of every frame; of N up to T, all, and the last one repeats.
    """
    places = np.arange(count, dtype=np.int64)
    if sampling == "segments":
        length = frames // count
        if length:
            return places * length + _drawn(draw, length, count)
        return np.array([round(Fraction(i * frames, count)) % frames for i in range(count)], dtype=np.int64)
    if sampling == "ticks":
        if frames <= count:
            return np.sort(np.concatenate([np.arange(frames), _drawn(draw, frames, count - frames)]))
        ticks = np.arange(count + 1, dtype=np.int64) * frames // count
        return np.array([start + draw(int(end - start)) for start, end in pairwise(ticks)])
    if sampling == "stride":
        room = frames - (count - 1) * stride
        if room <= 1:
            return np.minimum(places, (frames - 1) // stride) * stride
        return draw(room) + places * stride
    if frames <= count:
        return np.minimum(places, frames - 1)
    step = _DENSE_STEPS[draw(len(_DENSE_STEPS))]
    first, number = draw(step), round(Fraction(frames, step))
    clip = np.arange(frames, dtype=np.int64)
    if number > count:
        clip = first + (frames - 1 - first) * np.arange(number, dtype=np.int64) // (number - 1)
    start = draw(len(clip) - count)
    return clip[start : start + count]


def _drawn(draw: Draw, below: int, count: int) -> np.ndarray:
    return np.array([draw(below) for _ in range(count)], dtype=np.int64)


def _tick_centres(count: int, frames: int) -> np.ndarray:
    places = np.arange(count, dtype=np.int64)
    if count == 1:
        return np.array([frames // 2], dtype=np.int64)
    if frames <= count:
        return places * frames // count
    return ((2 * places + 1) * frames - count) // (2 * count)
