"""DMN without training: each class has a memory of features, which a video reads by its own likeness to them.

Zhang et al., "Dual Memory Networks: A Versatile Adaptation Approach for Vision-Language Models", CVPR 2024, section 3,
the dynamic memory in the zero-shot setting, as the authors' code computes it. A video is in the memory when it is
scored, and the class's text is one more entry of it. View 0 is the evaluation view, which takes part in the selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize, pad

from zar_ray.adaptation.base import (
    Decision,
    Shared,
    VideoFeatures,
    select_confident,
    stream_method,
    views_with_logits,
)
from zar_ray.adaptation.caches import affinities, plain_view, restored, state_of, unless_it_fails
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option

# What the published code adds inside the logarithm: where it ranks views, and where it stores a video's doubt.
_IN_RANKS, _IN_DOUBTS = 1e-6, 1e-8


class DmnConfig(Options):
    """A memory of earlier videos for each class (Zhang et al., CVPR 2024), zero-shot and without training."""

    confidence: float = option(0.1, "Share of views, lowest entropy first, that name a video's class.", gt=0, le=1)
    capacity: int = option(50, "Features a class in the memory.", ge=1)
    sharpness: float = option(5.5, "beta: how much nearer entries count more.", ge=0)
    weight: float = option(1.0, "Weight of the memory's probabilities beside the model's.", ge=0)


@dataclass(frozen=True, eq=False)
class Memory:
    """The features of each class's videos, with as many places as the fullest class has.

    Attributes:
        features: float32 (K, S, D); zeros in empty places, which are a class's last.
        doubts: float32 (K, S), nats; zeros in empty places.
        counts: int64 (K,), the features a class.
    """

    features: torch.Tensor
    doubts: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def empty(cls, classes: int, like: torch.Tensor) -> Memory:
        """One that holds nothing, for features like `like` (..., D)."""
        counts = torch.zeros(classes, dtype=torch.int64, device=like.device)
        return cls(like.new_zeros(classes, 0, like.shape[-1]), like.new_zeros(classes, 0), counts)

    def with_one_more(self, of: int, feature: torch.Tensor, doubt: torch.Tensor, capacity: int) -> Memory:
        """Another one, which was offered a class's video: where that is full, the most doubtful of them all goes."""
        place = int(self.counts[of])
        if place == capacity:
            place = int(self.doubts[of].argmax())
            if not self.doubts[of, place] > doubt:
                return self
        if place == self.doubts.shape[1]:
            features, doubts = pad(self.features, (0, 0, 0, 1)), pad(self.doubts, (0, 1))
        else:
            features, doubts = self.features.clone(), self.doubts.clone()
        counts = self.counts.clone()
        features[of, place], doubts[of, place] = feature, doubt
        counts[of] = max(int(counts[of]), place + 1)
        return Memory(features, doubts, counts)

    def read(self, feature: torch.Tensor, texts: torch.Tensor, sharpness: float) -> torch.Tensor:
        """float32 (K, D), L2-normalised: each class's entries and its text (K, D), the nearer the more they count."""
        entries = torch.cat([self.features, texts[:, None]], dim=1)
        places = torch.arange(entries.shape[1], device=entries.device)
        held = (places < self.counts[:, None]) | (places == entries.shape[1] - 1)
        weights = affinities(feature, entries, sharpness) * held
        with exact_float32():
            return normalize((weights[:, None] @ entries)[:, 0], dim=-1)


@dataclass(frozen=True, eq=False)
class Recollection:
    """What the memory says of a video.

    Attributes:
        entropies: float32 (V,), nats, of its views.
        selected: int64 (S,), the views that name its class.
        probabilities: float32 (K,), the mean of theirs.
        doubt: float32 (), the entropy of it, nats.
        class_features: float32 (K, D), L2-normalised, as read for the video.
        logits: float32 (K,), the video's under these.
    """

    entropies: torch.Tensor
    selected: torch.Tensor
    probabilities: torch.Tensor
    doubt: torch.Tensor
    class_features: torch.Tensor
    logits: torch.Tensor


class DmnStream:
    """The memory, as it grows from video to video.

    Attributes:
        memory: What it holds.
    """

    def __init__(self, classes: PromptedClasses, options: DmnConfig, _: Shared) -> None:
        self._classes = classes
        self._options = options
        self.memory = Memory.empty(len(classes), classes.initial_features)

    def decide(self, video: VideoFeatures) -> Decision:
        """Offers a video to the memory, and decides by its own probabilities and the memory's.

        Raises:
            VideoError: Some logits are not finite (stage ``adapt``); the memory is as it was.
        """
        classes = self._classes
        (before, feature), (_, logits) = plain_view(video, classes), views_with_logits(video, classes)
        with torch.no_grad():
            texts = classes.texts_for(torch.atleast_2d(video.evaluation))
        if texts.ndim == 3:
            texts = normalize(texts.mean(dim=0), dim=-1)
        with unless_it_fails(self):
            found = self.see(feature, logits, texts)
            after = weighted_sum(before, found.logits, self._options.weight)
            return Decision(before.cpu(), after.cpu(), found.entropies.cpu(), found.selected.cpu())

    def see(self, feature: torch.Tensor, logits: torch.Tensor, texts: torch.Tensor) -> Recollection:
        """Takes a video into the memory and reads it.

        Args:
            feature: float32 (D,), L2-normalised: the evaluation view, or the mean of several.
            logits: float32 (V, K), of its views, with the evaluation view in front.
            texts: float32 (K, D), L2-normalised: the classes'.
        """
        options, p = self._options, logits.softmax(dim=-1)
        entropies = _entropy(p, _IN_RANKS)
        selected = select_confident(entropies, options.confidence)
        mean = p[selected].mean(dim=0)
        doubt = _entropy(mean, _IN_DOUBTS)
        memory = self.memory.with_one_more(int(mean.argmax()), feature, doubt, options.capacity)
        read = memory.read(feature, texts, options.sharpness)
        own = self._classes.logits(feature, read)
        self.memory = memory
        return Recollection(entropies, selected, mean, doubt, read, own)

    def state(self) -> dict[str, torch.Tensor]:
        """The memory."""
        return state_of(self.memory)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        self.memory = restored(self.memory, state)


def weighted_sum(logits: torch.Tensor, others: torch.Tensor, weight: float) -> torch.Tensor:
    """Logits (..., K) whose probabilities are those of `logits` plus `weight` times those of `others`, over the sum."""
    both = torch.stack([logits.log_softmax(dim=-1), others.log_softmax(dim=-1)])
    shares = both.new_tensor([1.0, weight]).log().log_softmax(dim=0)
    return (both + shares.reshape(-1, *[1] * logits.ndim)).logsumexp(dim=0)


def _entropy(probabilities: torch.Tensor, small: float) -> torch.Tensor:
    """Entropy (...) of probabilities (..., K) in nats, with something small inside the logarithm."""
    return -(probabilities * (probabilities + small).log()).sum(dim=-1)


METHOD = stream_method(
    "dmn",
    "a memory of the videos seen before, read by likeness",
    DmnStream,
    DmnConfig,
    needs_views=True,
    changes="a memory",
    cost="products with the remembered features",
    source="Zhang et al., CVPR 2024",
    reference="zhang2024dmn",
)
