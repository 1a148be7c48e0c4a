"""What has no closed interval: averages over a protocol's splits, and mean average precision.

Sources are drawn anew, each with all of its videos in all splits; docs/metrics.md says how, for readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import harmonic_mean
from typing import Literal

import numpy as np
import pyarrow as pa
from scipy.stats import norm
from sklearn.metrics import average_precision_score

from zar_ray.results.case_rows import RIGHT, CaseRows, codes_of
from zar_ray.results.record import CaseMetrics, Estimate, PairedComparison, ProtocolAverage
from zar_ray.results.statistics import POWER, TAIL

RESAMPLES = 1000
"""Bootstrap draws of an average of shares, and exchanges of before and after."""

MAP_RESAMPLES = 200
"""Bootstrap draws of mean average precision, each of which ranks every class: the ends move by a tenth of the width."""


def protocol_averages(
    cases: Sequence[CaseMetrics],
    kind: Literal["mean", "harmonic"],
    rows: Callable[[CaseMetrics], CaseRows] | None = None,
    seed: int = 0,
) -> tuple[ProtocolAverage, ...]:
    """What a protocol reports over its splits, by method in the order they first come.

    Args:
        cases: One case a split and method.
        kind: ``mean`` with the standard deviation between the splits, or ``harmonic`` mean of two splits, which is 0
            where either is.
        rows: Gives a case's rows, which changes of top-1 are made from.
        seed: Seed of their draws.

    Returns:
        An average a method and metric that all of the method's splits have; none with fewer than two splits, or where
        a split has no labelled video.

    Raises:
        ValueError: A harmonic mean of more than two splits.
    """
    by_method: dict[str, list[CaseMetrics]] = {}
    for case in cases:
        by_method.setdefault(case.method, []).append(case)
    averages = []
    for method, splits in by_method.items():
        if len(splits) < 2:
            continue
        if kind == "harmonic" and len(splits) != 2:
            raise ValueError(f"a harmonic mean is of two splits, not of {len(splits)}")
        measured = []
        for case in splits:
            before = {f"{name}_before": one for name, one in case.estimates("before").items()}
            measured.append({name: one.value for name, one in {**case.estimates("after"), **before}.items()})
        names = tuple(case.split for case in splits)
        for metric in measured[0]:
            if all(metric in one for one in measured):
                values = [one[metric] for one in measured]
                harmonic = kind == "harmonic"
                value, std = (harmonic_mean(values), None) if harmonic else (np.mean(values), float(np.std(values)))
                change = None
                if metric == "top1" and rows is not None and any(case.adapts for case in splits):
                    every = [rows(case) for case in splits]
                    change = average_change([one.select(one.label >= 0) for one in every], kind, seed)
                averages.append(ProtocolAverage(method, metric, kind, float(value), std, names, change))
    return tuple(averages)


def average_change(
    splits: Sequence[CaseRows], kind: Literal["mean", "harmonic"], seed: int = 0, resamples: int = RESAMPLES
) -> PairedComparison:
    """An average of several splits' top-1 after adaptation against that before it.

    One more decision is gained and one more lost, spread over the splits, as in `change_estimate`: where hardly a
    decision changes, draws alone would be sure of it.

    Args:
        splits: The labelled rows of each split, at least one; a source may be in several.
        kind: What is averaged how.
        seed: Seed of the draws.
        resamples: How many there are.
    """
    pairs = [np.concatenate([(one.before == RIGHT, one.after == RIGHT), np.eye(2)], axis=1) for one in splits]
    before, after = np.concatenate(pairs, axis=1)
    more = pa.chunked_array([["\0gains", "\0loses"]], pa.string())  # no source has such a name
    sources = codes_of([text for one in splits for text in (one.source, more)])
    added = np.concatenate([np.arange(one.shape[1]) >= one.shape[1] - 2 for one in pairs])
    split_of = np.repeat(np.eye(len(splits)), [one.shape[1] for one in pairs], axis=0)
    split_of[added] /= len(splits)

    def average(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        right = old @ (before[:, None] * split_of) + new @ (after[:, None] * split_of)
        shares = right / np.maximum(old @ split_of + new @ split_of, 1e-12)
        # The harmonic mean is 0 where a share is.
        return shares.mean(axis=1) if kind == "mean" else len(splits) / (1 / np.maximum(shares, 1e-12)).sum(axis=1)

    return _compared(average, sources, ~added, seed, resamples)


def _compared(
    average: Callable[[np.ndarray, np.ndarray], np.ndarray],
    sources: np.ndarray,
    real: np.ndarray,
    seed: int,
    resamples: int,
) -> PairedComparison:
    """Compares averages of decisions after and before adaptation.

    Args:
        average: The average, (draws,), where the decisions before and those after count so many times, both (draws,
            N).
        sources: What the N videos were cut from; sources are drawn, and exchanged, as a whole.
        real: bool (N,), whether a video is there and not added for the draws.
        seed: Seed of the draws.
        resamples: How many bootstrap draws, and as many exchanges of before and after.
    """
    rng, codes = np.random.default_rng(seed), np.unique(sources, return_inverse=True)[1]

    def differences(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return average(old, new) - average(new, old)

    def drawn(count: int) -> np.ndarray:
        weights = draw_weights(rng, codes, count).astype(float)
        swapped = real * rng.integers(0, 2, (count, codes.max() + 1))[:, codes]
        return np.stack([differences(0 * weights, weights), differences(swapped, real - swapped)])

    difference = float(differences(0.0 * real[None], 1.0 * real[None])[0])
    # In batches, so that the weights of all draws are never in memory together.
    batch = max(1, 2**20 // len(codes))
    sizes = [min(batch, resamples - start) for start in range(0, resamples, batch)]
    rises, exchanged = np.concatenate([drawn(size) for size in sizes], axis=1)
    if real.all():
        # A video that is drawn twice ranks beside itself, which raises precision.
        rises += difference - rises.mean()
    effect = quantile_estimate(difference, rises)
    as_far = int((np.abs(exchanged) >= abs(difference) - 1e-12).sum())
    # The power of a normal estimate with this interval (Bloom, Evaluation Review 19, 1995).
    detectable = (effect.high - effect.low) / 2 * (1 + float(norm.ppf(POWER) / norm.isf(TAIL)))
    return PairedComparison(effect, None, None, (1 + as_far) / (1 + resamples), detectable)


def draw_weights(rng: np.random.Generator, codes: np.ndarray, draws: int) -> np.ndarray:
    """How often each video comes up in bootstrap draws of sources, int (draws, N); `codes`, int (N,), are its source's.

    As counts of what is drawn: `multinomial` takes ten times as long.
    """
    sources = int(codes.max()) + 1
    drawn = rng.integers(sources, size=(draws, sources)) + sources * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)[:, codes]


def multi_label_metrics(
    right: np.ndarray,
    scores: np.ndarray,
    sources: np.ndarray | None = None,
    *,
    seed: int = 0,
    resamples: int = MAP_RESAMPLES,
) -> Estimate | None:
    """Mean average precision over the classes that some video shows, each with the same weight.

    A video that shows none of the classes is left out, as the official evaluation of Charades does in effect: it ranks
    such videos last, where they change no precision.

    Args:
        right: ``(videos, K)`` bool: which classes each video shows.
        scores: ``(videos, K)``, finite; higher is likelier.  Equal scores of a class are one step of its ranking.
        sources: ``(videos,)``, equal for videos of one source, which are drawn together.
        seed: Seed of the bootstrap; in a draw, the mean is over the classes that came up in it.
        resamples: Bootstrap draws.

    Returns:
        The mean with its interval, quantiles of the draws; None where no video shows any class.  A video that is drawn
        twice ranks beside itself, which raises precision, so the draws are moved to have the measured value as mean.
    """
    shown, present = right.any(axis=1), right.any(axis=0)
    if not shown.any():
        return None
    right, scores = right[shown][:, present], scores[shown][:, present]
    value = float(np.mean([average_precision_score(*of_class) for of_class in zip(right.T, scores.T, strict=True)]))
    codes = np.arange(len(right)) if sources is None else np.unique(sources[shown], return_inverse=True)[1]
    drawn = _weighted_map(right, scores, draw_weights(np.random.default_rng(seed), codes, resamples))
    return quantile_estimate(value, np.clip(drawn + (value - drawn.mean()), 0.0, 1.0))


def multi_label_change(
    right: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    sources: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = MAP_RESAMPLES,
) -> PairedComparison | None:
    """Mean average precision of scores after adaptation against that of scores before it; see `multi_label_metrics`."""
    shown, present = right.any(axis=1), right.any(axis=0)
    if not shown.any():
        return None
    # Each video twice, with either of its scores; which of them counts is a matter of weights.
    both = np.concatenate([before[shown], after[shown]])[:, present]
    twice = np.tile(right[shown][:, present], (2, 1))

    def average(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return _weighted_map(twice, both, np.hstack([old, new]))

    return _compared(average, sources[shown], np.ones(int(shown.sum()), bool), seed, resamples)


def _weighted_map(right: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean average precision of each draw; `weights`, ``(draws, videos)``, says how often a video came up.

    The same as scikit-learn's `average_precision_score` with these weights, over the classes that came up, but of all
    draws at once: for Charades, its 60,000 calls would take a minute.
    """
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for is_right, score in zip(right.T, scores.T, strict=True):
        order = np.argsort(-score, kind="stable")
        steps = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
        drawn = weights[:, order]
        videos = drawn.cumsum(axis=1)[:, steps]
        hits = (drawn * is_right[order]).cumsum(axis=1)[:, steps]
        precision = hits / np.maximum(videos, 1)
        total += (precision * np.diff(hits, axis=1, prepend=0)).sum(axis=1) / np.maximum(hits[:, -1], 1)
        classes += hits[:, -1] > 0
    return total / classes


def quantile_estimate(value: float, drawn: np.ndarray) -> Estimate:
    """A measured value with the quantiles of its bootstrap draws; the interval is widened to hold the value."""
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL])
    # Where rare classes drop out of draws, the mean over classes shifts and can leave the measured value outside.
    return Estimate(value, min(float(low), value), max(float(high), value))
