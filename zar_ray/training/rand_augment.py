"""RandAugment (Cubuk et al., NeurIPS 2020), as ActionCLIP's training has it, drawn from a sample's generator.

ActionCLIP takes the reimplementation of ildoonet/pytorch-randaugment, whose 16 operations and ranges are those of
EfficientNet's training. torchvision's RandAugment has 14, one of which does nothing, and none that inverts, cuts out or
adds before it solarises; and it draws from PyTorch's global generator, which here is the model's own and which threads
that decode must not touch. So the operations are Pillow's, as there, and the draws a sample's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from zar_ray.training.options import RandAugmentConfig

_MOST = 30  # the largest magnitude
_GREY = (125, 123, 114)  # of what is cut out, about the mean of ImageNet
_INVERTED_FROM = 128  # by SolarizeAdd, after the addition


def rand_augment(frames: np.ndarray, options: RandAugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Changes each frame by operations of its own, drawn with replacement, all at one magnitude.

    A shear, a translation or a rotation goes either way, by a draw; what comes into the frame is black. Lengths are
    pixels of the frames, uint8 (T, H, W, 3), as they are; those returned are a new array.
    """
    changed = []
    for frame in frames:
        image = Image.fromarray(frame)
        for number in rng.integers(len(OPERATIONS), size=options.operations):
            change, least, most = OPERATIONS[number]
            image = change(image, least + options.magnitude / _MOST * (most - least), rng)
        changed.append(np.asarray(image))
    return np.stack(changed)


def _solarize_add(image: Image.Image, addition: float, _rng: np.random.Generator) -> Image.Image:
    lighter = np.minimum(np.asarray(image) + addition, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(lighter), _INVERTED_FROM)


def _cut_out(image: Image.Image, side: float, rng: np.random.Generator) -> Image.Image:
    left, top = (int(max(0, rng.uniform(0, length) - side / 2)) for length in image.size)
    right, bottom = min(image.width, left + side), min(image.height, top + side)
    cut = image.copy()
    ImageDraw.Draw(cut).rectangle((left, top, right, bottom), _GREY)
    return cut


def _moved(image: Image.Image, backwards: tuple[float, ...]) -> Image.Image:
    """Each pixel from where an affine map, six numbers by rows, says that it was."""
    return image.transform(image.size, Image.Transform.AFFINE, backwards)


def _either_way(amount: float, rng: np.random.Generator) -> float:
    return -amount if rng.random() > 0.5 else amount


_Change = Callable[[Image.Image, float, np.random.Generator], Image.Image]

# What makes a new image of an image, an amount and a generator; its amounts at magnitude 0 and at the largest.
OPERATIONS: tuple[tuple[_Change, float, float], ...] = (
    (lambda image, _, __: ImageOps.autocontrast(image), 0, 1),
    (lambda image, _, __: ImageOps.equalize(image), 0, 1),
    (lambda image, _, __: ImageOps.invert(image), 0, 1),
    (lambda image, degrees, rng: image.rotate(_either_way(degrees, rng)), 0, 30),
    (lambda image, bits, _: ImageOps.posterize(image, max(1, int(bits))), 0, 4),
    (lambda image, threshold, _: ImageOps.solarize(image, math.ceil(threshold)), 0, 256),
    (_solarize_add, 0, 110),
    *(
        (lambda image, share, _, of=of: of(image).enhance(share), 0.1, 1.9)
        for of in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness)
    ),
    (lambda image, share, rng: _moved(image, (1, _either_way(share, rng), 0, 0, 1, 0)), 0, 0.3),
    (lambda image, share, rng: _moved(image, (1, 0, 0, _either_way(share, rng), 1, 0)), 0, 0.3),
    (_cut_out, 0, 40),
    (lambda image, pixels, rng: _moved(image, (1, 0, _either_way(pixels, rng), 0, 1, 0)), 0, 100),
    (lambda image, pixels, rng: _moved(image, (1, 0, 0, 0, 1, _either_way(pixels, rng))), 0, 100),
)
