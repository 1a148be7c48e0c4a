"""ZAR for several videos at once: the same numbers as `zar_ray.adaptation.zar`, which is the one to read first.

Contexts are independent of each other, so B videos are one problem with one more axis. The first step of every video
starts from the same context, whose text features and graph `PromptedClasses` keeps: with one step, a video costs one
backward and one forward pass of the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from zar_ray.adaptation.base import Decision, Outcome, VideoFeatures, averaged, entropy
from zar_ray.adaptation.selection import count_confident, doubt
from zar_ray.errors import VideoError
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses

if TYPE_CHECKING:
    from zar_ray.adaptation.zar import Loss, ZarConfig

# Bounds the memory of a pass of the text tower with its graph: about 5 GB in a tower of 12 layers and width 512.
_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True, eq=False)
class _Batch:
    """B videos side by side.

    Attributes:
        views: float32 (B, V, D), zeros where a video has fewer than V views.
        counts: How many views each has.
        evaluation: float32 (B, E, D), the evaluation views.
    """

    views: torch.Tensor
    counts: list[int]
    evaluation: torch.Tensor

    @classmethod
    def of(cls, videos: Sequence[VideoFeatures]) -> _Batch:
        return cls(
            pad_sequence([video.views for video in videos], batch_first=True),
            [len(video.views) for video in videos],
            torch.stack([torch.atleast_2d(video.evaluation) for video in videos]),
        )

    def take(self, rows: list[int]) -> _Batch:
        return _Batch(self.views[rows], [self.counts[row] for row in rows], self.evaluation[rows])


@dataclass(frozen=True, eq=False)
class _Selection:
    """The most confident views of B videos, up to S each.

    Attributes:
        entropies: float32 (B, V), infinite where a video has no such view.
        order: int64 (B, V), views by rising doubt.
        counts: Views selected, a number a video.
        views: float32 (B, S, D), the selected views.
        absent: bool (B, S, 1), where a video has fewer than S.
    """

    entropies: torch.Tensor
    order: torch.Tensor
    counts: list[int]
    views: torch.Tensor
    absent: torch.Tensor


def adapt_zar_batch(videos: Sequence[VideoFeatures], classes: PromptedClasses, options: ZarConfig) -> list[Outcome]:
    """Tunes a fresh context for each video and classifies each under its own.

    Args:
        videos: The videos, with any numbers of views, on the model's device.
        classes: The candidate classes.
        options: Selection, loss, decision, steps and AdamW's settings.

    Returns:
        A decision a video, in order; an error in place of one that has no views or logits that are not finite.
    """
    at_once = max(1, _TOKENS_AT_ONCE // classes.tokens)
    parts = (videos[first : first + at_once] for first in range(0, len(videos), at_once))
    return [outcome for part in parts for outcome in _adapt_together(part, classes, options)]


def _adapt_together(videos: Sequence[VideoFeatures], classes: PromptedClasses, options: ZarConfig) -> list[Outcome]:
    outcomes: list[Outcome] = [VideoError("ZAR needs views, and the plan has none", stage="adapt") for _ in videos]
    with_views = [number for number, video in enumerate(videos) if len(video.views)]
    if not with_views:
        return outcomes
    batch = _Batch.of([videos[number] for number in with_views])
    before = classes.logits(batch.evaluation, classes.initial_features)
    of_views = classes.logits(batch.views, classes.initial_features)
    fine = _finite(before), _finite(of_views)
    usable = []
    for row, (number, before_fine, views_fine) in enumerate(zip(with_views, *fine, strict=True)):
        if before_fine and views_fine:
            usable.append(row)
        else:
            which = "of the views" if before_fine else "before adaptation"
            outcomes[number] = VideoError(f"logits {which} are not finite", stage="adapt")
    if not usable:
        return outcomes
    if len(usable) < len(with_views):
        batch, before, of_views = batch.take(usable), before[usable], of_views[usable]

    selection = _select(batch, of_views, options)
    contexts, losses = _tune(selection, classes, options)
    with torch.no_grad():
        after = _decide(batch, selection, classes.features(contexts), classes, options)
    before, after_fine = _decisions(before), _finite(after)
    entropies, order, losses = selection.entropies.cpu(), selection.order.cpu(), losses.cpu()
    for row, count in enumerate(batch.counts):
        number = with_views[usable[row]]
        if after_fine[row]:
            outcomes[number] = Decision(
                logits_before=before[row],
                logits_after=after[row],
                view_entropies=entropies[row, :count],
                selected=order[row, : selection.counts[row]],
                losses=losses[:, row],
            )
        else:
            outcomes[number] = VideoError("logits after adaptation are not finite", stage="adapt")
    return outcomes


def _finite(logits: torch.Tensor) -> list[bool]:
    """For each video, the first axis, whether all its logits are finite."""
    return torch.isfinite(logits).flatten(1).all(dim=1).tolist()


def _decisions(logits: torch.Tensor) -> torch.Tensor:
    """(B, E, K) of the evaluation views to (B, K), on the CPU."""
    return torch.stack([averaged(one) for one in logits]).cpu()


def _decide(
    batch: _Batch, selection: _Selection, text: torch.Tensor, classes: PromptedClasses, options: ZarConfig
) -> torch.Tensor:
    """(B, K), on the CPU: what the videos are under text features (B, K, D)."""
    if options.decision == "evaluation":
        return _decisions(classes.logits(batch.evaluation, text))
    logits = classes.logits(selection.views, text)
    return torch.stack([averaged(one[:count]) for one, count in zip(logits, selection.counts, strict=True)]).cpu()


def _select(batch: _Batch, logits: torch.Tensor, options: ZarConfig) -> _Selection:
    """Selects each video's most confident views by their logits (B, V, K) under the untuned context."""
    views, device = batch.views, batch.views.device
    counts = [count_confident(count, options.confidence) for count in batch.counts]
    places = torch.arange(views.shape[1], device=device)
    missing = places >= torch.tensor(batch.counts, device=device)[:, None]
    entropies = entropy(logits).masked_fill(missing, float("inf"))
    doubts = entropies if options.selection == "entropy" else doubt(logits, options.selection)
    order = doubts.masked_fill(missing, float("inf")).argsort(dim=1, stable=True)
    most = max(counts)
    rows = order[:, :most, None].expand(-1, -1, views.shape[2])
    absent = places[:most, None] >= torch.tensor(counts, device=device)[:, None, None]
    return _Selection(entropies, order, counts, views.gather(1, rows), absent)


def _tune(selection: _Selection, classes: PromptedClasses, options: ZarConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs AdamW on B fresh contexts.

    Returns:
        float32 (B, L, W), the tuned contexts, and float32 (steps, B), the losses before each step.
    """
    count, lose = len(selection.counts), _LOSSES[options.loss]
    contexts = classes.initial_context.expand(count, -1, -1).clone().requires_grad_()
    # AdamW works element by element: one tensor of all contexts is tuned as each would be alone.
    optimiser = torch.optim.AdamW(
        [contexts], lr=options.lr, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay
    )
    losses = []
    for step in range(options.steps):
        with torch.enable_grad(), exact_float32():
            if step == 0:
                text = classes.initial_features.expand(count, -1, -1).clone().requires_grad_()
                loss = lose(classes.logits(selection.views, text), selection.absent)
                (of_text,) = torch.autograd.grad(loss.sum(), text)
                contexts.grad = classes.initial_gradients(of_text)
            else:
                text = classes.features(contexts)
                loss = lose(classes.logits(selection.views, text), selection.absent)
                (contexts.grad,) = torch.autograd.grad(loss.sum(), contexts)
        optimiser.step()
        losses.append(loss.detach())
    return contexts.detach(), torch.stack(losses)


def _marginal_entropies(logits: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """`zar.marginal_entropy` of each video's views: (B, S, K), with bool (B, S, 1) for what is no view, to (B,)."""
    return entropy(logits.log_softmax(dim=-1).masked_fill(absent, float("-inf")).logsumexp(dim=1))


def _mean_entropies(logits: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """`zar.mean_entropy` of each video's views: (B, S, K), with bool (B, S, 1) for what is no view, to (B,)."""
    return entropy(logits).masked_fill(absent[..., 0], 0).sum(dim=1) / (~absent[..., 0]).sum(dim=1)


_LOSSES: Mapping[Loss, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean_probability": _marginal_entropies,
    "mean_entropy": _mean_entropies,
}
