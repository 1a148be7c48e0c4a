"""Crops of resized frames as the encoder's input, cut and normalised on its device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zar_ray.video.transforms import CropBox, Preprocessing


def cut_crops(frames: torch.Tensor, images: np.ndarray, boxes: Sequence[CropBox]) -> torch.Tensor:
    """Cuts crops out of resized frames, on the frames' device.

    Args:
        frames: uint8 (F, h, w, 3), resized.
        images: int64 (n, 2): a row of `frames` and a row of `boxes` an image.
        boxes: The crops that `images` refers to, all of one size R.

    Returns:
        uint8 (n, R, R, 3).
    """
    pairs = np.asarray(images, dtype=np.int64).reshape(-1, 2)
    size = boxes[0].size
    crops = torch.empty((len(pairs), size, size, 3), dtype=torch.uint8, device=frames.device)
    for number in np.unique(pairs[:, 1]):
        box = boxes[number]
        places = np.flatnonzero(pairs[:, 1] == number)
        rows = torch.from_numpy(pairs[places, 0]).to(frames.device)
        window = frames[:, box.top : box.top + box.size, box.left : box.left + box.size]
        crops[torch.from_numpy(places).to(frames.device)] = window[rows]
    return crops


def normalise(crops: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Makes crops the encoder's input.

    Args:
        crops: uint8 (n, R, R, 3).
        preprocessing: R, mean and standard deviation.

    Returns:
        float32 (n, 3, R, R) in channels-last memory, the same numbers as torchvision's `ToTensor` and `Normalize` give.

    Raises:
        ValueError: The crops are not of the model's input size.
    """
    size = preprocessing.input_size
    if tuple(crops.shape[1:]) != (size, size, 3):
        raise ValueError(f"crops of {tuple(crops.shape[1:])} for a model of {size}×{size} pixels")
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=crops.device)
    std = torch.tensor(preprocessing.std, dtype=torch.float32, device=crops.device)
    return crops.to(torch.float32).div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def crop_and_normalise(
    frames: torch.Tensor, images: np.ndarray, boxes: Sequence[CropBox], preprocessing: Preprocessing
) -> torch.Tensor:
    """`cut_crops` and `normalise` in one: float32 (n, 3, R, R) on the frames' device."""
    return normalise(cut_crops(frames, images, boxes), preprocessing)
