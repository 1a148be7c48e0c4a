"""TDA: adds to a video's logits what caches of confident and of doubtful earlier videos say; a stream, and no training.

Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024, section 3: a positive
cache says which classes a video looks like, a negative one which it does not. A video is its evaluation view. It enters
the caches before its own decision, and entropy is in nats over log2(K), both as in the authors' published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zar_ray.adaptation.base import (
    Decision,
    Shared,
    VideoFeatures,
    entropy,
    stream_method,
)
from zar_ray.adaptation.caches import plain_view, unless_it_fails
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class TdaConfig(Options):
    """A training-free dynamic adapter (Karmanov et al., CVPR 2024): caches of the features of videos seen before."""

    positive_capacity: int = option(3, "Features a class in the positive cache; 0 for none.", ge=0)
    positive_weight: float = option(2.0, "alpha of the positive cache.", ge=0)
    positive_sharpness: float = option(5.0, "beta of the positive cache.", ge=0)
    negative_capacity: int = option(2, "Features a class in the negative cache; 0 for none.", ge=0)
    negative_weight: float = option(0.117, "alpha of the negative cache.", ge=0)
    negative_sharpness: float = option(1.0, "beta of the negative cache.", ge=0)
    negative_entropy: tuple[float, float] = option(
        (0.2, 0.5), "Between which entropies a video enters the negative cache; in nats over log2 of the classes."
    )
    negative_mask: tuple[float, float] = option(
        (0.03, 1.0), "Between which probabilities a class counts as one that a video does not show."
    )


@dataclass(frozen=True, eq=False)
class _Cache:
    """For each class the features of the most confident videos that it was the likeliest class of.

    Attributes:
        keys: float32 (K, S, D), L2-normalised; zeros in empty places.
        entropies: float32 (K, S), nats; infinite in empty places.
        probabilities: float32 (K, S, K), of the videos' classes.
    """

    keys: torch.Tensor
    entropies: torch.Tensor
    probabilities: torch.Tensor

    @classmethod
    def empty(cls, classes: int, capacity: int, like: torch.Tensor) -> _Cache:
        """One that holds nothing, for features like `like` (..., D)."""
        return cls(
            like.new_zeros(classes, capacity, like.shape[-1]),
            like.new_full((classes, capacity), math.inf),
            like.new_zeros(classes, capacity, classes),
        )

    def offered(self, feature: torch.Tensor, doubt: torch.Tensor, probabilities: torch.Tensor) -> _Cache:
        """One with a video in an empty place of its likeliest class, or in the place of a less confident one."""
        of = int(probabilities.argmax())
        if not self.entropies.shape[1]:
            return self
        place = int(self.entropies[of].argmax())
        if not doubt < self.entropies[of, place]:
            return self
        keys, entropies, known = (one.clone() for one in vars(self).values())
        keys[of, place], entropies[of, place], known[of, place] = feature, doubt, probabilities
        return _Cache(keys, entropies, known)

    def affinities(self, feature: torch.Tensor, sharpness: float) -> torch.Tensor:
        """(K, S): exp(-beta (1 - cosine)) of a video and each that is cached; 0 in empty places."""
        with exact_float32():
            return (-sharpness * (1 - self.keys @ feature)).exp() * self.entropies.isfinite()


class TdaStream:
    """Both caches, as they grow from video to video."""

    def __init__(self, classes: PromptedClasses, options: TdaConfig, shared: Shared) -> None:
        self._classes = classes
        self._options = options
        like = classes.initial_features
        self._positive = _Cache.empty(len(classes), options.positive_capacity, like)
        self._negative = _Cache.empty(len(classes), options.negative_capacity, like)

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
        doubt, probabilities = entropy(before), before.softmax(dim=-1)
        self._positive = self._positive.offered(feature, doubt, probabilities)
        low, high = options.negative_entropy
        if low < float(doubt) / math.log2(max(2, len(before))) < high:
            self._negative = self._negative.offered(feature, doubt, probabilities)
        # For a class: the cached videos that it was the likeliest of.
        positive = self._positive.affinities(feature, options.positive_sharpness).sum(dim=1)
        # Against it: the doubtful videos whose probability of it is within the mask.
        low, high = options.negative_mask
        masks = ((self._negative.probabilities > low) & (self._negative.probabilities < high)).to(feature.dtype)
        doubtful = self._negative.affinities(feature, options.negative_sharpness)
        negative = torch.einsum("ks,ksc->c", doubtful, masks)
        after = before + options.positive_weight * positive - options.negative_weight * negative
        return Decision(logits_before=before.cpu(), logits_after=after.cpu())

    def state(self) -> dict[str, torch.Tensor]:
        """Both caches."""
        named = (("positive", self._positive), ("negative", self._negative))
        return {f"{name}/{part}": value for name, cache in named for part, value in vars(cache).items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        for name, value in self.state().items():
            value.copy_(state[name])


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
