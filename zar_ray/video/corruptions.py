"""Corruptions of decoded frames at severities 1 to 5, as benchmarks of robustness define them.

Gaussian, impulse, defocus, zoom and JPEG are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019); shot noise,
rain, contrast, motion blur and H.265 those of Mini Kinetics-C (Yi et al., NeurIPS Datasets and Benchmarks 2021); salt
and pepper those that stand beside them in test-time adaptation of video, a tenth of the values more a severity.

What a frame becomes is a function of it, the seed, the video's id and its index alone: draws are raw bits of PCG64,
whose stream NumPy promises to keep, and what is computed is integers, or single operations that no machine rounds
otherwise. The draws do not depend on the severity, so that a milder one is less of the same. Motion blur and H.265
look at other frames of the video too, see `zar_ray.video.corrupting`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Self

import numpy as np
from PIL import Image

from zar_ray.errors import ConfigError, suggestion
from zar_ray.results.case import CLEAN

SEVERITIES = (1, 2, 3, 4, 5)

_GAUSSIAN = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of values in [0, 1]
_REPLACED = (0.1, 0.2, 0.3, 0.4, 0.5)  # share of values that salt or pepper takes
_IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of values, half of them salt
_SHOT = (60, 25, 12, 5, 3)  # photons of a white value
_DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius of the disc, deviation of its blurred edge
_ZOOM = (range(100, 111), range(100, 116), range(100, 121, 2), range(100, 126, 2), range(100, 131, 3))  # per cent
_JPEG = (25, 18, 15, 10, 7)  # quality
_CONTRAST = (0.5, 0.4, 0.3, 0.2, 0.1)
_RAIN = ((770, 10, 0.8), (770, 30, 0.8), (770, 60, 0.7), (500, 60, 0.6), (400, 80, 0.5))  # pixels a drop, length, light
_DROP = 220  # how bright a drop is, of 255
MOTION = (3, 5, 7, 9, 11)
"""So many frames before a frame, and one less behind it, are averaged with it."""
H265 = (27, 33, 39, 45, 51)
"""Constant rate factors of the encoder."""

_BITS = 16
_LEVELS = 1 << _BITS
_SHOT_BITS = 12
_WEIGHTS = 1 << 20  # what a blur's weights are fractions of


@dataclass(frozen=True, order=True)
class Corruption:
    """What is done to frames: a name among `NAMES`, and a severity of 1 to 5."""

    name: str
    severity: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads ``NAME:SEVERITY``; None of ``clean``.

        Raises:
            ConfigError: There is no such corruption or severity.
        """
        if text == CLEAN:
            return None
        name, _, severity = text.partition(":")
        if name not in NAMES:
            near = suggestion(name, (CLEAN, *NAMES))
            raise ConfigError(f"--corruption {text}: no corruption has this name{near}; known are {', '.join(NAMES)}")
        if severity not in map(str, SEVERITIES):
            raise ConfigError(f"--corruption {text}: give a severity of 1 to 5, as {name}:3")
        return cls(name, int(severity))

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"


def corrupt_frame(frame: np.ndarray, corruption: Corruption, seed: int, video_id: str, index: int) -> np.ndarray:
    """Corrupts one frame by itself.

    Args:
        frame: uint8 (H, W, 3).
        corruption: One of `FRAME_CORRUPTIONS`.
        seed: Seed of the draws.
        video_id: The video's, which keys them too.
        index: The frame's in the video.

    Returns:
        uint8 (H, W, 3).
    """
    key = json.dumps([seed, video_id, index, corruption.name]).encode("ascii")
    digest = hashlib.blake2b(key, digest_size=16, person=b"zar corruption").digest()
    return FRAME_CORRUPTIONS[corruption.name](frame, corruption.severity - 1, Draws(int.from_bytes(digest, "big")))


class Draws:
    """Uniform draws of 16 bits, the same everywhere."""

    def __init__(self, key: int) -> None:
        self._bits = np.random.PCG64(key)

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint16, of a shape."""
        count = int(np.prod(shape))
        raw = np.asarray(self._bits.random_raw(-(-count // 4)), dtype="<u8")
        return raw.view("<u2")[:count].reshape(shape)

    def below(self, bound: int, count: int) -> np.ndarray:
        """int64 (count,), uniform in [0, bound)."""
        fine = self.uniform((count, 2)).astype(np.int64)
        return (fine[:, 0] * _LEVELS + fine[:, 1]) * bound >> 2 * _BITS


def _rounded(values: np.ndarray) -> np.ndarray:
    """The nearest of 0 to 255, halves upwards."""
    return np.clip(np.floor(values + values.dtype.type(0.5)), 0, 255).astype(np.uint8)


@cache
def _normal() -> np.ndarray:
    """float32 (65536,): the normal distribution's values at the middles of so many equal shares."""
    inverse = NormalDist().inv_cdf
    half = [inverse((number + 0.5) / _LEVELS) for number in range(_LEVELS // 2)]
    return np.array([*half, *(-one for one in reversed(half))], np.float32)


def _gaussian_noise(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    noise = _normal()[draws.uniform(frame.shape)]
    noise *= np.float32(255 * _GAUSSIAN[level])
    noise += frame
    return _rounded(noise)


@cache
def _shot_table(level: int) -> np.ndarray:
    """uint8 (256, 4096): what a value becomes at each draw; photons follow Poisson's distribution."""
    photons, shares = _SHOT[level], 1 << _SHOT_BITS
    rates = np.arange(256) * photons / 255
    most = photons + 1  # whatever is above is white, too
    chance = np.exp(-rates)
    reached, table = np.zeros(256), np.full((256, shares), 255, np.uint8)
    begins = np.zeros(256, int)
    for count in range(most):
        reached += chance
        ends = np.floor(reached * shares + 0.5).astype(int)
        for value in np.flatnonzero(ends > begins):
            table[value, begins[value] : ends[value]] = (2 * 255 * count + photons) // (2 * photons)
        begins = ends
        chance = chance * rates / (count + 1)
    return table


def _shot_noise(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    return _shot_table(level)[frame, draws.uniform(frame.shape) >> (_BITS - _SHOT_BITS)]


def _replaced(frame: np.ndarray, share: float, value: int, draws: Draws) -> np.ndarray:
    return np.where(draws.uniform(frame.shape) < round(share * _LEVELS), np.uint8(value), frame)


def _salt_noise(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    return _replaced(frame, _REPLACED[level], 255, draws)


def _pepper_noise(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    return _replaced(frame, _REPLACED[level], 0, draws)


def _impulse_noise(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    drawn, share = draws.uniform(frame.shape), round(_IMPULSE[level] / 2 * _LEVELS)
    out = np.where(drawn < share, np.uint8(0), frame)
    return np.where(drawn >= _LEVELS - share, np.uint8(255), out)


@cache
def _disc(level: int) -> np.ndarray:
    """int64 (n, n): the weights of a disc with a soft edge, in parts of `_WEIGHTS`."""
    radius, blur = _DEFOCUS[level]
    soft = 1 if radius <= 8 else 2
    side = np.arange(-radius - soft, radius + soft + 1)
    disc = (side[:, None] ** 2 + side**2 <= radius**2).astype(float)
    edge = np.exp(-(np.arange(-soft, soft + 1) ** 2) / (2 * blur**2))
    edge /= edge.sum()
    for axis in (0, 1):
        disc = np.apply_along_axis(lambda line: np.convolve(line, edge, "same"), axis, disc)
    return np.rint(disc / disc.sum() * _WEIGHTS).astype(np.int64)


def _defocus_blur(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    weights = _disc(level)
    whole, reach = int(weights.sum()), len(weights) // 2
    (height, width), out = frame.shape[:2], np.empty_like(frame)
    size = tuple(-(-(length + 4 * reach) // 32) * 32 for length in (height, width))
    spectrum = np.fft.rfft2(weights, size)
    for channel in range(3):
        padded = np.pad(frame[..., channel], reach, "reflect")
        found = np.fft.irfft2(np.fft.rfft2(padded, size) * spectrum, size)[
            2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width
        ]
        # The sums are integers, far above what the transform leaves of rounding: these are exact.
        out[..., channel] = (np.rint(found).astype(np.int64) + whole // 2) // whole
    return out


def _zoom_blur(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    height, width = frame.shape[:2]
    picture, total = Image.fromarray(frame), frame.astype(np.int32)
    for per_cent in _ZOOM[level]:
        inner = (width * 100 / per_cent, height * 100 / per_cent)
        left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
        box = (left, top, left + inner[0], top + inner[1])
        total += np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))
    count = len(_ZOOM[level]) + 1
    return ((2 * total + count) // (2 * count)).astype(np.uint8)


def _jpeg_compression(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=_JPEG[level])
    return np.asarray(Image.open(file))


def _flattened(values: np.ndarray, scale: int, share: float) -> np.ndarray:
    """Brings values of a picture, integers (H, W, 3) in [0, 255·scale], nearer to their channel's mean."""
    count = values.shape[0] * values.shape[1] * scale
    means = values.sum(axis=(0, 1), dtype=np.int64) / count
    return _rounded((values / scale - means) * share + means)


def _contrast(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    return _flattened(frame, 1, _CONTRAST[level])


def _rain(frame: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    (height, width), (area, length, light) = frame.shape[:2], _RAIN[level]
    drops, along = height * width // area, np.arange(length + 1)
    rows = draws.below(max(1, height - length), drops)[:, None] + along
    # A drop falls one pixel to the left on its way.
    columns = draws.below(width + 1, drops)[:, None] - (2 * along > length)
    inside = (rows < height) & (columns >= 0) & (columns < width)
    wet = np.zeros((height, width), bool)
    wet[rows[inside], columns[inside]] = True
    dark = 1 - int(frame.sum(dtype=np.int64)) / (255 * frame.size)
    lit = frame.astype(np.int32) + np.where(wet[..., None], (_DROP * (1 - frame / 255) * dark).astype(np.int32), 0)
    padded = np.pad(lit, ((1, 1), (1, 1), (0, 0)), "reflect")
    lines = padded[:-2] + padded[1:-1] + padded[2:]
    blurred = lines[:, :-2] + lines[:, 1:-1] + lines[:, 2:]
    plain = 9 * frame.astype(np.int32)
    shown = np.where(wet[..., None], blurred * _DROP + plain * (255 - _DROP), plain * 255)
    return _flattened(shown, 9 * 255, light)


FRAME_CORRUPTIONS: dict[str, Callable[[np.ndarray, int, Draws], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "pepper_noise": _pepper_noise,
    "salt_noise": _salt_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "zoom_blur": _zoom_blur,
    "jpeg_compression": _jpeg_compression,
    "contrast": _contrast,
    "rain": _rain,
}
"""What is done to a frame by itself, given the severity less one and its draws."""

NAMES = (*FRAME_CORRUPTIONS, "motion_blur", "h265")
"""All corruptions."""
