"""The weights and inputs of reference fixtures, which both sides make from names, shapes and a seed.

``value = RandomState(crc32(name) ^ seed).standard_normal(shape) · scale + shift`` in float32, where the first rule
that fits a tensor's name and rank gives scale and shift.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

_BITS = 0xFFFFFFFF
_LOGIT_SCALE = math.log(100.0)
_EMBEDDINGS = (
    *("embedding", "embeddings", "embedding.weight", "embeddings.weight"),
    *("embed", "cls_token", "prompts", "ctx", "bias_table"),
)


def recipe_tensor(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """The made-up weights of one tensor, float32, by its key in the official checkpoint, with any prefix."""
    if name.lower().endswith("logit_scale"):
        return np.full(shape, _LOGIT_SCALE, dtype=np.float32)
    scale, shift = _scale_and_shift(name.lower(), shape)
    noise = _normal((zlib.crc32(name.encode()) ^ seed) & _BITS, shape)
    return np.asarray(noise * np.float32(scale) + np.float32(shift), dtype=np.float32)


def recipe_state_dict(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """The made-up weights of a checkpoint, float32 by key."""
    return {name: recipe_tensor(name, shape, seed) for name, shape in shapes.items()}


def recipe_input(shape: Sequence[int], seed: int) -> np.ndarray:
    """The made-up input: float32 normalised pixels, or frame embeddings where the fixture says so."""
    return _normal((seed + 1) & _BITS, shape)


def recipe_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and little-endian float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{tuple(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()


def _normal(seed: int, shape: Sequence[int]) -> np.ndarray:
    return np.asarray(np.random.RandomState(seed).standard_normal(tuple(shape))).astype(np.float32)


def _scale_and_shift(name: str, shape: Sequence[int]) -> tuple[float, float]:
    if name.endswith("alpha"):
        return 0.02, 0.1
    if name.endswith(_EMBEDDINGS):
        return 0.05, 0.0
    if len(shape) == 1 and name.endswith("weight"):
        return 0.1, 1.0
    if len(shape) <= 1:
        return 0.02, 0.0
    # matrices that multiply from the right have their inputs first
    inputs = shape[0] if name.endswith(("proj", "projection")) else math.prod(shape[1:])
    return 1 / math.sqrt(inputs), 0.0
