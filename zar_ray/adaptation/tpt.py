"""TPT: tunes the context on random crops of a video's frames, with the step that ZAR took over from it.

Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022, section 3.2.
A view is all frames of the evaluation view under one random crop and flip; a video of one frame is the paper's picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

import torch
from pydantic import model_validator

from zar_ray.adaptation.augmix import Draws, augmix
from zar_ray.adaptation.base import Decision, Method, Outcome, Shared, VideoFeatures
from zar_ray.adaptation.random_boxes import random_box
from zar_ray.adaptation.zar import ZarConfig, adapt_zar_batch
from zar_ray.errors import NoRoomError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.fitting import MORE_MEMORY
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option
from zar_ray.video.pixels import normalise, transforms


class TptUpdate(Options):
    """The update that TPT and its followers share."""

    confidence: float = option(0.1, "Share of views, lowest entropy first, that tune.", gt=0, le=1)
    steps: int = option(1, "AdamW steps a video.", ge=1)
    lr: float = option(0.005, "Learning rate of the context.", gt=0)
    weight_decay: float = option(0.01, "AdamW's weight decay.", ge=0)

    @property
    def context_steps(self) -> int:
        """Steps of the optimiser a video."""
        return self.steps


class TptConfig(TptUpdate):
    """Test-time prompt tuning (Shu et al., NeurIPS 2022), on random crops of the evaluation view's frames."""

    views: int = option(64, "Views: the evaluation view, and random crops of its frames.", ge=1)
    scale: tuple[float, float] = option((0.08, 1.0), "Smallest and largest share of a frame's area.")
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), "Narrowest and widest width over height.")
    flip: float = option(0.5, "Probability of a left-right flip.", ge=0, le=1)
    augmix: bool = option(False, "Mix each crop with distorted copies of it, as AugMix does.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} {low:g} {high:g}: give the smaller first, and both above 0")
        if self.scale[1] > 1:
            raise ValueError(f"scale {self.scale[1]:g}: a crop is at most the whole frame, 1")
        return self


def unfit_for_tpt(model: ClipModel, options: TptConfig) -> str | None:
    """Why TPT cannot serve a model; None where it can."""
    if not model.frame_independent:
        return "it encodes the frames of a view together, and TPT's views are crops of single frames"
    return None


def adapt_tpt(
    videos: Sequence[VideoFeatures], classes: PromptedClasses, options: TptConfig, shared: Shared
) -> list[Outcome]:
    """Encodes each video's random crops, and tunes a fresh context on the most confident ones.

    Returns:
        A decision a video, in order, or why there is none; view 0 is the evaluation view.
    """
    return adapt_on_crops(
        videos, classes.model, options, shared, lambda given: adapt_zar_batch(given, classes, update_of(options))
    )


def adapt_on_crops(
    videos: Sequence[VideoFeatures],
    model: ClipModel,
    options: TptConfig,
    shared: Shared,
    adapt: Callable[[Sequence[VideoFeatures]], list[Outcome]],
) -> list[Outcome]:
    """Decides by `adapt`, given videos whose views are the evaluation view and random crops of its frames.

    Returns:
        A decision a video, in order, with the crops counted; or why there is none.
    """
    outcomes: dict[int, Outcome] = {}
    augmented: dict[int, VideoFeatures] = {}
    encoded: dict[int, int] = {}
    for number, video in enumerate(videos):
        try:
            crops = encode_crops(video, model, options, shared)
        except VideoError as error:
            outcomes[number] = error
            continue
        plain = torch.atleast_2d(video.evaluation)[:1]
        encoded[number] = crops.shape[0] * crops.shape[1]
        views = torch.cat([plain, model.view_features(crops)]) if len(crops) else plain
        augmented[number] = VideoFeatures(views, video.evaluation)
    for number, outcome in zip(augmented, adapt(list(augmented.values())), strict=True):
        outcomes[number] = replace(outcome, encoded=encoded[number]) if isinstance(outcome, Decision) else outcome
    return [outcomes[number] for number in range(len(videos))]


def update_of(options: TptUpdate) -> ZarConfig:
    """The update as ZAR's options say it."""
    return ZarConfig(
        confidence=options.confidence, steps=options.context_steps, lr=options.lr, weight_decay=options.weight_decay
    )


def encode_crops(video: VideoFeatures, model: ClipModel, options: TptConfig, shared: Shared) -> torch.Tensor:
    """Embeds the frames of the evaluation view, the first of several, under all random crops.

    Returns:
        float32 (views - 1, T, D), not normalised.

    Raises:
        VideoError: There are no pixels, or not enough memory for one crop (stage ``adapt``).
    """
    pixels = video.require_pixels()
    plan = pixels.plan
    rows = plan.images[plan.evaluation.reshape(-1, plan.evaluation.shape[-1])[0], 0]
    frames = pixels.frames_on(model.device, rows).permute(0, 3, 1, 2)
    side, numbers = model.preprocessing.input_size, range(1, options.views)

    def encode(first: int, most: int) -> list[torch.Tensor]:
        taken = numbers[first : first + max(1, most // len(rows))]
        draws = (Draws(shared.seed, pixels.video_id, "tpt", number) for number in taken)
        views = torch.cat([random_view(frames, options, side, one) for one in draws])
        # A view may be more than a pass.
        encoded = [model.encode_images(normalise(one, model.preprocessing)) for one in views.split(most)]
        return list(torch.cat(encoded).split(len(rows)))

    embeddings: list[torch.Tensor] = []
    while len(embeddings) < len(numbers):
        left = len(rows) * (len(numbers) - len(embeddings))
        made = model.image_passes.once(min(shared.encoder_batch, left), partial(encode, len(embeddings)))
        if made is None:
            raise NoRoomError(f"out of memory encoding one of TPT's crops by itself; {MORE_MEMORY}", stage="adapt")
        embeddings += made
    return torch.stack(embeddings) if embeddings else pixels.embeddings[:0].unflatten(0, (0, len(rows)))


def random_view(frames: torch.Tensor, options: TptConfig, size: int, draws: Draws) -> torch.Tensor:
    """Resized frames, uint8 (T, 3, h, w), under one random crop, flip and, where it is asked for, AugMix.

    Returns:
        uint8, or under AugMix float32 in [0, 255]: (T, R, R, 3), R pixels being the `size` of the model's input.
    """
    height, width = frames.shape[-2:]
    box = random_box(height, width, options.scale, options.ratio, draws.uniform, draws.below)
    functional = transforms()
    cut = functional.resized_crop(frames, *box, [size, size], antialias=True)
    if draws.uniform() < options.flip:
        cut = functional.horizontal_flip(cut)
    if options.augmix:
        cut = augmix(cut, draws)
    return cut.permute(0, 2, 3, 1)


METHOD = Method(
    "tpt",
    "prompt tuning on random crops",
    adapt_tpt,
    options=TptConfig,
    needs_pixels=True,
    updates="context",
    unfit=unfit_for_tpt,
    changes="the context",
    cost="random crops of them; a step back through the text tower, and a pass of it",
    source="Shu et al., NeurIPS 2022",
    reference="shu2022tpt",
)
