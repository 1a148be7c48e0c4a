"""TPT: tunes the context on random crops of a video's frames, with the step that ZAR took over from it.

Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022, section 3.2.
A view is all frames of the evaluation view under one random crop and flip; a video of one frame is the paper's picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torchvision.transforms.v2 import functional

from zar_ray.adaptation.augmix import Draws, augmix
from zar_ray.adaptation.base import Decision, MethodOptions, Outcome, VideoFeatures
from zar_ray.adaptation.options import TptConfig, ZarConfig
from zar_ray.adaptation.zar_batched import adapt_zar_batch
from zar_ray.errors import VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.video.pixels import normalise

_TRIES = 10  # at a crop that fits, as torchvision's RandomResizedCrop


def unfit_for_tpt(model: ClipModel, options: MethodOptions) -> str | None:
    """Why TPT cannot serve a model; None where it can."""
    if not model.frame_independent:
        return "it encodes the frames of a view together, and TPT's views are crops of single frames"
    return None


def adapt_tpt(videos: Sequence[VideoFeatures], classes: PromptedClasses, options: MethodOptions) -> list[Outcome]:
    """Encodes each video's random crops, and tunes a fresh context on the most confident ones.

    Args:
        videos: The videos, with their pixels.
        classes: The candidate classes.
        options: TPT's views and update, the seed and the encoder's batch.

    Returns:
        A decision a video, in order, or why there is none; view 0 is the evaluation view.
    """
    outcomes: dict[int, Outcome] = {}
    augmented: dict[int, VideoFeatures] = {}
    encoded: dict[int, int] = {}
    for number, video in enumerate(videos):
        try:
            crops = encode_crops(video, classes.model, options)
        except (torch.OutOfMemoryError, MemoryError):
            outcomes[number] = VideoError("out of memory encoding TPT's crops; lower --encoder-batch", stage="adapt")
            continue
        except VideoError as error:
            outcomes[number] = error
            continue
        plain = torch.atleast_2d(video.evaluation)[:1]
        encoded[number] = crops.shape[0] * crops.shape[1]
        views = torch.cat([plain, classes.model.view_features(crops)]) if len(crops) else plain
        augmented[number] = VideoFeatures(views, video.evaluation)
    tuned = tune_on_views(list(augmented.values()), classes, options.tpt)
    for number, outcome in zip(augmented, tuned, strict=True):
        outcomes[number] = replace(outcome, encoded=encoded[number]) if isinstance(outcome, Decision) else outcome
    return [outcomes[number] for number in range(len(videos))]


def tune_on_views(videos: Sequence[VideoFeatures], classes: PromptedClasses, options: TptConfig) -> list[Outcome]:
    """TPT's update on views that are encoded already: ZAR's, with other numbers.

    Args:
        videos: The videos, with at least one view each.
        classes: The candidate classes.
        options: Confidence, steps and AdamW's settings.

    Returns:
        A decision a video, in order, or why there is none.
    """
    return adapt_zar_batch(videos, classes, update_of(options))


def update_of(options: TptConfig) -> ZarConfig:
    """TPT's update as ZAR's options say it."""
    return ZarConfig(
        confidence=options.confidence, steps=options.steps, lr=options.lr, weight_decay=options.weight_decay
    )


def encode_crops(video: VideoFeatures, model: ClipModel, options: MethodOptions) -> torch.Tensor:
    """Embeds the frames of the evaluation view, the first of several, under all random crops.

    Args:
        video: The video, with its pixels.
        model: The model.
        options: TPT's views, the seed and the encoder's batch.

    Returns:
        float32 (views - 1, T, D), not normalised.

    Raises:
        VideoError: There are no pixels (stage ``adapt``).
    """
    pixels, own = video.require_pixels(), options.tpt
    rows = pixels.images[pixels.evaluation.reshape(-1, pixels.evaluation.shape[-1])[0], 0]
    # A copy: frames that came through Ray's shared memory are read-only.
    frames = pixels.frames[rows] if isinstance(pixels.frames, torch.Tensor) else torch.tensor(pixels.frames[rows])
    frames = frames.to(model.device).permute(0, 3, 1, 2)
    views = (
        random_view(frames, own, model.preprocessing.input_size, Draws(options.seed, pixels.video_id, "tpt", number))
        for number in range(1, own.views)
    )
    passes = [model.encode_images(normalise(one, model.preprocessing)) for one in _passes(views, options.encoder_batch)]
    size = video.evaluation.shape[-1]
    return torch.cat(passes).reshape(own.views - 1, len(rows), size) if passes else frames.new_zeros(0, len(rows), size)


def random_view(frames: torch.Tensor, options: TptConfig, size: int, draws: Draws) -> torch.Tensor:
    """Frames under one random crop, flip and, where it is asked for, AugMix.

    Args:
        frames: uint8 (T, 3, h, w), resized.
        options: Areas, shapes, flips and AugMix.
        size: R, side of the model's input in pixels.
        draws: What to draw from.

    Returns:
        uint8, or under AugMix float32 in [0, 255]: (T, R, R, 3).
    """
    box = random_crop(frames.shape[-2], frames.shape[-1], options, draws)
    cut = functional.resized_crop(frames, box.top, box.left, box.height, box.width, [size, size], antialias=True)
    if draws.uniform() < options.flip:
        cut = functional.horizontal_flip(cut)
    if options.augmix:
        cut = augmix(cut, draws)
    return cut.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Rectangle:
    """A part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_crop(height: int, width: int, options: TptConfig, draws: Draws) -> Rectangle:
    """A rectangle of random area and shape, anywhere (Szegedy et al., CVPR 2015, section 6).

    The area is uniform, the logarithm of width over height too; where none of ten draws fits, the largest centred
    rectangle of an allowed shape.

    Args:
        height: Height of the frame.
        width: Width of the frame.
        options: Shares of the area, and shapes.
        draws: What to draw from.
    """
    narrow, wide = options.ratio
    for _ in range(_TRIES):
        area = height * width * draws.uniform(*options.scale)
        shape = math.exp(draws.uniform(math.log(narrow), math.log(wide)))
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            return Rectangle(draws.below(height - down + 1), draws.below(width - across + 1), down, across)
    shape = min(max(width / height, narrow), wide)
    across, down = min(width, round(height * shape)), min(height, round(width / shape))
    return Rectangle((height - down) // 2, (width - across) // 2, down, across)


def _passes(views: Iterator[torch.Tensor], images: int) -> Iterator[torch.Tensor]:
    """Joins views and cuts them again, into passes of the encoder."""
    waiting: list[torch.Tensor] = []
    count = 0
    for view in views:
        waiting.append(view)
        count += len(view)
        if count >= images:
            *whole, rest = torch.cat(waiting).split(images)
            if len(rest) == images:
                whole, rest = [*whole, rest], rest[:0]
            yield from whole
            waiting, count = [rest], len(rest)
    if count:
        yield torch.cat(waiting)
