"""The distinct images of several videos through the image encoder, in passes of one size.

A pass takes images from as many videos as fill it, whatever the videos' sizes: crops are all R×R. On a GPU the next
video's frames travel while the images before them are encoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch

from zar_ray.errors import NoRoomError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.device_faults import within_memory
from zar_ray.models.fitting import MORE_MEMORY
from zar_ray.video.pixels import normalise, plan_crops
from zar_ray.video.transforms import CropBox


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The distinct images of one video.

    Attributes:
        frames: uint8 (F, h, w, 3), resized.
        images: int64 (I, 2), a row of `frames` and a row of `boxes` an image.
        boxes: The crops, each of side R.
    """

    frames: np.ndarray | torch.Tensor
    images: np.ndarray
    boxes: tuple[CropBox, ...]


def images_at_once(wanted: int | None, device: torch.device) -> int:
    """How many images a pass of the encoder takes: so many as are wanted, by default what suits the device."""
    return wanted or (256 if device.type == "cuda" else 64)


def encode_packed(model: ClipModel, sets: Sequence[ImageSet], images_a_pass: int) -> list[torch.Tensor | VideoError]:
    """Embeds every image of every set once.

    Args:
        model: The model, on its device.
        sets: The videos' images, at least one each.
        images_a_pass: Images that a pass of the encoder takes, fewer where they do not fit
            (`ClipModel.image_passes`); the last pass takes what is left. Of a model that is not `frame_independent` as
            many whole views as that is, one at least, and the sets are of whole views
            (`zar_ray.video.plans.by_view`).

    Returns:
        float32 (I, D) a set, in order, on the model's device, not normalised; an error (stage ``encode``) in place of
        a set of which there was not enough memory for a single image, or view.
    """
    whole = 1 if model.frame_independent else model.view_frames or 1
    parts: list[list[torch.Tensor]] = [[] for _ in sets]
    failed: set[int] = set()
    frames = _Frames(sets, model.device)
    # What passes as a whole, by its set and first row.
    every = [(number, row) for number, one in enumerate(sets) for row in range(0, len(one.images), whole)]

    def encode(taken: Sequence[tuple[int, int]]) -> dict[int, torch.Tensor]:
        wanted = {
            number: [row for _, first in of_set for row in range(first, first + whole)]
            for number, of_set in groupby(taken, key=itemgetter(0))
            if number not in failed
        }
        if not wanted:
            return {}
        lengths = [len(rows) for rows in wanted.values()]
        return dict(zip(wanted, _encode(model, sets, wanted, frames).split(lengths), strict=True))

    for taken, embeddings in model.image_passes.each(every, images_a_pass, encode, whole):
        if embeddings is None:
            failed.add(taken[0][0])
            continue
        for number, part in embeddings.items():
            parts[number].append(part)
    if model.device.type == "cuda":
        # Until here passes were only queued, so that frames travel meanwhile; the time is this stage's, though.
        torch.cuda.synchronize(model.device)
    what = "one image" if whole == 1 else f"one view of {whole} images"
    return [
        NoRoomError(f"out of memory encoding {what} by itself; {MORE_MEMORY}", stage="encode")
        if number in failed
        else torch.cat(parts[number])
        for number in range(len(sets))
    ]


def _encode(
    model: ClipModel, sets: Sequence[ImageSet], pieces: Mapping[int, Sequence[int]], frames: _Frames
) -> torch.Tensor:
    wanted = [(sets[number].images[rows], sets[number].boxes) for number, rows in pieces.items()]
    plans = plan_crops(wanted, model.device)
    crops = [plan.cut(frames[number]) for number, plan in zip(pieces, plans, strict=True)]
    return model.encode_images(normalise(torch.cat(crops), model.preprocessing))


class _Frames:
    """The frames of each set on the model's device, each copied once and the next one ahead of its use."""

    def __init__(self, sets: Sequence[ImageSet], device: torch.device) -> None:
        self._sets = sets
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._here: dict[int, tuple[torch.Tensor, torch.Event | None]] = {}

    def __getitem__(self, number: int) -> torch.Tensor:
        """uint8 (F, h, w, 3) of one set; sets are asked for in order, and those before it are let go."""
        for ahead in (number, number + 1):
            if ahead < len(self._sets) and ahead not in self._here:
                self._here[ahead] = self._send(ahead)
        self._here = {kept: value for kept, value in self._here.items() if kept >= number}
        tensor, arrived = self._here[number]
        if arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(arrived)
            # Its memory must not be given away while this stream still reads it.
            tensor.record_stream(stream)
        return tensor

    def _send(self, number: int) -> tuple[torch.Tensor, torch.Event | None]:
        with warnings.catch_warnings():
            # Frames that came through Ray's shared memory are read-only; here they are only read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.as_tensor(self._sets[number].frames)
        if self._stream is None or tensor.device.type != "cpu":
            return tensor.to(self._device), None
        pinned = within_memory(tensor.pin_memory)
        with torch.cuda.stream(self._stream):
            sent = (tensor if pinned is None else pinned).to(self._device, non_blocking=True)
            return sent, self._stream.record_event()
