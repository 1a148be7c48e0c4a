"""Resizing with PyTorch's kernel; loaded by decoding processes where it is asked for, as PyTorch takes memory."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from zar_ray.video.transforms import Interpolation


def resize_antialiased(frame: np.ndarray, height: int, width: int, interpolation: Interpolation) -> np.ndarray:
    """Resizes a frame as torchvision resizes uint8 tensors with antialiasing.

    Args:
        frame: uint8 (H, W, 3).
        height: Of the result.
        width: Of the result.
        interpolation: The filter.

    Returns:
        uint8 (height, width, 3), contiguous.
    """
    # PyTorch takes no negative strides, which turned frames have, and warns of memory that it may not write to.
    pixels = torch.from_numpy(np.require(frame, requirements=["C", "W"])).permute(2, 0, 1)
    resized = functional.interpolate(pixels[None], (height, width), mode=interpolation, antialias=True)[0]
    return resized.permute(1, 2, 0).contiguous().numpy()
