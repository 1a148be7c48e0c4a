"""What every method gets and gives, and the entropy they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from zar_ray.config import ZarConfig
from zar_ray.errors import VideoError
from zar_ray.models.text import PromptedClasses


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """One video, encoded.

    Attributes:
        views: float32 (V, D), L2-normalised, one row a view; V may be 0 for methods that need none.
        evaluation: float32 (D,), L2-normalised: the evaluation view, which is classified; (E, D) where a decision is
            the mean over several.
    """

    views: torch.Tensor
    evaluation: torch.Tensor


@dataclass(frozen=True, eq=False)
class Decision:
    """What a method decided about a video; all tensors on the CPU.

    Attributes:
        logits_before: float32 (K,), of the evaluation view without adaptation.
        logits_after: float32 (K,), of the evaluation view with it; the decision.
        view_entropies: float32 (V,), nats, before adaptation; None for methods that look at no views.
        selected: int64 (S,), the views that took part, by rising entropy; None for methods that select none.
        losses: float32 (steps,), the loss at the start of each step; None for methods without steps.
    """

    logits_before: torch.Tensor
    logits_after: torch.Tensor
    view_entropies: torch.Tensor | None = None
    selected: torch.Tensor | None = None
    losses: torch.Tensor | None = None


# What a method has to say of a video; an error of one leaves the others of its batch alone.
Outcome = Decision | VideoError


class MethodOptions(Protocol):
    """The part of a run's options that methods read."""

    @property
    def zar(self) -> ZarConfig:
        """ZAR's update."""
        ...


@dataclass(frozen=True)
class Method:
    """A test-time rule.

    Attributes:
        name: What it is called in options and results.
        description: One line for people.
        needs_views: Whether it looks at other views than the evaluation view.
        settings: Names of the option groups that its numbers depend on, besides the views and the model.
        adapt: The rule itself: several videos to an outcome each, in order.
    """

    name: str
    description: str
    needs_views: bool
    settings: tuple[str, ...]
    adapt: Callable[[Sequence[VideoFeatures], PromptedClasses, MethodOptions], list[Outcome]]


def one_by_one(
    rule: Callable[[VideoFeatures, PromptedClasses, MethodOptions], Decision],
) -> Callable[[Sequence[VideoFeatures], PromptedClasses, MethodOptions], list[Outcome]]:
    """Makes a method's rule of one that decides about a single video."""

    def adapt(videos: Sequence[VideoFeatures], classes: PromptedClasses, options: MethodOptions) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for video in videos:
            try:
                outcomes.append(rule(video, classes, options))
            except VideoError as error:
                outcomes.append(error)
        return outcomes

    return adapt


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the softmax over the last axis, in nats, computed in log space.

    Args:
        logits: (..., K), finite.

    Returns:
        (...), of the same type.
    """
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def averaged(logits: torch.Tensor) -> torch.Tensor:
    """The logits of a decision over several evaluation views: the logarithm of the mean of their probabilities.

    Args:
        logits: (E, K); or (K,), which stays as it is, as does a single view.

    Returns:
        (K,).
    """
    if logits.ndim == 1 or len(logits) == 1:
        return logits.reshape(-1)
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))


def require_finite(logits: torch.Tensor, when: str) -> None:
    """Refuses logits that are not numbers, which no rule could rank.

    Raises:
        VideoError: Some are not finite (stage ``adapt``); the message says `when`.
    """
    if not torch.isfinite(logits).all():
        raise VideoError(f"logits {when} are not finite", stage="adapt")
