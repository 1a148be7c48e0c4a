"""TDA: adds to a video's logits what caches of confident and of doubtful earlier videos say; a stream, and no training.

Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024, section 3: a positive
cache says which classes a video looks like, a negative one which it does not. A video is its evaluation view. It enters
the caches before its own decision, and entropy is in nats over log2(K), both as in the authors' published code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from zar_ray.adaptation.base import Decision, Shared, VideoFeatures, entropy, stream_method
from zar_ray.adaptation.caches import (
    ConfidentCache,
    DoubtfulCache,
    plain_view,
    restored,
    share_of_doubt,
    state_of,
    unless_it_fails,
)
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Bounds, Options, option


class TdaConfig(Options):
    """A training-free dynamic adapter (Karmanov et al., CVPR 2024): caches of the features of videos seen before."""

    positive_capacity: int = option(3, "Features a class in the positive cache; 0 for none.", ge=0)
    positive_weight: float = option(2.0, "alpha of the positive cache.", ge=0)
    positive_sharpness: float = option(5.0, "beta of the positive cache.", ge=0)
    negative_capacity: int = option(2, "Features a class in the negative cache; 0 for none.", ge=0)
    negative_weight: float = option(0.117, "alpha of the negative cache.", ge=0)
    negative_sharpness: float = option(1.0, "beta of the negative cache.", ge=0)
    negative_entropy: Bounds = option(
        (0.2, 0.5), "Between which entropies a video enters the negative cache; in nats over log2 of the classes."
    )
    negative_mask: Bounds = option(
        (0.03, 1.0), "Between which probabilities a class counts as one that a video does not show."
    )


class TdaStream:
    """Both caches, as they grow from video to video."""

    def __init__(self, classes: PromptedClasses, options: TdaConfig, _: Shared) -> None:
        self._classes = classes
        self._options = options
        like = classes.initial_features
        self._positive = ConfidentCache.empty(len(classes), options.positive_capacity, like)
        self._negative = DoubtfulCache.empty(len(classes), options.negative_capacity, like)

    def decide(self, video: VideoFeatures) -> Decision:
        """Offers a video to the caches, and decides by its own logits and theirs.

        Raises:
            VideoError: Some logits are not finite (stage ``adapt``); the caches are as they were.
        """
        with unless_it_fails(self):
            return self._decide(video)

    def _decide(self, video: VideoFeatures) -> Decision:
        options = self._options
        before, feature = plain_view(video, self._classes)
        of, doubt = int(before.argmax()), entropy(before)
        positive, negative = self._positive.copy(), self._negative
        positive.offer(of, feature, doubt)
        low, high = options.negative_entropy
        if low < float(share_of_doubt(doubt, len(before))) < high:
            negative = negative.surer(of, feature, doubt, before.softmax(dim=-1))
        in_favour = positive.affinities(feature, options.positive_sharpness).sum(dim=1)
        against = negative.against(feature, options.negative_sharpness, options.negative_mask)
        after = before + options.positive_weight * in_favour - options.negative_weight * against
        self._positive, self._negative = positive, negative
        return Decision(logits_before=before.cpu(), logits_after=after.cpu())

    def state(self) -> dict[str, torch.Tensor]:
        """Both caches."""
        return state_of(self._positive, "positive/") | state_of(self._negative, "negative/")

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        self._positive = restored(self._positive, state, "positive/")
        self._negative = restored(self._negative, state, "negative/")


METHOD = stream_method(
    "tda",
    "caches of the videos seen before",
    TdaStream,
    TdaConfig,
    changes="two caches",
    cost="products with the cached features",
    source="Karmanov et al., CVPR 2024",
    reference="karmanov2024tda",
)
