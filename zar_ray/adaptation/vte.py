"""VTE: the mean feature of the confident views, against texts that may be an ensemble; no training, no gradient.

Döbler et al., "A Lost Opportunity for Vision-Language Models: A Comparative Study of Online Test-Time Adaptation for
Vision-Language Models", CVPR workshops 2024, as the authors' code computes it. The mean is not normalised again: being
shorter where views disagree, it acts as a higher temperature. View 0 is the evaluation view, which takes part.
"""

from __future__ import annotations

import torch

from zar_ray.adaptation.base import (
    Decision,
    Method,
    Shared,
    VideoFeatures,
    entropy,
    evaluation_logits,
    one_by_one,
    select_confident,
    views_with_logits,
)
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class VteConfig(Options):
    """The mean of the confident views (Döbler et al., CVPR workshops 2024); templates with --template."""

    confidence: float = option(0.1, "Share of views, lowest entropy first, that are averaged.", gt=0, le=1)


def mean_of_confident(
    views: torch.Tensor, logits: torch.Tensor, confidence: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Entropies (V,), the selected views (S,) and their mean feature (D,), of views (V, D) with logits (V, K)."""
    entropies = entropy(logits)
    selected = select_confident(entropies, confidence)
    return entropies, selected, views[selected].mean(dim=0)


def adapt_vte(video: VideoFeatures, classes: PromptedClasses, options: VteConfig, _: Shared) -> Decision:
    """Decides by the mean feature of the confident views.

    Raises:
        VideoError: Some logits are not finite (stage ``adapt``).
    """
    before, (views, logits) = evaluation_logits(video, classes), views_with_logits(video, classes)
    entropies, selected, mean = mean_of_confident(views, logits, options.confidence)
    return Decision(before.cpu(), classes.initial_logits(mean).cpu(), entropies.cpu(), selected.cpu())


METHOD = Method(
    "vte",
    "the mean of the confident views",
    one_by_one(adapt_vte),
    options=VteConfig,
    needs_views=True,
    source="Döbler et al., CVPR workshops 2024",
    reference="doebler2024vte",
)
