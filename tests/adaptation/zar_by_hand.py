"""ZAR as one reads it, a video at a time (DESIGN.md, "ZAR, exactly", 6 to 10): what the batched rule is held to."""

from __future__ import annotations

import torch

from zar_ray.adaptation.base import Decision, averaged, doubt, entropy, require_finite, select_confident
from zar_ray.adaptation.zar import LOSSES
from zar_ray.errors import VideoError


def adapt_zar(features, classes, options):
    """Tunes a fresh context on the video's most confident views and classifies its evaluation view."""
    if not len(features.views):
        raise VideoError("ZAR needs views, and the plan has none", stage="adapt")
    before = averaged(classes.logits(features.evaluation, classes.initial_features))
    view_logits = classes.logits(features.views, classes.initial_features)
    require_finite(before, "before adaptation")
    require_finite(view_logits, "of the views")
    selected = select_confident(doubt(view_logits, options.selection), options.confidence)
    context, losses = tune(features.views[selected], classes, options)
    decided = features.evaluation if options.decision == "evaluation" else features.views[selected]
    with torch.no_grad():
        after = averaged(classes.logits(decided, classes.features(context)))
    require_finite(after, "after adaptation")
    return Decision(before, after, entropy(view_logits), selected, losses)


def tune(views, classes, options):
    """AdamW on a fresh context: the context after all steps, and the losses before each of them."""
    context = classes.initial_context.clone().requires_grad_()
    optimiser = torch.optim.AdamW(
        [context], lr=options.lr, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay
    )
    losses = []
    for _ in range(options.steps):
        with torch.enable_grad():
            loss = LOSSES[options.loss](classes.logits(views, classes.features(context)))
            (context.grad,) = torch.autograd.grad(loss, context)
        optimiser.step()
        losses.append(loss.detach())
    return context.detach(), torch.stack(losses)
