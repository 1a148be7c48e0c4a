"""BoostAdapter: TDA's caches, and for each video a copy that its own confident views are lent to; no training.

Zhang et al., "BoostAdapter: Improving Vision-Language Test-Time Adaptation via Regional Bootstrapping", NeurIPS 2024,
section 3, as the authors' code computes it. A video enters the caches before its own decision, entropy is in nats over
log2(K), and the negative cache lets the oldest go. View 0 is the evaluation view, which takes part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from zar_ray.adaptation.base import (
    Decision,
    Shared,
    VideoFeatures,
    entropy,
    select_confident,
    stream_method,
    views_with_logits,
)
from zar_ray.adaptation.caches import (
    ConfidentCache,
    DoubtfulCache,
    plain_view,
    restored,
    share_of_doubt,
    state_of,
    unless_it_fails,
)
from zar_ray.adaptation.tda import TdaConfig
from zar_ray.adaptation.zar import marginal_entropy
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import option


class BoostAdapterConfig(TdaConfig):
    """Caches of earlier videos, and of a video's own confident views (Zhang et al., NeurIPS 2024)."""

    decision: Literal["evaluation", "selected"] = option(
        "evaluation", "What is cached and decides: the evaluation view, or the mean of the most confident views."
    )
    confidence: float = option(0.1, "Share of views, lowest entropy first, that are averaged.", gt=0, le=1)
    lent: float = option(0.1, "Share of views, lowest entropy first, that a video lends to its cache.", gt=0, le=1)
    lent_capacity: int = option(0, "Places a class that the cache has more while a video lends its views.", ge=0)
    positive_weight: float = option(3.0, "alpha of the positive cache.", ge=0)
    positive_sharpness: float = option(8.0, "beta of the positive cache.", ge=0)


@dataclass(frozen=True, eq=False)
class Boosted:
    """What the caches say of a video.

    Attributes:
        logits: float32 (K,), its own, which name the class that it is cached under.
        doubt: float32 (), nats.
        share: `doubt` over log2(K).
        entropies: float32 (V,), nats, of its views.
        lent: int64 (S,), the views that it lent.
        counts: int64 (K,), the features a class in the copy that they were lent to.
        positive: float32 (K,), what speaks for each class.
        negative: float32 (K,), what speaks against it.
        after: float32 (K,), the decision.
    """

    logits: torch.Tensor
    doubt: torch.Tensor
    share: float
    entropies: torch.Tensor
    lent: torch.Tensor
    counts: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    after: torch.Tensor


class BoostAdapterStream:
    """Both caches, as they grow from video to video.

    Attributes:
        positive: The most confident videos.
        negative: The last doubtful ones.
    """

    def __init__(self, classes: PromptedClasses, options: BoostAdapterConfig, _: Shared) -> None:
        self._classes = classes
        self._options = options
        like = classes.initial_features
        self.positive = ConfidentCache.empty(len(classes), options.positive_capacity, like)
        self.negative = DoubtfulCache.empty(len(classes), options.negative_capacity, like)

    def decide(self, video: VideoFeatures) -> Decision:
        """Offers a video to the caches, and decides by its own logits and theirs.

        Raises:
            VideoError: Some logits are not finite (stage ``adapt``); the caches are as they were.
        """
        classes = self._classes
        (before, feature), (rows, logits) = plain_view(video, classes), views_with_logits(video, classes)
        with unless_it_fails(self):
            found = self.see(classes.model.embedding_part(rows), logits, feature, before)
            return Decision(before.cpu(), found.after.cpu(), found.entropies.cpu(), found.lent.cpu())

    def see(self, views: torch.Tensor, logits: torch.Tensor, feature: torch.Tensor, before: torch.Tensor) -> Boosted:
        """Takes a video into the caches and reads them.

        Args:
            views: float32 (V, D), its views, with the evaluation view in front.
            logits: float32 (V, K), theirs.
            feature: float32 (D,), L2-normalised: the evaluation view, or the mean of several.
            before: float32 (K,), its logits.
        """
        options, entropies = self._options, entropy(logits)
        doubt, p = entropy(before), before.softmax(dim=-1)
        if options.decision == "selected":
            # The mean is not normalised again: it is shorter where the views disagree.
            chosen = select_confident(entropies, options.confidence)
            feature, before = views[chosen].mean(dim=0), logits[chosen].mean(dim=0)
            doubt, p = marginal_entropy(logits[chosen]), logits[chosen].softmax(dim=-1).mean(dim=0)
        of, share = int(before.argmax()), float(share_of_doubt(doubt, len(before)))
        positive, negative = self.positive.copy(), self.negative
        positive.offer(of, feature, doubt)
        low, high = options.negative_entropy
        if low < share < high:
            negative = negative.later(of, feature, doubt, p)
        lent, copy = select_confident(entropies, options.lent), positive.copy(options.lent_capacity)
        for view in lent.tolist():
            copy.offer(int(logits[view].argmax()), views[view], entropies[view])
        in_favour = options.positive_weight * copy.affinities(feature, options.positive_sharpness).sum(dim=1)
        against = options.negative_weight * negative.against(feature, options.negative_sharpness, options.negative_mask)
        after = before + in_favour - against
        self.positive, self.negative = positive, negative
        return Boosted(before, doubt, share, entropies, lent, copy.counts, in_favour, against, after)

    def state(self) -> dict[str, torch.Tensor]:
        """Both caches."""
        return state_of(self.positive, "positive/") | state_of(self.negative, "negative/")

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        self.positive = restored(self.positive, state, "positive/")
        self.negative = restored(self.negative, state, "negative/")


METHOD = stream_method(
    "boostadapter",
    "caches of the videos seen before, and of a video's own confident views",
    BoostAdapterStream,
    BoostAdapterConfig,
    needs_views=True,
    changes="two caches",
    cost="products with the cached features",
    source="Zhang et al., NeurIPS 2024",
    reference="zhang2024boostadapter",
)
