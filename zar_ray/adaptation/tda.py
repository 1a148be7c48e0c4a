"""TDA: adds to a video's logits what caches of confident and of doubtful earlier videos say; a stream, and no training.

Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024, section 3: a positive
cache says which classes a video looks like, a negative one which it does not. A video is its evaluation view. It enters
the caches before its own decision, and entropy is in nats over log2(K), both as in the authors' published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Decision, MethodOptions, VideoFeatures, averaged, entropy, require_finite
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses


class _Cache:
    """For each class the features of the most confident videos that it was the likeliest class of.

    Attributes:
        keys: float32 (K, S, D), L2-normalised; zeros in empty places.
        entropies: float32 (K, S), nats; infinite in empty places.
        probabilities: float32 (K, S, K), of the videos' classes.
    """

    def __init__(self, classes: int, capacity: int, like: torch.Tensor) -> None:
        self.keys = like.new_zeros(classes, capacity, like.shape[-1])
        self.entropies = like.new_full((classes, capacity), math.inf)
        self.probabilities = like.new_zeros(classes, capacity, classes)

    def offer(self, feature: torch.Tensor, doubt: torch.Tensor, probabilities: torch.Tensor) -> None:
        """Puts a video into an empty place of its likeliest class, or in the place of a less confident one."""
        of = int(probabilities.argmax())
        if not self.entropies.shape[1]:
            return
        place = int(self.entropies[of].argmax())
        if doubt < self.entropies[of, place]:
            self.keys[of, place], self.entropies[of, place] = feature, doubt
            self.probabilities[of, place] = probabilities

    def affinities(self, feature: torch.Tensor, sharpness: float) -> torch.Tensor:
        """(K, S): exp(-beta (1 - cosine)) of a video and each that is cached; 0 in empty places."""
        with exact_float32():
            return (-sharpness * (1 - self.keys @ feature)).exp() * self.entropies.isfinite()


class TdaStream:
    """Both caches, as they grow from video to video.

    Args:
        classes: The candidate classes.
        options: TDA's caches.
    """

    def __init__(self, classes: PromptedClasses, options: MethodOptions) -> None:
        self._classes = classes
        self._options = own = options.tda
        like = classes.initial_features
        self._positive = _Cache(len(classes), own.positive_capacity, like)
        self._negative = _Cache(len(classes), own.negative_capacity, like)

    def decide(self, video: VideoFeatures) -> Decision:
        """Offers a video to the caches, and decides by its own logits and theirs.

        Raises:
            VideoError: Some logits are not finite (stage ``adapt``); the caches are as they were.
        """
        before = averaged(self._classes.initial_logits(video.evaluation))
        require_finite(before, "of the evaluation view")
        own = self._classes.model.embedding_part(torch.atleast_2d(video.evaluation))
        feature = normalize(own.mean(dim=0), dim=-1)
        doubt, probabilities = entropy(before), before.softmax(dim=-1)
        self._positive.offer(feature, doubt, probabilities)
        low, high = self._options.negative_entropy
        if low < float(doubt) / math.log2(max(2, len(before))) < high:
            self._negative.offer(feature, doubt, probabilities)
        after = before + self._for(feature) - self._against(feature)
        return Decision(logits_before=before.cpu(), logits_after=after.cpu())

    def _for(self, feature: torch.Tensor) -> torch.Tensor:
        """(K,): a class's sum over the cached videos that it was the likeliest of."""
        own = self._options
        return own.positive_weight * self._positive.affinities(feature, own.positive_sharpness).sum(dim=1)

    def _against(self, feature: torch.Tensor) -> torch.Tensor:
        """(K,): a class's sum over the doubtful videos whose probability of it is within the mask."""
        own, cache = self._options, self._negative
        low, high = own.negative_mask
        masks = ((cache.probabilities > low) & (cache.probabilities < high)).to(feature.dtype)
        return own.negative_weight * torch.einsum("ks,ksc->c", cache.affinities(feature, own.negative_sharpness), masks)

    def state(self) -> dict[str, torch.Tensor]:
        """Both caches."""
        named = (("positive", self._positive), ("negative", self._negative))
        return {f"{name}/{part}": value for name, cache in named for part, value in vars(cache).items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        for name, value in self.state().items():
            value.copy_(state[name])
