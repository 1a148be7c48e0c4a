"""Both sides on the same inputs in turn, and what their numbers say of each other."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from sides import OurSide, Outcome, ReferenceSide

from zar_ray.adaptation.adapter import PlannedVideo
from zar_ray.adaptation.base import Decision, VideoFeatures
from zar_ray.adaptation.zar import marginal_entropy
from zar_ray.models.clip import ClipModel
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses

# Two classes this near, as a share of the logits' spread, may change places by rounding.
TIE = 1e-3

Inputs = Sequence[PlannedVideo | VideoFeatures]


@dataclass(frozen=True, eq=False)
class Pair:
    """The same videos through both sides.

    Attributes:
        count: Videos that ours ran.
        reference_count: The first so many of them, which the reference ran.
        reference: What it did; None where it was not asked.
        ours: What ours did.
    """

    count: int
    reference_count: int
    reference: Outcome | None
    ours: Outcome


@dataclass(frozen=True)
class Costs:
    """One side's costs a video, the mean of the videos it ran.

    Attributes:
        videos: How many it ran.
        encode_seconds: Cropping, normalising and encoding.
        adapt_seconds: Adaptation and decision.
        seconds: Everything.
        images: Images encoded.
        forward_tokens: Tokens run forward through the text tower.
        backward_tokens: Tokens run backward through it.
        peak_bytes: The most memory that a pass over one group of videos held above what was held before.
    """

    videos: int
    encode_seconds: float
    adapt_seconds: float
    seconds: float
    images: float
    forward_tokens: float
    backward_tokens: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Agreement:
    """How two sides' numbers differ, over the videos that both ran.

    Attributes:
        decided: Videos with decisions to compare.
        encoded: Videos with view features to compare.
        same_top1: Videos with the same first class, or whose first two classes tie (`TIE`).
        ties: Videos whose first two classes tie.
        same_selection: Videos of which the same views were selected.
        before: Largest difference of a logit before adaptation.
        after: Largest difference of a logit after it.
        after_to_spread: The largest difference after adaptation as a share of that video's highest logit less its
            lowest.
        views: Largest difference of a view feature.
    """

    decided: int
    encoded: int
    same_top1: int
    ties: int
    same_selection: int
    before: float
    after: float
    after_to_spread: float
    views: float


@dataclass(frozen=True)
class Spread:
    """A ratio and how far it goes from one group of videos to another."""

    of_means: float
    least: float
    median: float
    most: float


@dataclass(frozen=True)
class TextAgreement:
    """The text towers against each other on one video's selected views, relative to the largest number of each.

    Attributes:
        features: Largest difference of the untuned text features.
        gradient: Largest difference of the first step's gradient, as the engine's kept graph gives it.
        reference_rounding: How far the reference's gradient is from ours in float64, which rounds nothing that
            matters here.
        our_rounding: How far ours is from it.
    """

    features: float
    gradient: float
    reference_rounding: float
    our_rounding: float


def run_pairs(
    reference: ReferenceSide,
    ours: OurSide,
    inputs: Callable[[int], PlannedVideo | VideoFeatures],
    videos: int,
    batch: int,
    reference_videos: int,
    adapt: bool,
    watch_memory: bool,
) -> Iterator[Pair]:
    """Reference, ours, reference, ours …, a group of videos at a time.

    Args:
        reference: The reference.
        ours: Ours.
        inputs: Makes the video of a number; only one group is held at a time.
        videos: How many.
        batch: Videos a group, which ours takes together.
        reference_videos: The first so many go through the reference too.
        adapt: Whether to go beyond encoding.
        watch_memory: Whether to look at the memory too.
    """
    for first in range(0, videos, batch):
        group = [inputs(number) for number in range(first, min(videos, first + batch))]
        both = group[: max(0, reference_videos - first)]
        told = reference.run(both, adapt, watch_memory) if both else None
        yield Pair(len(group), len(both), told, ours.run(group, adapt, watch_memory))


def costs(outcomes: Sequence[tuple[Outcome, int]], watched: Sequence[Outcome]) -> Costs:
    """What videos cost one side.

    Args:
        outcomes: What it did, each with its number of videos: for the means.
        watched: Where its memory may have been watched.
    """
    videos = sum(count for _, count in outcomes)
    peaks = [outcome.peak_bytes for outcome in watched if outcome.peak_bytes is not None]

    def mean(name: str) -> float:
        return sum(getattr(outcome, name) for outcome, _ in outcomes) / videos

    return Costs(
        videos,
        mean("encode_seconds"),
        mean("adapt_seconds"),
        mean("seconds"),
        mean("images"),
        mean("forward_tokens"),
        mean("backward_tokens"),
        max(peaks) if peaks else None,
    )


def spread(pairs: Sequence[Pair], stage: str) -> Spread | None:
    """How many times faster ours is a video, in a stage; None where a side has no seconds for it.

    Args:
        pairs: The groups; those without a reference count for the mean alone.
        stage: An `Outcome`'s field of seconds.
    """
    told = [(pair.reference, pair.reference_count) for pair in pairs if pair.reference is not None]
    theirs = sum(getattr(outcome, stage) for outcome, _ in told) / max(1, sum(count for _, count in told))
    our = sum(getattr(pair.ours, stage) for pair in pairs) / sum(pair.count for pair in pairs)
    if not theirs or not our:
        return None
    ratios = [
        getattr(pair.reference, stage) / pair.reference_count / (getattr(pair.ours, stage) / pair.count)
        for pair in pairs
        if pair.reference is not None
    ]
    return Spread(theirs / our, min(ratios), statistics.median(ratios), max(ratios))


def agreement(pairs: Sequence[tuple[Outcome, Outcome]]) -> Agreement | None:
    """Compares what the second of each two outcomes says with the first; None where they ran no video in common."""
    decided = [two for one, other in pairs for two in zip(one.decisions, other.decisions, strict=False)]
    seen = [two for one, other in pairs for two in zip(one.features, other.features, strict=False)]
    if not decided and not seen:
        return None
    tied = [_is_tie(one) for one, _ in decided]
    after = [_difference(one.logits_after, other.logits_after) for one, other in decided]
    shares = [most / (_range(one.logits_after) or 1.0) for most, (one, _) in zip(after, decided, strict=True)]
    same = [int(one.logits_after.argmax()) == int(other.logits_after.argmax()) for one, other in decided]
    return Agreement(
        decided=len(decided),
        encoded=len(seen),
        same_top1=sum(equal or tie for equal, tie in zip(same, tied, strict=True)),
        ties=sum(tied),
        same_selection=sum(_selected(one) == _selected(other) for one, other in decided),
        before=max((_difference(one.logits_before, other.logits_before) for one, other in decided), default=0.0),
        after=max(after, default=0.0),
        after_to_spread=max(shares, default=0.0),
        views=max((_difference(one.views, other.views) for one, other in seen), default=0.0),
    )


def text_agreement(reference: ReferenceSide, ours: OurSide, views: torch.Tensor) -> TextAgreement:
    """Compares text features and the first gradient.

    Args:
        reference: The reference.
        ours: Ours, with the same classes.
        views: float32 (S, D), L2-normalised: selected views.
    """
    plain, classes, model = reference.reference, ours.classes, ours.model
    with torch.no_grad():
        features = plain.text_features(plain.initial_context)
    theirs, our = plain.gradient(views), our_gradient(classes, views)
    exact_model = ClipModel(copy.deepcopy(model.clip).double(), model.name, model.preprocessing, model.architecture)
    exact = our_gradient(PromptedClasses(exact_model, classes.class_names, ours.options.context), views.double())
    largest = float(exact.abs().max())
    return TextAgreement(
        features=_difference(features, classes.initial_features) / float(features.abs().max()),
        gradient=_difference(theirs, our) / largest,
        reference_rounding=_difference(theirs, exact) / largest,
        our_rounding=_difference(our, exact) / largest,
    )


def our_gradient(classes: PromptedClasses, views: torch.Tensor) -> torch.Tensor:
    """(L, W): the first step's gradient on views (S, D), through the graph that the engine keeps."""
    text = classes.initial_features.clone().requires_grad_()
    with exact_float32():
        loss = marginal_entropy(classes.logits(views, text))
        (of_text,) = torch.autograd.grad(loss, text)
    return classes.initial_gradients(of_text[None])[0]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _range(logits: torch.Tensor) -> float:
    return float(logits.max() - logits.min())


def _is_tie(decision: Decision) -> bool:
    logits = decision.logits_after
    if len(logits) == 1:
        return False
    first, second = logits.topk(2).values.tolist()
    return first - second <= TIE * _range(logits)


def _selected(decision: Decision) -> set[int]:
    return set() if decision.selected is None else set(decision.selected.tolist())
