"""Resizing, and where crops lie: the part of CLIP's preprocessing that is done where frames are decoded.

The rules are CLIP's own (`_transform` in openai/CLIP), split at the point where frames leave the CPU: frames are
resized here, as uint8, and every crop is cut and normalised on the encoder's device (`zar_ray.video.pixels`). Processes
that only decode never load PyTorch, which takes seconds and 300 MB of each, unless its kernel is to resize.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from zar_ray.errors import ConfigError
from zar_ray.video.options import Resizer, ViewConfig
from zar_ray.video.resampling import Resampler

Interpolation = Literal["bicubic", "bilinear", "plain_bilinear"]
ResizeMode = Literal["shortest", "squash", "longest"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Of all of a process's videos.
as_pillow = Resampler()


@dataclass(frozen=True)
class Scaling:
    """How frames are brought to the size that a plan names, a side of so many pixels.

    Attributes:
        interpolation: The filter, antialiased but for ``plain_bilinear``, which reads the four nearest pixels alone.
        mode: ``shortest`` brings the short side to it and keeps the frame's shape; ``squash`` makes a square of the
            frame, whatever its shape; ``longest`` brings the long side to it, and fills up to a square.
        fill: What ``longest`` fills with, the value of all channels, 0 to 255.
    """

    interpolation: Interpolation = "bicubic"
    mode: ResizeMode = "shortest"
    fill: int = 0


CLIP_SCALING = Scaling()


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint expects of its pixels.

    Attributes:
        input_size: R, side of the square input in pixels.
        mean: Mean per RGB channel, of values in [0, 1].
        std: Standard deviation per RGB channel, of values in [0, 1].
        interpolation: Filter of the resize, see `Scaling`.
        short_side: Short side of the resized frames the checkpoint was trained with; None: `input_size`.
        resize_mode: What becomes of a frame's shape, see `Scaling`.
        fill: What ``longest`` fills with.
    """

    input_size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: Interpolation = "bicubic"
    short_side: int | None = None
    resize_mode: ResizeMode = "shortest"
    fill: int = 0

    @property
    def scaling(self) -> Scaling:
        """How frames are resized, whatever the size."""
        return Scaling(self.interpolation, self.resize_mode, self.fill)


def enlarged_preprocessing(input_size: int) -> Preprocessing:
    """CLIP's, with a short side of 8/7 of the input, truncated: 256 for 224."""
    return Preprocessing(input_size, short_side=input_size * 8 // 7)


def imagenet_preprocessing(input_size: int) -> Preprocessing:
    """What ImageNet classifiers expect: its statistics, a bilinear filter, short side 8/7 of the input."""
    return Preprocessing(input_size, IMAGENET_MEAN, IMAGENET_STD, "bilinear", input_size * 8 // 7)


def plain_preprocessing(input_size: int) -> Preprocessing:
    """CLIP's statistics, and a bilinear filter without antialiasing, as Vita-CLIP's."""
    return Preprocessing(input_size, interpolation="plain_bilinear")


@dataclass(frozen=True, order=True)
class CropBox:
    """A square of `size` pixels in the resized frame; `top` and `left` are its offsets."""

    top: int
    left: int
    size: int


def resized_size(height: int, width: int, short_side: int, mode: ResizeMode = "shortest") -> tuple[int, int]:
    """Size of a frame after its short side was brought to `short_side`; the long side truncates.

    Returns:
        (height, width); 256×340 with short side 224 gives 224×297, as torchvision's `Resize` does. All other modes
        give squares.
    """
    if mode != "shortest":
        return short_side, short_side
    if width <= height:
        return short_side * height // width, short_side
    return short_side, short_side * width // height


def resize_frame(
    frame: np.ndarray, short_side: int, scaling: Scaling = CLIP_SCALING, resizer: Resizer = "pil"
) -> np.ndarray:
    """Resizes a frame, uint8 (H, W, 3), to `resized_size(H, W, short_side, mode)` pixels."""
    height, width = resized_size(frame.shape[0], frame.shape[1], short_side, scaling.mode)
    if scaling.mode == "longest":
        return _filled_up(frame, short_side, scaling, resizer)
    return _resized(frame, height, width, scaling.interpolation, resizer)


def _filled_up(frame: np.ndarray, side: int, scaling: Scaling, resizer: Resizer) -> np.ndarray:
    # Both sides round to even, as timm's ResizeKeepRatio does; what is odd of the rest goes to the right and below.
    ratio = max(frame.shape[:2]) / side
    height, width = (max(1, round(length / ratio)) for length in frame.shape[:2])
    square = np.full((side, side, 3), scaling.fill, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    inner = _resized(frame, height, width, scaling.interpolation, resizer)
    square[top : top + height, left : left + width] = inner
    return square


def _resized(frame: np.ndarray, height: int, width: int, interpolation: Interpolation, resizer: Resizer) -> np.ndarray:
    if (height, width) == frame.shape[:2]:
        return frame
    if interpolation == "plain_bilinear":
        return _interpolated(_interpolated(frame, height, 0), width, 1, last=True)
    if resizer == "torch":
        # here, so that whoever resizes with PIL does not load PyTorch
        from zar_ray.video.torch_resize import resize_antialiased

        return resize_antialiased(frame, height, width, interpolation)
    return as_pillow.resize(frame, height, width, interpolation)


def _interpolated(pixels: np.ndarray, length: int, axis: int, last: bool = False) -> np.ndarray:
    """Pixels (H, W, 3) of another height or width: between the two nearest, edges repeated; rounded to uint8 at `last`.

    A pixel's centre is where PyTorch has it (``align_corners=False``).
    """
    there = pixels.shape[axis]
    places = np.clip((np.arange(length) + 0.5) * (there / length) - 0.5, 0, there - 1)
    lower = places.astype(np.int64)
    share = (places - lower).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    one, two = (pixels.take(np.minimum(lower + step, there - 1), axis).astype(np.float32) for step in (0, 1))
    one += (two - one) * share
    return np.rint(one, out=one).astype(np.uint8) if last else one


def crop_boxes(height: int, width: int, size: int, crops: int) -> tuple[tuple[str, CropBox], ...]:
    """The named crops of a resized frame (DESIGN.md, "ZAR, exactly", 4).

    1 is the centre; 3 adds the two ends of the longer axis (left and right, also of a square frame; top and bottom
    of a portrait one); 5 adds those of the other axis; 9 adds the corners. The offset of a centred crop rounds half
    to even, as torchvision's `CenterCrop` does. Crops without room to move coincide.

    Args:
        height: Height of the resized frame.
        width: Width of the resized frame.
        size: Side of a crop, in pixels.
        crops: How many; those of a smaller count are among those of a larger one.

    Raises:
        ValueError: The frame is smaller than a crop, or `crops` is none of the counts.
    """
    down, right = height - size, width - size
    if down < 0 or right < 0:
        raise ValueError(f"a crop of {size} pixels does not fit into a frame of {width}×{height}")
    middle_down, middle_right = round(down / 2), round(right / 2)
    offsets = {
        "centre": (middle_down, middle_right),
        "left": (middle_down, 0),
        "right": (middle_down, right),
        "top": (0, middle_right),
        "bottom": (down, middle_right),
        "top left": (0, 0),
        "top right": (0, right),
        "bottom left": (down, 0),
        "bottom right": (down, right),
    }
    horizontal, vertical = ("left", "centre", "right"), ("top", "centre", "bottom")
    along, across = (vertical, horizontal) if height > width else (horizontal, vertical)
    if crops not in (1, 3, 5, 9):
        raise ValueError(f"{crops} crops: there are sets of 1, 3, 5, 9")
    every = (*along, across[0], across[2], "top left", "top right", "bottom left", "bottom right")
    return tuple((name, CropBox(*offsets[name], size)) for name in (every[:crops] if crops > 1 else ("centre",)))


def short_side_for(views: ViewConfig, preprocessing: Preprocessing) -> int:
    """The one short side of a run, in pixels (DESIGN.md, "ZAR, exactly", 4).

    The option, if given; else what the checkpoint was trained with, if that leaves room around a crop; else R, or
    8R/7 for 5 and 9 crops, which need room on both axes, and for 3 of a square, which has no longer axis.

    Raises:
        ConfigError: The short side is smaller than the model's input.
    """
    size = preprocessing.input_size
    if views.short_side is not None:
        side, whose = views.short_side, "views.short_side"
    elif preprocessing.short_side is not None and preprocessing.short_side != size:
        side, whose = preprocessing.short_side, "the checkpoint's short side"
    else:
        crops = max(views.crops, int(views.eval_views.rpartition("x")[2]))
        roomy = crops >= 5 or (crops > 1 and preprocessing.resize_mode != "shortest")
        side, whose = ((16 * size + 7) // 14 if roomy else size), ""
    if side < size:
        raise ConfigError(f"{whose} is {side}, less than the model's input of {size} pixels; make it at least {size}")
    return side
