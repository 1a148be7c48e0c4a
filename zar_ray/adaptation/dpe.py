"""DPE: prototypes of texts and of cached features, moved a step for each video; sure decisions move the texts on.

Zhang et al., "Dual Prototype Evolving for Test-Time Generalization of Vision-Language Models", NeurIPS 2024, section 3,
as the authors' code computes it. Carried from video to video are the text prototypes, which begin as the classes' text
features, and the cache. Each video moves both by a residual of its own, which is dropped after its decision. View 0 is
the evaluation view, which takes part. No gradient passes the text tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import cross_entropy, normalize

from zar_ray.adaptation.base import (
    Decision,
    Shared,
    VideoFeatures,
    averaged,
    entropy,
    evaluation_logits,
    require_finite,
    select_confident,
    stream_method,
    with_plain_view,
)
from zar_ray.adaptation.caches import (
    ConfidentCache,
    affinities,
    restored,
    share_of_doubt,
    state_of,
    unfit_for_online_texts,
    unless_it_fails,
)
from zar_ray.adaptation.zar import marginal_entropy
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class DpeConfig(Options):
    """Text and image prototypes that evolve from video to video (Zhang et al., NeurIPS 2024)."""

    tuned_on: Literal["selected", "evaluation"] = option(
        "selected", "What is cached and moves the prototypes: the most confident views, or the evaluation view alone."
    )
    decision: Literal["evaluation", "selected"] = option(
        "evaluation", "What decides: the evaluation view, or the most confident of the views that moved the prototypes."
    )
    confidence: float = option(0.1, "Share of views, lowest entropy first, that are averaged.", gt=0, le=1)
    capacity: int = option(3, "Features a class in the cache.", ge=1)
    weight: float = option(6.0, "alpha of the cache.", ge=0)
    sharpness: float = option(5.0, "beta of the cache.", ge=0)
    text_lr: float = option(6e-4, "Learning rate of the text prototypes' residual.", ge=0)
    image_lr: float = option(6e-4, "Learning rate of the image prototypes' residual.", ge=0)
    eps: float = option(1e-3, "AdamW's epsilon, beside which small gradients make small steps.", gt=0)
    alignment: float = option(0.5, "Weight of the loss that draws a class's two prototypes together.", ge=0)
    temperature: float = option(0.01, "Temperature of that loss.", gt=0)
    sure_below: float = option(
        0.1, "Decisions of less entropy move the text prototypes on; in nats over log2 of the classes.", ge=0
    )


@dataclass(frozen=True, eq=False)
class Evolution:
    """What one video does to the prototypes; C classes are cached.

    Attributes:
        entropies: float32 (V,), nats, of the views that may move them.
        selected: int64 (S,), those that do.
        logits: float32 (K,), the mean of theirs.
        marginal: float32 (), nats: the entropy of their mean probability.
        share: float32 (), `marginal` over log2(K).
        cached: int64 (C,), classes with an image prototype, rising.
        prototypes: float32 (C, D), the mean of each one's features.
        of_cache: float32 (K,), what the cache adds to `logits`.
        loss: float32 (), nats: the entropy of both together.
        alignment: float32 (), the loss of the two prototypes' distance.
        gradients: float32 (K, D) and (C, D), of the whole loss, with respect to the residuals of texts and images.
        residuals: The same shapes, after the step.
        after: float32 (K,), the decision.
    """

    entropies: torch.Tensor
    selected: torch.Tensor
    logits: torch.Tensor
    marginal: torch.Tensor
    share: torch.Tensor
    cached: torch.Tensor
    prototypes: torch.Tensor
    of_cache: torch.Tensor
    loss: torch.Tensor
    alignment: torch.Tensor
    gradients: tuple[torch.Tensor, torch.Tensor]
    residuals: tuple[torch.Tensor, torch.Tensor]
    after: torch.Tensor


class DpeStream:
    """The text prototypes and the cache, as they change from video to video.

    Attributes:
        texts: float32 (K, D), the text prototypes; running means, not normalised.
        updates: int64 (), how often they have been moved.
        cache: The most confident videos, their doubt in nats over log2(K).
    """

    def __init__(self, classes: PromptedClasses, options: DpeConfig, _: Shared) -> None:
        self._classes = classes
        self._options = options
        self.texts = classes.initial_features
        self.updates = torch.zeros((), dtype=torch.int64)
        self.cache = ConfidentCache.empty(len(classes), options.capacity, self.texts)

    def decide(self, video: VideoFeatures) -> Decision:
        """Caches a video, and decides under the prototypes that it moves.

        Raises:
            VideoError: Some logits are not finite (stage ``adapt``); prototypes and cache are as they were.
        """
        before = evaluation_logits(video, self._classes)
        with unless_it_fails(self):
            found = self.see(with_plain_view(video), torch.atleast_2d(video.evaluation))
            loss = (found.loss + self._options.alignment * found.alignment)[None].cpu()
            return Decision(before.cpu(), found.after.cpu(), found.entropies.cpu(), found.selected.cpu(), loss)

    def see(self, views: torch.Tensor, evaluation: torch.Tensor) -> Evolution:
        """Takes a video into the prototypes.

        Args:
            views: float32 (V, D), its views, with the evaluation view in front.
            evaluation: float32 (E, D), the evaluation view, or several.

        Raises:
            VideoError: Some logits are not finite (stage ``adapt``); prototypes and cache are as they were.
        """
        options = self._options
        views = views[:1] if options.tuned_on == "evaluation" else views
        of_texts = torch.zeros_like(self.texts, requires_grad=True)
        with torch.enable_grad(), exact_float32():
            logits = self._classes.logits(views, normalize(self.texts + of_texts, dim=-1))
            entropies = entropy(logits.detach())
            require_finite(entropies, "of the views")
            selected = select_confident(entropies, options.confidence)
            # The mean feature is not normalised again: it is shorter where the views disagree.
            mean, feature = logits[selected].mean(dim=0), views[selected].mean(dim=0)
            marginal = marginal_entropy(logits.detach()[selected])
            share = share_of_doubt(marginal, len(mean))
            cache = self.cache.copy()
            cache.offer(int(mean.argmax()), feature, share)
            cached = cache.counts.nonzero()[:, 0]
            prototypes = cache.keys[cached].sum(dim=1) / cache.counts[cached, None]
            of_images = torch.zeros_like(prototypes, requires_grad=True)
            moved, images = normalize(self.texts + of_texts, dim=-1), normalize(prototypes + of_images, dim=-1)
            of_cache = self._of_cache(feature[None], images, cached)[0]
            loss = entropy(mean + of_cache)
            likeness = images @ moved[cached].mT / options.temperature
            alignment = cross_entropy(likeness, torch.arange(len(cached), device=likeness.device))
            for_texts, for_images = torch.autograd.grad(loss + options.alignment * alignment, (of_texts, of_images))
        # AdamW's first step: both its means are the gradient's own, and weights that are zero do not decay.
        residuals = (
            -options.text_lr * for_texts / (for_texts.abs() + options.eps),
            -options.image_lr * for_images / (for_images.abs() + options.eps),
        )
        moved, images = normalize(self.texts + residuals[0], dim=-1), normalize(prototypes + residuals[1], dim=-1)
        if options.decision == "selected":
            again = self._classes.logits(views, moved)
            chosen = select_confident(entropy(again), options.confidence)
            after = again[chosen].mean(dim=0) + self._of_cache(views[chosen].mean(dim=0)[None], images, cached)[0]
        else:
            after = averaged(self._classes.logits(evaluation, moved) + self._of_cache(evaluation, images, cached))
        require_finite(after, "after adaptation")
        self.cache = cache
        if float(share_of_doubt(entropy(after), len(after))) < options.sure_below:
            self.updates = self.updates + 1
            n = int(self.updates)
            self.texts = self.texts * (n / (n + 1)) + moved / (n + 1)
        return Evolution(
            entropies,
            selected,
            mean.detach(),
            marginal,
            share,
            cached,
            prototypes,
            of_cache.detach(),
            loss.detach(),
            alignment.detach(),
            (for_texts, for_images),
            residuals,
            after,
        )

    def _of_cache(self, features: torch.Tensor, images: torch.Tensor, cached: torch.Tensor) -> torch.Tensor:
        """(E, K): alpha exp(-beta (1 - <feature, prototype>)) of features (E, D); 0 for classes that have none."""
        near = self._options.weight * affinities(features, images, self._options.sharpness).mT
        return near.new_zeros(len(features), len(self._classes)).scatter(1, cached.expand(len(features), -1), near)

    def state(self) -> dict[str, torch.Tensor]:
        """Text prototypes, how often they moved, and the cache."""
        return {"texts": self.texts, "updates": self.updates, **state_of(self.cache, "cache/")}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        self.texts = state["texts"].to(self.texts, copy=True)
        self.updates = state["updates"].to(self.updates, copy=True)
        self.cache = restored(self.cache, state, "cache/")


METHOD = stream_method(
    "dpe",
    "prototypes of texts and images that evolve from video to video",
    DpeStream,
    DpeConfig,
    needs_views=True,
    unfit=unfit_for_online_texts,
    changes="a cache, text prototypes",
    cost="a gradient over the prototypes",
    source="Zhang et al., NeurIPS 2024",
    reference="zhang2024dpe",
)
