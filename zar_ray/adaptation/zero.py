"""ZERO: each confident view votes for its likeliest class; no training, no gradient.

Farina et al., "Frustratingly Easy Test-Time Adaptation of Vision-Language Models", NeurIPS 2024, section 3, as the
authors' code computes it: a vote is the softmax at zero temperature, and a tie goes to the tied class that the next
confident view has at its top. View 0 is the evaluation view, which takes part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zar_ray.adaptation.base import (
    Decision,
    Method,
    Shared,
    VideoFeatures,
    count_confident,
    entropy,
    evaluation_logits,
    one_by_one,
    views_with_logits,
)
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class ZeroConfig(Options):
    """A vote of the confident views (Farina et al., NeurIPS 2024)."""

    confidence: float = option(0.3, "Share of views, lowest entropy first, that vote.", gt=0, le=1)


@dataclass(frozen=True, eq=False)
class Ballot:
    """A vote of a video's views.

    Attributes:
        entropies: float32 (V,), nats.
        order: int64 (V,), views by rising entropy.
        selected: int64 (S,), those that vote.
        votes: float32 (K,), the votes of the classes.
        decided: float32 (K,), the same with one more for the class that a tie went to.
        tied: int64 (C,), the classes of most votes.
    """

    entropies: torch.Tensor
    order: torch.Tensor
    selected: torch.Tensor
    votes: torch.Tensor
    decided: torch.Tensor
    tied: torch.Tensor


def vote(logits: torch.Tensor, cosines: torch.Tensor, confidence: float) -> Ballot:
    """Lets the most confident views vote.

    Args:
        logits: float32 (V, K), whose entropy says which views are confident.
        cosines: float32 (V, K), unscaled, which are divided by float32's epsilon: the class of the largest one, or
            several that are equal in all digits.
        confidence: Share of the views.
    """
    entropies = entropy(logits)
    order = entropies.argsort(stable=True)
    chosen = count_confident(len(logits), confidence)
    votes = (cosines[order[:chosen]] / torch.finfo(torch.float32).eps).softmax(dim=-1).sum(dim=0)
    tied = (votes == votes.max()).nonzero()[:, 0]
    decided = votes.clone()
    if len(tied) > 1 and chosen < len(order):
        decided[_broken(cosines[order[chosen:]], tied)] += 1
    return Ballot(entropies, order, order[:chosen], votes, decided, tied)


def _broken(others: torch.Tensor, tied: torch.Tensor) -> int:
    """The class that a tie goes to, by the views (n, K) that have not voted, the most confident first."""
    tops = others.argmax(dim=-1)
    agreeing = torch.isin(tops, tied).nonzero()[:, 0]
    if len(agreeing):
        return int(tops[agreeing[0]])
    # The published code then means to keep the tied classes, and takes out those that lie as far from the end of the
    # list as these from its beginning. Published results came of it.
    first = others[0].clone()
    first[first.shape[-1] - 1 - tied] = float("-inf")
    return int(first.argmax())


def adapt_zero(video: VideoFeatures, classes: PromptedClasses, options: ZeroConfig, _: Shared) -> Decision:
    """Decides by the views' votes; the logits are those of probabilities that are shares of the votes.

    Raises:
        VideoError: Some logits are not finite (stage ``adapt``).
    """
    before = evaluation_logits(video, classes)
    logits = views_with_logits(video, classes)[1]
    cosines = logits / classes.model.logit_scale
    ballot = vote(logits, cosines, options.confidence)
    after = ballot.decided.clamp(min=torch.finfo(torch.float32).eps).log()
    return Decision(before.cpu(), after.cpu(), ballot.entropies.cpu(), ballot.selected.cpu())


METHOD = Method(
    "zero",
    "a vote of the confident views",
    one_by_one(adapt_zero),
    options=ZeroConfig,
    needs_views=True,
    source="Farina et al., NeurIPS 2024",
    reference="farina2024zero",
)
