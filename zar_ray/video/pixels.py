"""Crops of resized frames as the encoder's input, cut and normalised on its device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from zar_ray.video.transforms import CropBox, Preprocessing


def transforms() -> Any:
    """What torchvision does to tensors; PyTorch's compiler comes with it, so that it is loaded when first used."""
    from torchvision.transforms.v2 import functional

    return functional


@dataclass(frozen=True, eq=False)
class CropPlan:
    """Where some crops of resized frames come from and go to, on the frames' device.

    Attributes:
        pieces: Of each box, the rows of the frames, int64 (m,), and the crops' places among all.
        count: n, all crops.
        size: R.
    """

    pieces: tuple[tuple[CropBox, torch.Tensor, torch.Tensor], ...]
    count: int
    size: int

    def cut(self, frames: torch.Tensor) -> torch.Tensor:
        """Cuts the crops out of frames, uint8 (F, h, w, 3): uint8 (n, R, R, 3)."""
        crops = torch.empty((self.count, self.size, self.size, 3), dtype=torch.uint8, device=frames.device)
        for box, rows, places in self.pieces:
            crops[places] = frames[:, box.top : box.top + box.size, box.left : box.left + box.size][rows]
        return crops


def plan_crops(sets: Sequence[tuple[np.ndarray, Sequence[CropBox]]], device: torch.device) -> list[CropPlan]:
    """A plan of each set's crops, its images and boxes as `cut_crops` takes them; all go to a device in one copy."""
    found: list[tuple[int, CropBox, np.ndarray, np.ndarray]] = []
    every = [np.asarray(images, dtype=np.int64).reshape(-1, 2) for images, _ in sets]
    for number, (pairs, (_, boxes)) in enumerate(zip(every, sets, strict=True)):
        for box in np.unique(pairs[:, 1]):
            places = np.flatnonzero(pairs[:, 1] == box)
            found.append((number, boxes[box], pairs[places, 0], places))
    sent = iter(to_device([part for _, _, *both in found for part in both], device))
    pieces: list[list[tuple[CropBox, torch.Tensor, torch.Tensor]]] = [[] for _ in sets]
    for number, box, *_ in found:
        pieces[number].append((box, next(sent), next(sent)))
    return [
        CropPlan(tuple(of_set), len(pairs), boxes[0].size)
        for of_set, pairs, (_, boxes) in zip(pieces, every, sets, strict=True)
    ]


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Integers of any shapes as int64 tensors on a device, in one copy, which a GPU's queue does not wait for."""
    if device.type == "cpu" or not arrays:
        return [torch.from_numpy(np.array(one, dtype=np.int64, order="C")) for one in arrays]
    flat = torch.from_numpy(np.concatenate([np.ravel(one).astype(np.int64) for one in arrays]))
    parts = send(flat, device).split([one.size for one in arrays])
    return [part.view(one.shape) for part, one in zip(parts, arrays, strict=True)]


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on a device; a GPU's queue does not wait for it, unless no memory can be pinned."""
    if device.type != "cuda":
        return tensor.to(device)
    # Whatever else is wrong with the device, the copy to it says.
    with suppress(RuntimeError):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def cut_crops(frames: torch.Tensor, images: np.ndarray, boxes: Sequence[CropBox]) -> torch.Tensor:
    """Cuts crops out of resized frames, on the frames' device.

    Args:
        frames: uint8 (F, h, w, 3), resized.
        images: int64 (n, 2): a row of `frames` and a row of `boxes` an image.
        boxes: The crops that `images` refers to, all of one size R.

    Returns:
        uint8 (n, R, R, 3).
    """
    (plan,) = plan_crops([(images, boxes)], frames.device)
    return plan.cut(frames)


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
    mean, std = _moments(preprocessing.mean, preprocessing.std, crops.device)
    return crops.to(torch.float32).div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
def _moments(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # Kept on the device: each copy from a list would be a wait for a GPU.
    with torch.inference_mode(False):
        told = {"dtype": torch.float32, "device": device}
        return torch.tensor(mean, **told), torch.tensor(std, **told)


def crop_and_normalise(
    frames: torch.Tensor, images: np.ndarray, boxes: Sequence[CropBox], preprocessing: Preprocessing
) -> torch.Tensor:
    """`cut_crops` and `normalise` in one: float32 (n, 3, R, R) on the frames' device."""
    return normalise(cut_crops(frames, images, boxes), preprocessing)
