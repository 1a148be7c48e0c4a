"""R-TPT: each confident view becomes certain by itself, and all views decide by how much the others resemble them.

Sheng et al., "R-TPT: Improving Adversarial Robustness of Vision-Language Models through Test-Time Prompt Tuning", CVPR
2025, as the authors' code means it. That leaves out of a view's neighbours what has a cosine of 1 or more,
meant for the view itself; by rounding about half of the views stay their own neighbours there. Here a view's own cosine
is left out by its place. Other views that coincide with it (whole-video draws of a crop do) count as any other: a rule
on cosines would decide about them by rounding, and a still video would have no neighbours at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zar_ray.adaptation.base import Outcome, Shared, VideoFeatures
from zar_ray.adaptation.prompt_tuning import PromptTuningConfig, prompt_method, tune_prompts
from zar_ray.adaptation.zar import Decide, mean_entropy
from zar_ray.errors import VideoError
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import option


class RtptConfig(PromptTuningConfig):
    """Robust test-time prompt tuning (Sheng et al., CVPR 2025)."""

    neighbours: int = option(20, "Other views, the most alike first, by which a view is judged.", ge=1)
    temperature: float = option(0.01, "Temperature of the views' weights.", gt=0)


def reliability(
    views: torch.Tensor, options: RtptConfig, own: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much each view counts, by the features alone.

    Args:
        views: float32 (V, D), L2-normalised, more than the options' neighbours.
        options: The method's.
        own: bool (V,), views that are neighbours of themselves; None for none.

    Returns:
        (V,) and (V,): mean cosine of a view and its nearest neighbours, and its weight; these add up to 1.
    """
    with exact_float32():
        cosines = views @ views.T
    away = torch.eye(len(views), dtype=torch.bool, device=views.device)
    if own is not None:
        away &= ~own
    nearest = cosines.masked_fill(away, float("-inf")).topk(options.neighbours, dim=-1).values
    scores = nearest.mean(dim=-1)
    return scores, (scores / options.temperature).softmax(dim=-1)


def weighed(weights: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Logits (K,) of views (V, K) that count by weights (V,)."""
    with exact_float32():
        return weights @ logits


def objective(_: int, logits: torch.Tensor, text: torch.Tensor, absent: torch.Tensor | None) -> torch.Tensor:
    """The mean of the views' entropies."""
    return mean_entropy(logits, absent)


def decide_by(classes: PromptedClasses, options: RtptConfig) -> Decide:
    """Decides by all views of a video, the evaluation view among them."""
    return lambda video, text: weighed(reliability(video.views, options)[1], classes.logits(video.views, text))


def adapt_rtpt(
    videos: Sequence[VideoFeatures], classes: PromptedClasses, options: RtptConfig, shared: Shared
) -> list[Outcome]:
    """Tunes a fresh context for each video, and decides by all its views.

    Returns:
        A decision a video, in order; an error in place of one that has too few views, or see `adapt_zar_batch`.
    """
    others = [options.crops or len(video.views) for video in videos]
    enough = [video for video, count in zip(videos, others, strict=True) if count >= options.neighbours]
    decided = iter(tune_prompts(enough, classes, options, shared, objective, decide_by(classes, options)))
    return [next(decided) if count >= options.neighbours else _too_few(count, options) for count in others]


def _too_few(views: int, options: RtptConfig) -> VideoError:
    more = "raise --rtpt.crops" if options.crops else "plan more views"
    return VideoError(
        f"R-TPT judges a view by {options.neighbours} others, and beside the evaluation view there are {views}; {more},"
        " or lower --rtpt.neighbours",
        stage="adapt",
    )


METHOD = prompt_method(
    "rtpt",
    "prompt tuning, decided by the views that others resemble",
    adapt_rtpt,
    RtptConfig,
    also_needs="more than 20 views",
    source="Sheng et al., CVPR 2025",
    reference="sheng2025rtpt",
)
