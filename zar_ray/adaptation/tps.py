"""TPS: shifts the classes' text features for each video, by the entropy of its confident views.

Sui et al., "Just Shift It: Test-Time Prototype Shifting for Zero-Shot Generalization with Vision-Language Models", WACV
2025, section 3, as the authors' code computes it: TPT's loss and optimiser on one vector a class, which is added to the
normalised text feature. No gradient passes the text tower. View 0 is the evaluation view, which takes part and is
classified; every step selects anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import (
    Decision,
    Method,
    Shared,
    VideoFeatures,
    averaged,
    entropy,
    evaluation_logits,
    one_by_one,
    require_finite,
    select_confident,
    with_plain_view,
)
from zar_ray.adaptation.zar import marginal_entropy
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class TpsConfig(Options):
    """Class features that are shifted for each video (Sui et al., WACV 2025)."""

    confidence: float = option(0.1, "Share of views, lowest entropy first, that tune.", gt=0, le=1)
    steps: int = option(1, "AdamW steps a video.", ge=1)
    lr: float = option(0.005, "Learning rate of the shift.", gt=0)
    weight_decay: float = option(0.01, "AdamW's weight decay.", ge=0)
    per_class: bool = option(True, "Whether each class has a shift of its own, or all have one.")


@dataclass(frozen=True, eq=False)
class ShiftStep:
    """One step of the optimiser.

    Attributes:
        entropies: float32 (V,), nats, before the step.
        selected: int64 (S,), the views that tuned.
        loss: float32 (), before the step.
        gradient: float32 (K, D), or (D,) of one shift for all; of the loss.
        shift: The same shape, after the step.
    """

    entropies: torch.Tensor
    selected: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    shift: torch.Tensor


def shifting_steps(
    views: torch.Tensor, texts: torch.Tensor, classes: PromptedClasses, options: TpsConfig
) -> Iterator[ShiftStep]:
    """Runs AdamW on a fresh shift of text features (K, D), or (V, K, D) of each view, over views (V, D)."""
    shape = texts.shape[-2:] if options.per_class else texts.shape[-1:]
    shift = torch.zeros(shape, dtype=texts.dtype, device=texts.device, requires_grad=True)
    optimiser = torch.optim.AdamW([shift], lr=options.lr, weight_decay=options.weight_decay)
    for _ in range(options.steps):
        with torch.enable_grad(), exact_float32():
            logits = shifted_logits(views, texts, shift, classes)
            entropies = entropy(logits.detach())
            selected = select_confident(entropies, options.confidence)
            loss = marginal_entropy(logits[selected])
            (gradient,) = torch.autograd.grad(loss, shift)
        shift.grad = gradient
        optimiser.step()
        yield ShiftStep(entropies, selected, loss.detach(), gradient, shift.detach().clone())


def shifted_logits(
    views: torch.Tensor, texts: torch.Tensor, shift: torch.Tensor, classes: PromptedClasses
) -> torch.Tensor:
    """Logits (V, K) of views (V, D) under shifted text features, see `shifting_steps`."""
    moved = normalize(texts + shift, dim=-1)
    if moved.ndim == 2:
        return classes.logits(views, moved)
    return classes.logits(views[:, None], moved)[:, 0]


def adapt_tps(video: VideoFeatures, classes: PromptedClasses, options: TpsConfig, _: Shared) -> Decision:
    """Shifts the classes for one video, and decides about its evaluation view under them.

    Raises:
        VideoError: Some logits are not finite (stage ``adapt``).
    """
    before, rows = evaluation_logits(video, classes), with_plain_view(video)
    with torch.no_grad():
        texts, evaluation = classes.texts_for(rows), torch.atleast_2d(video.evaluation)
        of_evaluation = classes.texts_for(evaluation)
    own = classes.model.embedding_part(rows)
    steps = list(shifting_steps(own, texts, classes, options))
    require_finite(steps[0].entropies, "of the views")
    plain = classes.model.embedding_part(evaluation)
    after = averaged(shifted_logits(plain, of_evaluation, steps[-1].shift, classes))
    require_finite(after, "after adaptation")
    losses = torch.stack([step.loss for step in steps])
    return Decision(before.cpu(), after.cpu(), steps[0].entropies.cpu(), steps[0].selected.cpu(), losses.cpu())


METHOD = Method(
    "tps",
    "class features shifted for each video",
    one_by_one(adapt_tps),
    options=TpsConfig,
    needs_views=True,
    changes="a shift of each class's feature",
    cost="a gradient over the classes' features",
    source="Sui et al., WACV 2025",
    reference="sui2025tps",
)
