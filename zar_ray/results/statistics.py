"""Intervals and tests for shares of right videos; docs/metrics.md says how they are made and why so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, binomtest

from zar_ray.results.record import Estimate

RESAMPLES = 5000
"""Bootstrap draws: enough for the ends of an interval to move by a few hundredths of its width from seed to seed."""

TAIL = 0.025
"""Share of a distribution beyond either end of an interval."""


@dataclass(frozen=True)
class PairedComparison:
    """Two decisions about the same videos.

    Attributes:
        difference: Share that is right after minus share that is right before.
        interval: Its 95 % interval, both ends included.
        gained: Videos that are right only after.
        lost: Videos that are right only before.
        p_value: McNemar's exact two-sided p: how likely so uneven a split of gained and lost would be by chance alone.
    """

    difference: float
    interval: tuple[float, float]
    gained: int
    lost: int
    p_value: float


def paired_comparison(
    before: np.ndarray, after: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> PairedComparison:
    """Compares two decisions about the same videos.

    The interval is the percentile bootstrap interval over videos, paired: redrawing videos draws the numbers of gained,
    lost and unchanged ones from a multinomial distribution, which costs the same for any number of videos and is what
    `scipy.stats.bootstrap` would redraw them for.  Where every draw would be the same, the bound is Clopper and
    Pearson's exact one.

    Args:
        before: ``(N,)`` bool, N at least 1: whether each video is right before.
        after: ``(N,)`` bool: the same videos after, in the same order.
        seed: Seed of the bootstrap.
        resamples: Bootstrap draws.

    Raises:
        ValueError: There is no video, or the arrays are not of the same videos.
    """
    before, after = np.asarray(before, bool), np.asarray(after, bool)
    if before.ndim != 1 or before.shape != after.shape or not len(before):
        raise ValueError(
            f"before and after are of shapes {before.shape} and {after.shape}, not of the same N > 0 videos"
        )
    videos, gained, lost = len(before), int((after & ~before).sum()), int((before & ~after).sum())
    if gained + lost == 0:
        bound = share_estimate(0, videos).high
        return PairedComparison(0.0, (-bound, bound), gained, lost, 1.0)
    p_value = float(binomtest(gained, gained + lost).pvalue)
    if videos in (gained, lost):
        # All changed alike, so every draw is the same: at worst the rest of the exact bound changed the other way.
        sign, least = (1.0 if gained else -1.0), 2 * share_estimate(videos, videos).low - 1
        ends = sorted((sign, sign * least))
        return PairedComparison(sign, (ends[0], ends[1]), gained, lost, p_value)
    counts = np.array([gained, lost, videos - gained - lost])
    drawn = np.random.default_rng(seed).multinomial(videos, counts / videos, size=resamples)
    estimate = quantile_estimate((gained - lost) / videos, (drawn[:, 0] - drawn[:, 1]) / videos)
    return PairedComparison(estimate.value, (estimate.low, estimate.high), gained, lost, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p values of several tests by Holm's step-down rule, in the given order.

    Each may then be held against the level that a single test would be: the chance of any false alarm among all of them
    stays below it.
    """
    if not len(p_values):
        return []
    # Here because it loads pandas, which no evaluation needs.
    from statsmodels.stats.multitest import multipletests

    adjusted = np.asarray(multipletests(p_values, method="holm")[1], float)
    return adjusted.tolist()


def share_estimate(right: int, videos: int) -> Estimate:
    """The share of right videos with its bootstrap interval; Clopper and Pearson's where all or none are right.

    Args:
        right: How many are right.
        videos: How many there are, at least 1.
    """
    if right in (0, videos):
        exact = binomtest(right, videos).proportion_ci(1 - 2 * TAIL, method="exact")
        return Estimate(right / videos, float(exact.low), float(exact.high))
    low, high = binom.ppf([TAIL, 1 - TAIL], videos, right / videos) / videos
    return Estimate(right / videos, float(low), float(high))


def quantile_estimate(value: float, drawn: np.ndarray) -> Estimate:
    """A measured value with the quantiles of its bootstrap draws; the interval is widened to hold the value."""
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL])
    # Where rare classes drop out of draws, the mean over classes shifts and can leave the measured value outside.
    return Estimate(value, min(float(low), value), max(float(high), value))
