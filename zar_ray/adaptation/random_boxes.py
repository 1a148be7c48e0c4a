"""The random crop that Inception was trained with, whatever is drawn from: TPT's views, and a training's samples."""

from __future__ import annotations

import math
from collections.abc import Callable

_TRIES = 10  # at a box that fits, as torchvision's RandomResizedCrop


def random_box(
    height: int,
    width: int,
    areas: tuple[float, float],
    shapes: tuple[float, float],
    uniform: Callable[[float, float], float],
    below: Callable[[int], int],
) -> tuple[int, int, int, int]:
    """A rectangle of random area and shape, anywhere (Szegedy et al., CVPR 2015, section 6): top, left, height, width.

    The area is uniform, the logarithm of width over height too; where none of ten draws fits, the largest centred
    rectangle of an allowed shape.

    Args:
        height: Of the frame, in pixels.
        width: Of it.
        areas: Least and largest share of the frame's area.
        shapes: Least and largest width over height.
        uniform: Draws a number between two.
        below: Draws a whole number of 0 or more below a limit.
    """
    narrow, wide = shapes
    for _ in range(_TRIES):
        area = height * width * uniform(*areas)
        shape = math.exp(uniform(math.log(narrow), math.log(wide)))
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            return below(height - down + 1), below(width - across + 1), down, across
    shape = min(max(width / height, narrow), wide)
    across, down = max(1, min(width, round(height * shape))), max(1, min(height, round(width / shape)))
    return (height - down) // 2, (width - across) // 2, down, across
