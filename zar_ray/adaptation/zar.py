"""ZAR: tunes the context on a video's own confident views, then classifies it (DESIGN.md, "ZAR, exactly", 6 to 10).

This is the rule as one reads it, a video at a time. Jobs run `zar_ray.adaptation.zar_batched`, which is held to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from zar_ray.adaptation.base import Decision, VideoFeatures, averaged, entropy, require_finite
from zar_ray.adaptation.options import Loss, Selection, ZarConfig
from zar_ray.errors import VideoError
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses


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


def count_confident(views: int, fraction: float) -> int:
    """How many views are selected: floor(fraction·views), at least one.

    The product is floored as the floating-point number it is, as in the reference implementation of TPT: 0.29 of
    100 is 28.999999999999996 there, so 28.
    """
    return max(1, int(views * fraction))


def doubt(logits: torch.Tensor, selection: Selection) -> torch.Tensor:
    """How little confident views are: their entropy in nats, or their negative `margin`.

    Args:
        logits: float32 (..., V, K).
        selection: Which.

    Returns:
        float32 (..., V).
    """
    return entropy(logits) if selection == "entropy" else -margin(logits)


def margin(logits: torch.Tensor) -> torch.Tensor:
    """How much more probable the likeliest class is than the next (Scheffer et al., IDA 2001, on active learning).

    Args:
        logits: (..., K).

    Returns:
        (...), in [0, 1]; of a single class its probability, 1.
    """
    best = logits.softmax(dim=-1).topk(min(2, logits.shape[-1]), dim=-1).values
    return best[..., 0] if best.shape[-1] == 1 else best[..., 0] - best[..., 1]


def select_confident(doubts: torch.Tensor, fraction: float) -> torch.Tensor:
    """The views of least `doubt`, `count_confident` of them; equal ones in the views' order.

    Args:
        doubts: float32 (V,).
        fraction: The confidence fraction, in (0, 1].

    Returns:
        int64 (S,), rows of `doubts`, the most confident first.
    """
    return doubts.argsort(stable=True)[: count_confident(len(doubts), fraction)]


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
