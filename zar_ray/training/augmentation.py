"""What training does to pixels between the decoder and the model: pure functions of a generator.

Frames of a sample are augmented, and then videos of a micro-batch mixed. The operations on frames and their order are
those of ViFi-CLIP's training (Rasheed et al., CVPR 2023; `datasets/pipeline.py` of its repository): crop, flip, colour
jitter, grey. RandAugment (Cubuk et al., NeurIPS 2020) comes before them, as in ActionCLIP's.

ActionCLIP takes the reimplementation of ildoonet/pytorch-randaugment, whose 16 operations and ranges are those of
EfficientNet's training. torchvision's RandAugment has 14, one of which does nothing, and none that inverts, cuts out or
adds before it solarises; and it draws from PyTorch's global generator, which here is the model's own and which threads
that decode must not touch. So the operations are Pillow's, as there, and the draws a sample's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch.nn.functional import one_hot

from zar_ray.adaptation.random_boxes import random_box
from zar_ray.training.options import AugmentConfig, RandAugmentConfig
from zar_ray.video.pixels import to_device, transforms
from zar_ray.video.transforms import crop_boxes

# How far the colour jitter goes; hue in turns of the colour circle.
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1
# A multi-scale box this near to the input size is made of that size, which saves resizing it (TSN).
_NEARLY = 3
# Places of a multi-scale box, in quarters of the room around it: (down, right).
_PLACES = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)),
)
# A random resized crop's share of the area, and its width by its height.
_AREAS, _SHAPES = (0.08, 1.0), (3 / 4, 4 / 3)
# RandAugment's:
_MOST = 30  # the largest magnitude
_GREY = (125, 123, 114)  # of what is cut out, about the mean of ImageNet
_INVERTED_FROM = 128  # by SolarizeAdd, after the addition


def augment(
    frames: np.ndarray, options: AugmentConfig, size: int, rng: np.random.Generator, antialias: bool = True
) -> np.ndarray:
    """Crops, flips and recolours the frames of one sample, all of them alike but for RandAugment, if that is on.

    Two things differ from ViFi-CLIP on purpose: its colour jitter draws anew for every frame of a video, where here a
    video has one; and it resizes without antialiasing.

    Args:
        frames: uint8 (T, H, W, 3), resized; H and W are at least `size`.
        options: What to do.
        size: R, side of the model's input in pixels.
        rng: What to draw from; options that are off draw nothing.
        antialias: Whether what is cut out is antialiased where it is made smaller.

    Returns:
        uint8 (T, R, R, 3), contiguous, and never a view of the frames.
    """
    if options.rand_augment.operations:
        frames = rand_augment(frames, options.rand_augment, rng)
    top, left, height, width = draw_box(frames.shape[1], frames.shape[2], options, size, rng)
    # A copy: frames may be read-only, and kept ones must not stay in memory for the sake of a crop.
    window = np.array(frames[:, top : top + height, left : left + width])
    functional = transforms()
    pixels = functional.resize(torch.from_numpy(window).permute(0, 3, 1, 2), [size, size], antialias=antialias)
    if options.flip and rng.random() < options.flip:
        pixels = functional.horizontal_flip(pixels)
    if options.colour_jitter and rng.random() < options.colour_jitter:
        pixels = _jittered(pixels, rng)
    if options.grey and rng.random() < options.grey:
        pixels = functional.rgb_to_grayscale(pixels, num_output_channels=3)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


def draw_box(
    height: int, width: int, options: AugmentConfig, size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws the box that is cut out of a sample's frames: top, left, height and width, in pixels.

    ``random`` is a square of the input size anywhere.  ``multi_scale`` is the crop of TSN (Wang et al., ECCV 2016) as
    ViFi-CLIP sets it: height and width are shares of the short side, the same or neighbours in the list of scales, and
    the box lies in a corner or the centre, or at one of TSN's further places.  ``random_resized`` is Inception's, as
    torchvision has it.  The size of the model's input is at most the frames' short side.
    """
    if options.crop == "random":
        return int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1)), size, size
    if options.crop == "centre":
        ((_, box),) = crop_boxes(height, width, size, 1)
        return box.top, box.left, size, size
    if options.crop == "random_resized":
        return random_box(height, width, _AREAS, _SHAPES, rng.uniform, lambda limit: int(rng.integers(limit)))
    sides = [max(1, int(share * min(height, width))) for share in options.crop_scales]
    sides = [size if abs(side - size) < _NEARLY else side for side in sides]
    shapes = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    box_height, box_width = shapes[rng.integers(len(shapes))]
    down, right = _PLACES[rng.integers(options.crop_places)]
    return (height - box_height) // 4 * down, (width - box_width) // 4 * right, box_height, box_width


def _jittered(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """uint8 (T, 3, R, R) under one draw of brightness, contrast, saturation and hue, in an order drawn too."""
    functional = transforms()
    operations = (
        (functional.adjust_brightness, rng.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS)),
        (functional.adjust_contrast, rng.uniform(1 - _CONTRAST, 1 + _CONTRAST)),
        (functional.adjust_saturation, rng.uniform(1 - _SATURATION, 1 + _SATURATION)),
        (functional.adjust_hue, rng.uniform(-_HUE, _HUE)),
    )
    order = rng.permutation(len(operations))
    frames = []
    # A frame at a time and its colours apart stays in the processor's cache, and is faster for it.
    for frame in pixels.contiguous():
        for number in order:
            adjust, amount = operations[number]
            frame = adjust(frame, amount)
        frames.append(frame)
    return torch.stack(frames)


def mix(
    pixels: torch.Tensor, labels: torch.Tensor, classes: int, options: AugmentConfig, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes each video of a micro-batch with another one, and its target with that one's.

    Label smoothing comes first, as in ViFi-CLIP (Rasheed et al., CVPR 2023; `datasets/blending.py` of its repository):
    the target is 1 - s + s/K for the video's class and s/K for each of the others, mixed or not.

    Under mixup (Zhang et al., ICLR 2018) a video is lambda of itself and 1 - lambda of its partner.  Under CutMix (Yun
    et al., ICCV 2019) one rectangle of all frames is the partner's; its area is 1 - lambda of the frame before it is
    cut off at the edges, and the targets are mixed by the area that is left.  One lambda, one permutation of partners
    and one rectangle serve the micro-batch; a video may be its own partner.  Where both are on, a draw chooses.

    Args:
        pixels: float32 (B, T, 3, R, R); left as it is.
        labels: int64 (B,), label ids below `classes`.
        classes: K, how many classes there are.
        options: Mixup's and CutMix's alpha, and the smoothing.
        rng: What to draw from; nothing is drawn where nothing is mixed.

    Returns:
        float32 (B, T, 3, R, R), the same tensor where nothing is mixed; and targets, float32 (B, K), each of which sums
        to one.
    """
    targets = one_hot(labels, classes).to(torch.float32)
    targets = targets * (1 - options.label_smoothing) + options.label_smoothing / classes
    if not options.mixup and not options.cutmix:
        return pixels, targets
    cut = options.cutmix > 0 and (options.mixup == 0 or rng.random() < options.cutmix_share)
    (partners,) = to_device([rng.permutation(len(labels))], labels.device)
    if cut:
        # A rectangle of the frame's proportions, its centre anywhere.
        height, width = pixels.shape[-2:]
        scale = math.sqrt(1 - rng.beta(options.cutmix, options.cutmix))
        rows, columns = _stretch(height, scale, rng), _stretch(width, scale, rng)
        mixed = pixels.clone()
        mixed[..., rows, columns] = pixels[..., rows, columns][partners]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        kept = rng.beta(options.mixup, options.mixup)
        mixed = torch.lerp(pixels[partners], pixels, kept)
    return mixed, torch.lerp(targets[partners], targets, kept)


def _stretch(length: int, scale: float, rng: np.random.Generator) -> slice:
    """So much of a side, its centre drawn anywhere, cut off at the ends."""
    centre, half = int(rng.integers(length)), int(length * scale) // 2
    return slice(max(0, centre - half), min(length, centre + half))


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
