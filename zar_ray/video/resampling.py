"""Pillow's antialiased resizing, compiled: value for value the same, in a third to a half of the time.

Pillow weighs each pixel's neighbours with fixed-point numbers, along rows and along columns, and rounds to 8 bits after
either. Its loops go pixel by pixel; here the same sums are made of whole rows at a time, which numba compiles to vector
instructions. Nothing that Pillow may change is written twice: its weights are read out of it, and which axis it begins
with is found by trying both, for every size of frames; where neither gives Pillow's values, Pillow resizes.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from math import ceil
from typing import Any, Literal

import numpy as np
from PIL import Image

# Pillow's weights have so many binary places.
_PLACES = 22
# Neighbours to either side at most, in pixels of the frame, or of the result where that is the smaller.
_REACH = 2
# Rows that are turned at a time: what they take stays in a core's cache.
_BAND = 64
# Pixels read and written after which compiling pays. Loading the compiled code takes half a second of a core, which
# is what Pillow takes for so many.
_PAYS = 50_000_000
# Pixels of the largest frames; 8K video has 33 million.
_LARGEST = 2**26

Filter = Literal["bicubic", "bilinear"]
Order = Literal["rows", "columns"]
ORDERS: tuple[Order, ...] = ("rows", "columns")
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Rows weighed into others: rows, the first of each sum, the weights of each sum, the results, room for one sum.
Weigh = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


class Resampler:
    """Resizes as Pillow does: with Pillow at first, and compiled once a process has resized so much that it pays.

    Args:
        pays: Pixels, read and written, that are Pillow's; None: all.
    """

    def __init__(self, pays: int | None = _PAYS) -> None:
        self.pays = pays
        self._pixels = 0

    def compile_for(self, pixels: float) -> None:
        """Compiles before anything is resized, where so many pixels are to come that it hardly counts."""
        if pixels >= 20 * _PAYS:
            self.pays = 0

    def never_compile(self) -> None:
        """Leaves all that is to come to Pillow."""
        self.pays = None

    def resize(self, frame: np.ndarray, height: int, width: int, interpolation: Filter) -> np.ndarray:
        """Resizes a frame, uint8 (H, W, 3), to uint8 (height, width, 3)."""
        if self.pays is not None and self._pixels >= self.pays and (weigh := compiled()) is not None:
            order = order_of(frame.shape[0], frame.shape[1], height, width, interpolation)
            if order is not None:
                return resample(frame, height, width, interpolation, order, weigh)
        self._pixels += frame.shape[0] * frame.shape[1] + height * width
        return _by_pillow(frame, height, width, interpolation)


@cache
def compiled() -> Weigh | None:
    """The compiled sums; None where numba is not installed.

    They are kept beside this file, or where that cannot be written in the user's cache, so that one process of a
    machine compiles (about a second) and the others load (half of one).
    """
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        import numba
    except Exception as error:  # noqa: BLE001  it looks at much of its surroundings, and Pillow resizes without it
        warnings.warn(f"numba is installed and cannot be loaded ({error}), so Pillow resizes, slower", stacklevel=2)
        return None
    many, number = numba.uint8[:, ::1], numba.int32
    signature = numba.void(many, number[::1], number[:, ::1], many, number[::1])
    # Loops that look for a division by zero are not made vector instructions.
    how: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(signature, cache=True, **how)(_weigh)
    except (OSError, RuntimeError):
        # Neither place can be written, which only says so when compiling begins.
        return numba.njit(signature, **how)(_weigh)


@lru_cache(maxsize=1024)
def order_of(rows: int, columns: int, height: int, width: int, interpolation: Filter) -> Order | None:
    """Which axis Pillow resizes first, for frames of one size to another; None where it had better resize itself.

    That is where nothing is compiled, where neither order gives its values, and of frames so large that a second one
    to try it with would take too much memory.
    """
    weigh = compiled()
    if weigh is None or rows * columns > _LARGEST:
        return None
    frame = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    expected = _by_pillow(frame, height, width, interpolation)
    same: list[Order] = []
    for order in ORDERS:
        if np.array_equal(resample(frame, height, width, interpolation, order, weigh), expected):
            same.append(order)
    # Of frames so small that both orders agree by chance it is not known.
    known = len(same) < len(ORDERS) or rows == height or columns == width
    return same[0] if same and known else None


def resample(
    frame: np.ndarray, height: int, width: int, interpolation: Filter, order: Order, weigh: Weigh
) -> np.ndarray:
    """Resizes a frame with Pillow's sums.

    Args:
        frame: uint8 (H, W, 3).
        height: Of the result.
        width: Of the result.
        interpolation: The filter.
        order: Which axis comes first; what is rounded between them depends on it.
        weigh: What makes the sums.

    Returns:
        uint8 (height, width, 3), contiguous.
    """
    if order == "rows":
        return _of_height(_of_width(frame, width, interpolation, weigh), height, interpolation, weigh)
    return _of_width(_of_height(frame, height, interpolation, weigh), width, interpolation, weigh)


def _of_width(frame: np.ndarray, width: int, interpolation: Filter, weigh: Weigh) -> np.ndarray:
    """The frame with its rows resized: turned, so that what is weighed lies beneath each other, a band at a time."""
    first, weights = weights_of(frame.shape[1], width, interpolation)
    resized = np.empty((frame.shape[0], width, 3), np.uint8)
    for top in range(0, frame.shape[0], _BAND):
        turned = np.ascontiguousarray(frame[top : top + _BAND].transpose(1, 2, 0)).reshape(frame.shape[1], -1)
        weighed = np.empty((width, turned.shape[1]), np.uint8)
        weigh(turned, first, weights, weighed, np.empty(turned.shape[1], np.int32))
        resized[top : top + _BAND] = weighed.reshape(width, 3, -1).transpose(2, 0, 1)
    return resized


def _of_height(frame: np.ndarray, height: int, interpolation: Filter, weigh: Weigh) -> np.ndarray:
    """The frame with its columns resized."""
    first, weights = weights_of(frame.shape[0], height, interpolation)
    rows = np.ascontiguousarray(frame).reshape(frame.shape[0], -1)
    resized = np.empty((height, frame.shape[1], 3), np.uint8)
    weigh(rows, first, weights, resized.reshape(height, -1), np.empty(rows.shape[1], np.int32))
    return resized


@lru_cache(maxsize=64)
def weights_of(length: int, wanted: int, interpolation: Filter) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's weights, which it shows where it resizes single points that are far enough from each other.

    Args:
        length: Pixels of a row.
        wanted: Those of the resized row.
        interpolation: The filter.

    Returns:
        The first pixel that each resized one is made of, int32 (wanted,); and the weights of it and of those after it,
        int32 (wanted, T), in 2**-22; zeros among them.
    """
    reach = ceil(_REACH * max(1.0, length / wanted)) + 1
    taps = min(length, 2 * reach + 1)
    # A row for each place within reach: its points never meet in one resized pixel. Pillow rounds integers as it
    # rounds weights.
    places = np.arange(length)
    points = np.zeros((taps, length), np.int32)
    points[places % taps, places] = 1 << _PLACES
    shown = np.asarray(Image.fromarray(points).resize((wanted, taps), FILTERS[interpolation]))
    centres = ((np.arange(wanted) + 0.5) * (length / wanted)).astype(np.int64)
    first = np.clip(centres - reach, 0, length - taps)
    weights = shown[(first[:, None] + np.arange(taps)) % taps, np.arange(wanted)[:, None]]
    return first.astype(np.int32), np.ascontiguousarray(weights, np.int32)


def _weigh(rows: np.ndarray, first: np.ndarray, weights: np.ndarray, into: np.ndarray, total: np.ndarray) -> None:
    """Makes each of the rows `into`, uint8 (N, P), a weighed sum of some of `rows`, uint8 (M, P), as `Weigh` has it."""
    for number in range(into.shape[0]):
        total[:] = 1 << (_PLACES - 1)
        for tap in range(weights.shape[1]):
            weight = weights[number, tap]
            if weight != 0:
                row = rows[first[number] + tap]
                for place in range(row.shape[0]):
                    total[place] += row[place] * weight
        for place in range(total.shape[0]):
            into[number, place] = min(max(total[place] >> _PLACES, 0), 255)


def _by_pillow(frame: np.ndarray, height: int, width: int, interpolation: Filter) -> np.ndarray:
    return np.asarray(_picture(frame).resize((width, height), FILTERS[interpolation]))


def _picture(frame: np.ndarray) -> Image.Image:
    """Pillow's copy of a frame; `Image.fromarray` copies padded rows, as decoders leave them, once more."""
    (height, width, _), (row, *within) = frame.shape, frame.strides
    if within != [3, 1] or row < 3 * width:
        return Image.fromarray(frame)
    flat = np.lib.stride_tricks.as_strided(frame, ((height - 1) * row + 3 * width,), (1,), writeable=False)
    return Image.frombuffer("RGB", (width, height), flat, "raw", "RGB", row, 1)
