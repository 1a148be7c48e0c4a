"""ZAR: tunes the context on a video's own confident views, then classifies it (DESIGN.md, "ZAR, exactly", 6 to 10).

Contexts are independent of each other, so B videos are one problem with one more axis. The first step of every video
starts from the same context, whose text features and trail `PromptedClasses` keeps: with one step, a video costs one
backward and one forward pass of the text tower.

With `stream` a video starts from the context that the one before has left: the online prompt tuning of Xiao et al.
("DynaPrompt", ICLR 2025), in whose code each sample's AdamW is a fresh one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from zar_ray.adaptation.base import (
    Decision,
    Fusion,
    Method,
    Outcome,
    Selection,
    Shared,
    VideoFeatures,
    averaged,
    count_confident,
    decisions,
    doubt,
    entropy,
)
from zar_ray.errors import NoRoomError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.fitting import MORE_MEMORY
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Betas, Options, option
from zar_ray.video.pixels import to_device

# Bounds the memory of a pass of the text tower with its graph: about 5 GB in a tower of 12 layers and width 512.
_TOKENS_AT_ONCE = 16_384

Loss = Literal["mean_probability", "mean_entropy"]

Objective = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Losses (B,) of a step: of its number, from 0, the logits (B, S, K) of the selected views, the text features (B, K, D)
that gave them, and what is no view, bool (B, S, 1), or None."""

Decide = Callable[[VideoFeatures, torch.Tensor], torch.Tensor]
"""A video's logits (K,) by the text features (K, D) of its tuned context."""


class ZarConfig(Options):
    """ZAR's update (DESIGN.md, "ZAR, exactly", 5 and 7 to 10), and its relatives."""

    stream: bool = option(False, "Start each video from the context that the one before has left; see --order.")
    confidence: float = option(0.8, "rho, share of views, lowest entropy first, that are used.", gt=0, le=1)
    steps: int = option(1, "AdamW steps a video.", ge=1)
    lr: float = option(0.005, "Learning rate of the context.", gt=0)
    betas: Betas = option((0.9, 0.999), "AdamW's betas.")
    eps: float = option(1e-8, "AdamW's epsilon.", gt=0)
    weight_decay: float = option(0.01, "AdamW's weight decay, which applies to the context too.", ge=0)
    selection: Selection = option(
        "entropy", "What makes a view confident: low entropy, or a wide margin between its two likeliest classes."
    )
    loss: Loss = option(
        "mean_probability", "The entropy of the selected views' mean probability, or the mean of their entropies."
    )
    decision: Literal["evaluation", "selected"] = option(
        "evaluation", "What is classified under the tuned context: the evaluation view, or the mean of those selected."
    )
    fusion: Fusion = option(
        "embedding",
        "Where the frames of a view become one: their embeddings; nowhere, each image being a view (image);"
        " or their logits (decision).",
    )


@dataclass(frozen=True, eq=False)
class Start:
    """A context that tuning starts from, and what was made of it by one pass.

    Attributes:
        context: float32 (L, W).
        features: float32 (K, D), its text features.
        gradients: Takes gradients (B, K, D) with respect to these back to it, (B, L, W).
    """

    context: torch.Tensor
    features: torch.Tensor
    gradients: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def untuned(cls, classes: PromptedClasses) -> Start:
        """The classes' own context, whose pass serves all videos."""
        return cls(classes.initial_context, classes.initial_features, classes.initial_gradients)

    @classmethod
    def at(cls, context: torch.Tensor, classes: PromptedClasses) -> Start:
        """Any context, of which the gradients of one video (B = 1) can be asked once."""
        with torch.enable_grad(), exact_float32():
            own = context.detach().clone().requires_grad_()
            features = classes.features(own)
        return cls(own.detach(), features.detach(), lambda given: torch.autograd.grad(features, own, given[0])[0][None])


@dataclass(frozen=True, eq=False)
class _Batch:
    """B videos side by side, with the most confident views of each under the context at the start, up to S.

    Attributes:
        counts: How many of up to V views each has.
        evaluation: float32 (B, E, D), the evaluation views.
        logits: float32 (B, V, K), of all views under that context.
        entropies: float32 (B, V), infinite where a video has no such view.
        order: int64 (B, V), views by rising doubt.
        chosen: Views selected, a number a video.
        views: float32 (B, S, D), the selected views.
        absent: bool (B, S, 1), where a video has fewer than S.
    """

    counts: list[int]
    evaluation: torch.Tensor
    logits: torch.Tensor
    entropies: torch.Tensor
    order: torch.Tensor
    chosen: list[int]
    views: torch.Tensor
    absent: torch.Tensor

    @classmethod
    def of(cls, videos: Sequence[VideoFeatures], classes: PromptedClasses, options: ZarConfig, start: Start) -> _Batch:
        views, counts = (
            pad_sequence([video.views for video in videos], batch_first=True),
            [len(v.views) for v in videos],
        )
        evaluation = torch.stack([torch.atleast_2d(video.evaluation) for video in videos])
        logits, device = classes.logits(views, start.features), views.device
        chosen = [count_confident(count, options.confidence) for count in counts]
        places = torch.arange(views.shape[1], device=device)
        here, taken = to_device([np.array(counts), np.array(chosen)], device)
        missing = places >= here[:, None]
        entropies = entropy(logits).masked_fill(missing, float("inf"))
        doubts = entropies if options.selection == "entropy" else doubt(logits, options.selection)
        order = doubts.masked_fill(missing, float("inf")).argsort(dim=1, stable=True)
        most = max(chosen)
        rows = order[:, :most, None].expand(-1, -1, views.shape[2])
        absent = places[:most, None] >= taken[:, None, None]
        return cls(counts, evaluation, logits, entropies, order, chosen, views.gather(1, rows), absent)


def adapt_zar_batch(
    videos: Sequence[VideoFeatures],
    classes: PromptedClasses,
    options: ZarConfig,
    objective: Objective | None = None,
    decide: Decide | None = None,
) -> list[Outcome]:
    """Tunes a fresh context for each video, with any numbers of views, and classifies each under its own.

    Args:
        videos: The videos.
        classes: The classes, with a context that can be tuned.
        options: The update.
        objective: What a step lowers; by default the options' loss.
        decide: What decides under the tuned context; by default the options' decision.

    Returns:
        A decision a video, in order; an error in place of one that has no views, logits that are not finite, or not
        enough memory, as few videos as may pass together.
    """
    return [outcome for outcome, _ in _tuned(videos, classes, options, objective, decide)]


def _tuned(
    videos: Sequence[VideoFeatures],
    classes: PromptedClasses,
    options: ZarConfig,
    objective: Objective | None = None,
    decide: Decide | None = None,
    context: torch.Tensor | None = None,
) -> Iterator[tuple[Outcome, torch.Tensor]]:
    """The outcomes of `adapt_zar_batch`, with each video's context (L, W) after it, empty where there is none.

    It starts from the untuned context, or, of a single video, from another one.
    """

    def together(part: Sequence[VideoFeatures]) -> Sequence[tuple[Outcome, torch.Tensor]]:
        with classes.counted.unless_it_fails():
            start = Start.untuned(classes) if context is None else Start.at(context, classes)
            return _adapt_together(part, classes, options, objective, decide, start)

    alone = (
        f"out of memory tuning the context of one video over {len(classes)} classes; {MORE_MEMORY}, or fewer classes"
    )
    for _, made in classes.model.text_passes.each(videos, _TOKENS_AT_ONCE, together, classes.tokens):
        yield from [(NoRoomError(alone, "adapt"), torch.empty(0))] if made is None else made


def _adapt_together(
    videos: Sequence[VideoFeatures],
    classes: PromptedClasses,
    options: ZarConfig,
    objective: Objective | None,
    decide: Decide | None,
    start: Start,
) -> list[tuple[Outcome, torch.Tensor]]:
    outcomes: list[Outcome] = [VideoError("ZAR needs views, and the plan has none", stage="adapt") for _ in videos]
    contexts = [torch.empty(0) for _ in videos]
    with_views = [number for number, video in enumerate(videos) if len(video.views)]
    if not with_views:
        return list(zip(outcomes, contexts, strict=True))
    batch = _Batch.of([videos[number] for number in with_views], classes, options, start)
    before = classes.logits(batch.evaluation, classes.initial_features)
    steps = list(tuning_steps(batch.views, classes, options, batch.absent, objective, start))
    with torch.no_grad():
        text = classes.features(steps[-1].contexts)
        if decide is not None:
            after = torch.stack(
                [decide(videos[number], own) for number, own in zip(with_views, text, strict=True)]
            ).cpu()
        elif options.decision == "evaluation":
            after = _decisions(classes.logits(batch.evaluation, text))
        else:
            logits = classes.logits(batch.views, text)
            after = _decisions([one[:count] for one, count in zip(logits, batch.chosen, strict=True)])
    before, entropies, order = _decisions(before), batch.entropies.cpu(), batch.order.cpu()
    # What is not finite in one video stays in its rows; of logits that are not, the entropy is no number.
    fine = {
        "before adaptation": torch.isfinite(before).all(dim=1).tolist(),
        "of the views": (~torch.isnan(entropies)).all(dim=1).tolist(),
        "after adaptation": torch.isfinite(after).all(dim=1).tolist(),
    }
    losses = torch.stack([step.losses for step in steps]).cpu()
    for row, (number, count) in enumerate(zip(with_views, batch.counts, strict=True)):
        wrong = next((when for when, of_videos in fine.items() if not of_videos[row]), None)
        if wrong is not None:
            outcomes[number] = VideoError(f"logits {wrong} are not finite", stage="adapt")
            continue
        contexts[number] = steps[-1].contexts[row]
        outcomes[number] = Decision(
            logits_before=before[row],
            logits_after=after[row],
            view_entropies=entropies[row, :count],
            selected=order[row, : batch.chosen[row]],
            losses=losses[:, row],
        )
    return list(zip(outcomes, contexts, strict=True))


def _decisions(logits: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, K), on the CPU, of the views (n, K) that each of B videos is classified by."""
    if isinstance(logits, torch.Tensor) and logits.shape[1] == 1:
        return logits[:, 0].cpu()
    return torch.stack([averaged(one) for one in logits]).cpu()


@dataclass(frozen=True, eq=False)
class TuningStep:
    """One step of the optimiser, for B videos.

    Attributes:
        losses: float32 (B,), before the step.
        gradients: float32 (B, L, W), of each loss with respect to its video's context, before the step.
        contexts: float32 (B, L, W), after the step.
    """

    losses: torch.Tensor
    gradients: torch.Tensor
    contexts: torch.Tensor


def tuning_steps(
    views: torch.Tensor,
    classes: PromptedClasses,
    options: ZarConfig,
    absent: torch.Tensor | None = None,
    objective: Objective | None = None,
    start: Start | None = None,
) -> Iterator[TuningStep]:
    """Runs AdamW on a fresh context for each of B videos, one item a step; the classes' own stays as it is.

    The selected views are float32 (B, S, D), L2-normalised; `absent`, bool (B, S, 1), says where a video has no such
    view, with None nowhere. Each step lowers the `objective`, by default the options' loss. All begin at the `start`,
    by default the untuned context.
    """
    count, lose = len(views), _by_views(options.loss) if objective is None else objective
    start = Start.untuned(classes) if start is None else start
    contexts = start.context.expand(count, -1, -1).clone().requires_grad_()
    # AdamW works element by element: one tensor of all contexts is tuned as each would be alone.
    optimiser = torch.optim.AdamW(
        [contexts],
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
    for step in range(options.steps):
        with torch.enable_grad(), exact_float32():
            if step == 0:
                text = start.features.expand(count, -1, -1).clone().requires_grad_()
                losses = lose(step, classes.logits(views, text), text, absent)
                (of_text,) = torch.autograd.grad(losses.sum(), text)
                gradients = start.gradients(of_text)
            else:
                text = classes.features(contexts)
                losses = lose(step, classes.logits(views, text), text, absent)
                (gradients,) = torch.autograd.grad(losses.sum(), contexts)
        contexts.grad = gradients.contiguous()  # the fused step reads it as it lies
        optimiser.step()
        yield TuningStep(losses.detach(), gradients, contexts.detach().clone())


def tuned_features(features: VideoFeatures, classes: PromptedClasses, options: ZarConfig) -> torch.Tensor:
    """float32 (K, D), L2-normalised: text features under the context tuned for a video with at least one view."""
    start = Start.untuned(classes)
    *_, last = tuning_steps(_Batch.of([features], classes, options, start).views, classes, options, start=start)
    with torch.no_grad():
        return classes.features(last.contexts[0])


class ZarStream:
    """The context, as it goes on from video to video."""

    def __init__(self, classes: PromptedClasses, options: ZarConfig, _: Shared) -> None:
        self._classes = classes
        self._options = options
        self._context = classes.initial_context

    def decide(self, video: VideoFeatures) -> Decision:
        """Tunes the context further on a video's views, and classifies it under that.

        Raises:
            VideoError: See `adapt_zar_batch`; the context is as it was.
        """
        # What the untuned context's pass has left is there for all videos that start from it.
        moved = not torch.equal(self._context, self._classes.initial_context)
        context = self._context if moved else None
        ((outcome, tuned),) = _tuned([video], self._classes, self._options, context=context)
        if isinstance(outcome, VideoError):
            raise outcome
        self._context = tuned
        return outcome

    def state(self) -> dict[str, torch.Tensor]:
        """The context."""
        return {"context": self._context}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        self._context = state["context"].to(self._context, copy=True)


def adapt_zar(
    videos: Sequence[VideoFeatures], classes: PromptedClasses, options: ZarConfig, shared: Shared
) -> list[Outcome]:
    """Tunes a fresh context for each video, or one for all that goes on from video to video."""
    if options.stream:
        return decisions(videos, ZarStream(classes, options, shared).decide)
    return adapt_zar_batch(videos, classes, options)


def marginal_entropy(logits: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
    """Entropy of the mean probability of some views (..., S, K), in nats, in log space: ZAR's loss, differentiable.

    `absent`, bool (..., S, 1), says what is no view; with None nothing is.
    """
    # The logarithm of the mean of the softmaxes is again a vector of (normalised) logits.
    log_p = logits.log_softmax(dim=-1)
    if absent is not None:
        log_p = log_p.masked_fill(absent, float("-inf"))
    return entropy(log_p.logsumexp(dim=-2))


def mean_entropy(logits: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of some views' entropies, in nats: each view has a loss of its own; see `marginal_entropy`."""
    entropies = entropy(logits)
    if absent is None:
        return entropies.mean(dim=-1)
    return entropies.masked_fill(absent[..., 0], 0).sum(dim=-1) / (~absent[..., 0]).sum(dim=-1)


LOSSES: Mapping[Loss, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "mean_probability": marginal_entropy,
    "mean_entropy": mean_entropy,
}


def _by_views(loss: Loss) -> Objective:
    """What the views alone say, step by step the same."""
    return lambda _, logits, text, absent: LOSSES[loss](logits, absent)


def _unfit(model: ClipModel, options: ZarConfig) -> str | None:
    """Why the level at which frames become one cannot be chosen for a model; None where it can."""
    if options.fusion == "embedding" or (model.frame_independent and model.averages_frames):
        return None
    learnt, together = "has learnt to make one embedding of a view's frames", "encodes the frames of a view together"
    how = learnt if model.frame_independent else together
    return f"it {how}, and fusion {options.fusion} takes them one by one"


METHOD = Method(
    "zar",
    "prompt tuning",
    adapt_zar,
    options=ZarConfig,
    needs_views=True,
    updates="context",
    fusion=lambda options: options.fusion,
    unfit=_unfit,
    is_stream=lambda options: options.stream,
    open_stream=ZarStream,
    changes="the context",
    cost="a step back through the text tower, and a pass of it",
    source="Liang et al., Electronic Imaging 2025",
    reference="liang2025zar",
)
