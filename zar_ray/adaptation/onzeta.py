"""OnZeta: learns from a stream how often classes come, and what they look like; no training of the model.

Qian and Hu, "Online Zero-Shot Classification with CLIP", ECCV 2024, section 3, as the authors' code computes it. Two
online problems on the evaluation view: the text label is pushed toward balanced classes by a dual variable a class, and
the vision label comes from proxies that start at the text features. Each label is taken before the update that it
causes. How far the vision label is trusted grows with the share of the stream that has been seen, so that the stream's
length must be known before the first video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Decision, Shared, VideoFeatures, stream_method
from zar_ray.adaptation.caches import plain_view, unfit_for_online_texts, unless_it_fails
from zar_ray.errors import ConfigError
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class OnzetaConfig(Options):
    """Online zero-shot classification (Qian and Hu, ECCV 2024): class balance and vision proxies, as a stream."""

    videos: int = option(
        0,
        "How many videos the stream has, no fewer than will come; 0: as many as a job, or `zar predict`, is given.",
        ge=0,
    )
    text_temperature: float = option(0.01, "What cosines with texts are divided by.", gt=0)
    vision_temperature: float = option(0.04, "What cosines with vision proxies are divided by.", gt=0)
    vision_lr: float = option(0.5, "Learning rate of the proxies, over the root of the video's number.", ge=0)
    dual_lr: float = option(20.0, "Learning rate of the duals, over the root of the video's number.", ge=0)
    balance: float = option(1.0, "alpha, the share 1/K of videos that a class at least has; 0 for any.", ge=0, le=1)
    vision_weight: float = option(0.8, "beta, how far vision labels are trusted at the end.", ge=0, le=1)


@dataclass(frozen=True, eq=False)
class OnlineLabels:
    """What is said of one video, each label before the update that it causes.

    Attributes:
        text: float32 (K,), the logarithm of the text label.
        vision: float32 (K,), the logarithm of the vision label.
        mixed: float32 (K,), the logarithm of their weighted mean: the decision.
        rates: The proxies' learning rate, the duals', and the weight of the vision label.
    """

    text: torch.Tensor
    vision: torch.Tensor
    mixed: torch.Tensor
    rates: tuple[float, float, float]


class OnlineLearner:
    """The two online problems over K classes.

    Attributes:
        proxies: float32 (K, D), L2-normalised.
        duals: float32 (K,), at least 0.
        seen: int64 (), videos so far.
    """

    def __init__(self, texts: torch.Tensor, options: OnzetaConfig) -> None:
        self._texts = texts
        self._options = options
        self.proxies = texts.clone()
        self.duals = texts.new_zeros(len(texts))
        self.seen = torch.tensor(0)

    def learn(self, feature: torch.Tensor) -> OnlineLabels:
        """Labels a video's feature (D,), L2-normalised, and learns from it."""
        options, number = self._options, int(self.seen) + 1
        root = math.sqrt(number)
        # A stream that is longer than was said trusts the vision label as at its end.
        weight = options.vision_weight * math.sqrt(min(1.0, number / options.videos))
        rates = (options.vision_lr / root, options.dual_lr / root, weight)
        with exact_float32():
            cosines, of_proxies = self._texts @ feature, self.proxies @ feature
        # In log space no probability is too small to be weighted up.
        text = ((cosines / options.text_temperature).log_softmax(dim=0) + self.duals).log_softmax(dim=0)
        vision = (of_proxies / options.vision_temperature).log_softmax(dim=0)
        parts = text.new_tensor([weight, 1 - weight]).log()
        mixed = torch.logaddexp(parts[0] + vision, parts[1] + text)
        label = text.exp()
        duals = (self.duals - rates[1] * (label - options.balance / len(label))).clamp(min=0)
        slope = torch.outer(vision.exp() - label, feature) / options.vision_temperature
        proxies = normalize(self.proxies - rates[0] * slope, dim=-1)
        # Nothing is kept before all has succeeded.
        self.duals, self.proxies, self.seen = duals, proxies, self.seen + 1
        return OnlineLabels(text, vision, mixed, rates)


class OnzetaStream:
    """What is learnt goes on from video to video.

    Raises:
        ConfigError: It is not told how many videos there are.
    """

    def __init__(self, classes: PromptedClasses, options: OnzetaConfig, shared: Shared) -> None:
        count = options.videos or shared.videos
        if count is None:
            raise ConfigError("--onzeta.videos: onzeta must know how many videos its stream has; give their number")
        self._classes = classes
        self._learner = OnlineLearner(classes.initial_features, options.model_copy(update={"videos": count}))

    def decide(self, video: VideoFeatures) -> Decision:
        """Labels a video, and learns from it.

        Raises:
            VideoError: Some logits are not finite (stage ``adapt``); nothing is learnt from it.
        """
        before, feature = plain_view(video, self._classes)
        with unless_it_fails(self._learner):
            labels = self._learner.learn(feature)
            return Decision(logits_before=before.cpu(), logits_after=labels.mixed.cpu())

    def state(self) -> dict[str, torch.Tensor]:
        """The proxies, the duals, and how many videos were seen."""
        return {name: getattr(self._learner, name) for name in ("proxies", "duals", "seen")}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        for name, value in self.state().items():
            setattr(self._learner, name, state[name].to(value.device, copy=True))


METHOD = stream_method(
    "onzeta",
    "class balance and vision proxies, learnt online",
    OnzetaStream,
    OnzetaConfig,
    unfit=unfit_for_online_texts,
    changes="a proxy and a dual variable a class",
    also_needs="the number of videos",
    cost="products with features and proxies",
    source="Qian and Hu, ECCV 2024",
    reference="qian2024onzeta",
)
