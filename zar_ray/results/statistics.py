"""Intervals and tests for shares of right videos; docs/metrics.md says how they are made and why so."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

import numpy as np
from scipy.stats import binom, binomtest

from zar_ray.results.record import Estimate, PairedComparison

RESAMPLES = 5000
"""Bootstrap draws: enough for the ends of an interval to move by a few hundredths of its width from seed to seed."""

TAIL = 0.025
"""Share of a distribution beyond either end of an interval."""


def paired_comparison(
    before: np.ndarray, after: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> PairedComparison:
    """Compares two decisions about the same videos, each made once or several times.

    The interval is the percentile bootstrap interval over videos, paired: redrawing videos draws how many of them
    gained, lost or stayed from a multinomial distribution, which costs the same for any number of videos and is what
    `scipy.stats.bootstrap` would redraw them for.  Where every draw would be the same, the bound is Clopper and
    Pearson's exact one.

    A video that is decided about several times counts with its mean, and is redrawn as a whole.  The p value is then
    the exact one of the test that exchanges before and after at random, video by video; of single decisions that is
    McNemar's exact test.

    Args:
        before: ``(N,)`` bool, N at least 1: whether each video is right before; or ``(R, N)``, in each of R replicates.
        after: Of the same shape: the same videos after, in the same order.
        seed: Seed of the bootstrap.
        resamples: Bootstrap draws.

    Raises:
        ValueError: There is no video, or the arrays are not of the same videos.
    """
    before, after = np.atleast_2d(np.asarray(before, bool)), np.atleast_2d(np.asarray(after, bool))
    if before.ndim != 2 or before.shape != after.shape or not before.size:
        raise ValueError(
            f"before and after are of shapes {before.shape} and {after.shape}, not of the same N > 0 videos"
        )
    replicates, videos = before.shape
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    changes, counts = np.unique((after.astype(int) - before).sum(axis=0), return_counts=True)
    if len(changes) > 1:
        drawn = np.random.default_rng(seed).multinomial(videos, counts / videos, size=resamples) @ changes
        estimate = quantile_estimate((gained - lost) / before.size, drawn / before.size)
        return PairedComparison(estimate, gained, lost, _exchange_p(changes, counts))
    change = float(changes[0]) / replicates
    # Every draw is the same: at worst the rest of the exact bound changed the other way.
    reach = share_estimate(0, videos).high
    low, high = (change - reach, change + reach) if not change else sorted((change, change * (1 - 2 * reach)))
    return PairedComparison(Estimate(change, low, high), gained, lost, _exchange_p(changes, counts))


def _exchange_p(changes: np.ndarray, counts: np.ndarray) -> float:
    """Exact two-sided p of the sum of some changes, if the sign of each video's were a coin's.

    There are C distinct changes of videos, int (C,), and `counts`, int (C,), say how many videos have each.
    """
    sizes = {int(size): int(counts[np.abs(changes) == size].sum()) for size in np.unique(np.abs(changes)) if size}
    if not sizes:
        return 1.0
    chances = np.ones(1)
    for size, number in sizes.items():
        # A video's sign moves the sum by twice its size.
        steps = np.zeros(number * size + 1)
        steps[::size] = binom.pmf(np.arange(number + 1), number, 0.5)
        chances = np.convolve(chances, steps)
    middle = (len(chances) - 1) / 2
    reach = abs(float(changes @ counts)) / 2
    beyond = np.abs(np.arange(len(chances)) - middle) >= reach - 1e-9
    return min(1.0, float(chances[beyond].sum()))


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
    """The share of right ones among some videos with its bootstrap interval; Clopper and Pearson's of all or none."""
    if right in (0, videos):
        exact = binomtest(right, videos).proportion_ci(1 - 2 * TAIL, method="exact")
        return Estimate(right / videos, float(exact.low), float(exact.high))
    low, high = binom.ppf([TAIL, 1 - TAIL], videos, right / videos) / videos
    return Estimate(right / videos, float(low), float(high))


def replicated_share(right: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The share of right decisions, with its interval over videos; a video's replicates are redrawn together.

    `right` is bool ``(R, N)``: R decisions about each of N videos, both at least 1.
    """
    replicates, videos = right.shape
    if replicates == 1 or right.all() or not right.any():
        return share_estimate(int(right.all(axis=0).sum()), videos)
    hits, counts = np.unique(right.sum(axis=0), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(videos, counts / videos, size=resamples) @ hits
    return quantile_estimate(float(right.mean()), drawn / right.size)


def sample_deviation(values: Sequence[float]) -> float | None:
    """Standard deviation between replicates of a measurement, n - 1 in its denominator; None of a single one."""
    return stdev(values) if len(values) > 1 else None


def quantile_estimate(value: float, drawn: np.ndarray) -> Estimate:
    """A measured value with the quantiles of its bootstrap draws; the interval is widened to hold the value."""
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL])
    # Where rare classes drop out of draws, the mean over classes shifts and can leave the measured value outside.
    return Estimate(value, min(float(low), value), max(float(high), value))
