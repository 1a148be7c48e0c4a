"""MTA: the mode of a video's views, found by a mean shift that learns which views are outliers; no training.

Zanella and Ben Ayed, "On the Test-Time Zero-Shot Generalization of Vision-Language Models: Do We Really Need Prompt
Learning?", CVPR 2024, section 4 and algorithm 1, as the authors' code computes it: the bandwidth is a view's own, the
affinity keeps its diagonal, and there are always five rounds. View 0 is the evaluation view, where the mode starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import (
    Decision,
    Method,
    Shared,
    VideoFeatures,
    entropy,
    evaluation_logits,
    one_by_one,
    require_finite,
    views_with_logits,
)
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option

_ROUNDS = 5  # of inlierness and mode in turn, and the most iterations of each
_CHANGE = 1e-6  # below which an iteration is the last
_NEIGHBOURS = 0.3  # share of the other views, the nearest, whose distances make a bandwidth


class MtaConfig(Options):
    """The mode of a video's views (Zanella and Ben Ayed, CVPR 2024)."""

    inlierness: float = option(0.2, "lambda_y, how evenly the views share the inlierness.", gt=0)
    affinity: float = option(4.0, "lambda_q, how much views that look alike share it.", ge=0)


@dataclass(frozen=True, eq=False)
class Mode:
    """The mode of V views, and how it was found.

    Attributes:
        bandwidths: float32 (V,).
        affinity: float32 (V, V).
        inlierness: float32 (rounds, V), after each round.
        modes: float32 (rounds, D), L2-normalised, after each round.
        weights: float32 (V,), of the views in the last mode.
    """

    bandwidths: torch.Tensor
    affinity: torch.Tensor
    inlierness: torch.Tensor
    modes: torch.Tensor
    weights: torch.Tensor


def find_mode(views: torch.Tensor, logits: torch.Tensor, options: MtaConfig) -> Mode:
    """Finds the mode of views (V, D), L2-normalised, the plain one first, with logits (V, K)."""
    with exact_float32():
        count = len(views)
        squared = torch.cdist(views, views).square()
        nearest = max(1, int(_NEIGHBOURS * (count - 1)))
        # A view's own distance is the smallest.
        bandwidths = squared.sort(dim=1).values[:, 1 : 1 + nearest].mean(dim=1).div(2).sqrt() if count > 1 else None
        widths = views.new_ones(1) if bandwidths is None else bandwidths.clamp(min=torch.finfo(views.dtype).eps)
        probabilities = logits.softmax(dim=-1)
        affinity = probabilities @ probabilities.T
        inlierness, mode = views.new_full((count,), 1 / count), views[0]
        rounds: list[tuple[torch.Tensor, torch.Tensor]] = []
        weights = inlierness
        for _ in range(_ROUNDS):
            density = _density(views, mode, widths)
            for _ in range(_ROUNDS):
                before = inlierness
                inlierness = ((density + options.affinity * (affinity @ before)) / options.inlierness).softmax(dim=0)
                if (inlierness - before).norm() < _CHANGE:
                    break
            for _ in range(_ROUNDS):
                before = mode
                weights = _density(views, before, widths) * inlierness
                mode = normalize((weights[:, None] * views).sum(dim=0) / weights.sum(), dim=0)
                if (mode - before).norm() < _CHANGE:
                    break
            rounds.append((inlierness, mode))
    ys, modes = (torch.stack(one) for one in zip(*rounds, strict=True))
    return Mode(widths, affinity, ys, modes, weights)


def _density(views: torch.Tensor, mode: torch.Tensor, bandwidths: torch.Tensor) -> torch.Tensor:
    return (-(views - mode).square().sum(dim=1) / (2 * bandwidths.square())).exp()


def adapt_mta(video: VideoFeatures, classes: PromptedClasses, options: MtaConfig, _: Shared) -> Decision:
    """Decides by the mode of the views.

    Raises:
        VideoError: Some logits are not finite (stage ``adapt``).
    """
    before, (views, logits) = evaluation_logits(video, classes), views_with_logits(video, classes)
    embeddings = classes.model.embedding_part(views)
    found = find_mode(embeddings, logits, options)
    weights = found.weights / found.weights.sum()
    # What texts follow, where they do, stands behind a view's own embedding.
    followed = (weights[:, None] * views[:, embeddings.shape[1] :]).sum(dim=0)
    after = classes.initial_logits(torch.cat([found.modes[-1], followed]))
    require_finite(after, "of the views' mode")  # none of the views may be near it
    return Decision(before.cpu(), after.cpu(), entropy(logits).cpu())


METHOD = Method(
    "mta",
    "the mode of the views",
    one_by_one(adapt_mta),
    options=MtaConfig,
    needs_views=True,
    source="Zanella and Ben Ayed, CVPR 2024",
    reference="zanella2024mta",
)
