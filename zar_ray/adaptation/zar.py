"""ZAR: tunes the context on a video's own confident views, then classifies it (DESIGN.md, "ZAR, exactly", 6 to 10).

This is the rule as one reads it, a video at a time. Jobs run `zar_ray.adaptation.zar_batched`, which is held to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from zar_ray.adaptation.base import Decision, Fusion, Method, VideoFeatures, averaged, entropy, require_finite
from zar_ray.adaptation.fusion import unfit_for_fusion
from zar_ray.adaptation.selection import Selection, doubt, select_confident
from zar_ray.adaptation.zar_batched import adapt_zar_batch
from zar_ray.errors import VideoError
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options

Loss = Literal["mean_probability", "mean_entropy"]


class ZarConfig(Options):
    """ZAR's update (DESIGN.md, "ZAR, exactly", 5 and 7 to 10), and its relatives."""

    confidence: float = Field(
        default=0.8, gt=0, le=1, description="rho, share of views, lowest entropy first, that are used."
    )
    steps: int = Field(default=1, ge=1, description="AdamW steps a video.")
    lr: float = Field(default=0.005, gt=0, description="Learning rate of the context.")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's betas.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(
        default=0.01, ge=0, description="AdamW's weight decay, which applies to the context too."
    )
    selection: Selection = Field(
        default="entropy",
        description="What makes a view confident: low entropy, or a wide margin between its two likeliest classes.",
    )
    loss: Loss = Field(
        default="mean_probability",
        description="The entropy of the selected views' mean probability, or the mean of their entropies.",
    )
    decision: Literal["evaluation", "selected"] = Field(
        default="evaluation",
        description="What is classified under the tuned context: the evaluation view, or the mean of those selected.",
    )
    fusion: Fusion = Field(
        default="embedding",
        description="Where the frames of a view become one: their embeddings; nowhere, each image being a view (image);"
        " or their logits (decision).",
    )


@dataclass(frozen=True, eq=False)
class TuningStep:
    """One step of the optimiser.

    Attributes:
        loss: float32 (), before the step.
        gradient: float32 (L, W), of the loss with respect to the context, before the step.
        context: float32 (L, W), after the step.
    """

    loss: torch.Tensor
    gradient: torch.Tensor
    context: torch.Tensor


def adapt_zar(features: VideoFeatures, classes: PromptedClasses, options: ZarConfig) -> Decision:
    """Tunes a fresh context on the video's most confident views and classifies its evaluation view.

    Args:
        features: The video, with at least one view, on the model's device.
        classes: The candidate classes.
        options: Selection, loss, decision, steps and AdamW's settings.

    Returns:
        The decision before and after, with entropies, selection and losses.

    Raises:
        VideoError: There are no views, or some logits are not finite (stage ``adapt``).
    """
    if not len(features.views):
        raise VideoError("ZAR needs views, and the plan has none", stage="adapt")
    before = averaged(classes.logits(features.evaluation, classes.initial_features))
    view_logits = classes.logits(features.views, classes.initial_features)
    require_finite(before, "before adaptation")
    require_finite(view_logits, "of the views")

    selected = select_confident(doubt(view_logits, options.selection), options.confidence)
    steps = list(tuning_steps(features.views[selected], classes, options))
    decided = features.evaluation if options.decision == "evaluation" else features.views[selected]
    with torch.no_grad():
        after = averaged(classes.logits(decided, classes.features(steps[-1].context)))
    require_finite(after, "after adaptation")
    return Decision(
        logits_before=before.cpu(),
        logits_after=after.cpu(),
        view_entropies=entropy(view_logits).cpu(),
        selected=selected.cpu(),
        losses=torch.stack([step.loss for step in steps]).cpu(),
    )


def tuned_features(features: VideoFeatures, classes: PromptedClasses, options: ZarConfig) -> torch.Tensor:
    """The classes' text features under the context that `adapt_zar` tunes for a video.

    Args:
        features: The video, with at least one view, on the model's device.
        classes: The candidate classes.
        options: Confidence fraction, steps and AdamW's settings.

    Returns:
        float32 (K, D), L2-normalised.
    """
    view_logits = classes.logits(features.views, classes.initial_features)
    selected = select_confident(doubt(view_logits, options.selection), options.confidence)
    *_, last = tuning_steps(features.views[selected], classes, options)
    with torch.no_grad():
        return classes.features(last.context)


def marginal_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the mean probability of some views, in nats, in log space: ZAR's loss.

    Args:
        logits: float32 (S, K).

    Returns:
        float32 (), differentiable.
    """
    # The logarithm of the mean of the softmaxes is again a vector of (normalised) logits.
    return entropy(logits.log_softmax(dim=-1).logsumexp(dim=0))


def mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean of some views' entropies, in nats: each view has a loss of its own.

    Args:
        logits: float32 (S, K).

    Returns:
        float32 (), differentiable.
    """
    return entropy(logits).mean()


LOSSES: Mapping[Loss, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean_probability": marginal_entropy,
    "mean_entropy": mean_entropy,
}


def tuning_steps(views: torch.Tensor, classes: PromptedClasses, options: ZarConfig) -> Iterator[TuningStep]:
    """Runs AdamW on a fresh context, one item a step.

    Args:
        views: float32 (S, D), L2-normalised: the selected views.
        classes: The candidate classes; their own context stays as it is.
        options: Loss, steps and AdamW's settings.

    Yields:
        What each step saw and did.
    """
    context = classes.initial_context.clone().requires_grad_()
    optimiser = torch.optim.AdamW(
        [context], lr=options.lr, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay
    )
    for _ in range(options.steps):
        with torch.enable_grad(), exact_float32():
            loss = LOSSES[options.loss](classes.logits(views, classes.features(context)))
            (gradient,) = torch.autograd.grad(loss, context)
        context.grad = gradient
        optimiser.step()
        yield TuningStep(loss.detach(), gradient, context.detach().clone())


METHOD = Method(
    "zar",
    "prompt tuning",
    lambda videos, classes, options, _: adapt_zar_batch(videos, classes, options),
    options=ZarConfig,
    needs_views=True,
    updates="context",
    fusion=lambda options: options.fusion,
    unfit=lambda model, options: unfit_for_fusion(model, options.fusion),
)
