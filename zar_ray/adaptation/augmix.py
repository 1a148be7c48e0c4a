"""AugMix at its least severity, the same for all frames of a view, from a generator that does not change with NumPy.

Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty", ICLR 2020, section 3;
the distortions are its nine without colours, as TPT uses them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import torch

from zar_ray.video.pixels import transforms

_CHAINS, _LONGEST_CHAIN = 3, 3
_HASH_BITS = 64
_HIGHEST = 10.0  # of AugMix's scale of severities


class Draws:
    """Random numbers that follow from a key and their own number alone, whatever the versions of the libraries are.

    Args:
        key: What the numbers depend on, as JSON values.
    """

    def __init__(self, *key: object) -> None:
        self._key = json.dumps(key).encode("ascii")
        self._count = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number of [low, high)."""
        self._count += 1
        content = self._key + self._count.to_bytes(8, "big")
        number = int.from_bytes(hashlib.blake2b(content, digest_size=_HASH_BITS // 8).digest(), "big")
        # 53 bits, which a float holds exactly: 64 would round up to 1.
        return low + (high - low) * (number >> 11) / 2**53

    def below(self, limit: int) -> int:
        """A whole number of [0, limit)."""
        return min(limit - 1, int(self.uniform() * limit))


def augmix(pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Mixes images, uint8 (T, 3, R, R), with the mixture of three chains of distortions of them.

    Returns:
        float32 (T, 3, R, R), in [0, 255].
    """
    exponentials = [-math.log(1 - draws.uniform()) for _ in range(_CHAINS)]
    mixture = torch.zeros_like(pixels, dtype=torch.float32)
    for share in exponentials:
        distorted = pixels
        for _ in range(1 + draws.below(_LONGEST_CHAIN)):
            distorted = _DISTORTIONS[draws.below(len(_DISTORTIONS))](distorted, draws)
        # Normalised exponentials are a Dirichlet's shares, here of (1, 1, 1).
        mixture += share / sum(exponentials) * distorted.float()
    own = draws.uniform()
    return own * pixels.float() + (1 - own) * mixture


def _level(draws: Draws) -> float:
    """A share of a distortion's range, at severity 1."""
    return draws.uniform(0.1, 1.0) / _HIGHEST


def _signed(value: float, draws: Draws) -> float:
    return value if draws.uniform() < 0.5 else -value


def _shear(draws: Draws) -> float:
    return math.degrees(math.atan(_signed(0.3 * _level(draws), draws)))


def _shift(size: int, draws: Draws) -> int:
    return int(_signed(size / 3 * _level(draws), draws))


def _affine(pixels: torch.Tensor, **moved: Any) -> torch.Tensor:
    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    functional = transforms()
    return functional.affine(pixels, **still | moved, interpolation=functional.InterpolationMode.BILINEAR)


_DISTORTIONS: tuple[Callable[[torch.Tensor, Draws], torch.Tensor], ...] = (
    lambda pixels, draws: transforms().autocontrast(pixels),
    lambda pixels, draws: transforms().equalize(pixels),
    lambda pixels, draws: transforms().posterize(pixels, bits=4 - int(4 * _level(draws))),
    lambda pixels, draws: _affine(pixels, angle=_signed(int(30 * _level(draws)), draws)),
    lambda pixels, draws: transforms().solarize(pixels, threshold=256 - int(256 * _level(draws))),
    lambda pixels, draws: _affine(pixels, shear=[_shear(draws), 0.0]),
    lambda pixels, draws: _affine(pixels, shear=[0.0, _shear(draws)]),
    lambda pixels, draws: _affine(pixels, translate=[_shift(pixels.shape[-1], draws), 0]),
    lambda pixels, draws: _affine(pixels, translate=[0, _shift(pixels.shape[-2], draws)]),
)
