"""Intervals and tests for shares of right videos; docs/metrics.md says how they are made, and how often they hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import stdev

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binom, norm

from zar_ray.results.record import Estimate, PairedComparison

TAIL = 0.025
"""Share of a distribution beyond either end of an interval."""

POWER = 0.8
"""The chance with which a difference is to be found that so many videos are said to show."""

_SPARSE = 4  # numbers of sources up to so many times as high as there are videos are counted as they are
_Z = float(norm.isf(TAIL))


def paired_comparison(before: np.ndarray, after: np.ndarray, sources: np.ndarray | None = None) -> PairedComparison:
    """Compares two decisions about the same videos, each made once or several times.

    The p value is the exact one of the test that exchanges before and after at random, source by source; of single
    decisions about videos of their own it is McNemar's.

    Args:
        before: ``(N,)`` bool, N at least 1: whether each video is right before; or ``(R, N)``, in each of R replicates.
        after: Of the same shape: the same videos after, in the same order.
        sources: ``(N,)``, equal for videos that are of one source; by default each is of its own. All decisions about
            the videos of a source stand or fall together, see `design_effect`.

    Raises:
        ValueError: There is no video, or the arrays are not of the same videos.
    """
    before, after = np.atleast_2d(np.asarray(before, bool)), np.atleast_2d(np.asarray(after, bool))
    if before.ndim != 2 or before.shape != after.shape or not before.size:
        raise ValueError(
            f"before and after are of shapes {before.shape} and {after.shape}, not of the same N > 0 videos"
        )
    changes = after.astype(int) - before
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    shared = design_effect(changes, sources, lowest=-1)
    effective = before.size / shared
    return PairedComparison(
        effect=change_of(changes, sources),
        gained=gained,
        lost=lost,
        p_value=_exchange_p(*np.unique(_of_sources(changes, sources)[0], return_counts=True)),
        detectable=detectable_difference(effective, ((gained + lost) / shared + 2) / (effective + 2)),
    )


def change_of(changes: np.ndarray, sources: np.ndarray | None = None) -> Estimate:
    """By how much the share of right ones rose, with its interval: the effect of a `paired_comparison` by itself.

    Args:
        changes: int ``(R, N)``, both at least 1: 1 where a decision became right, -1 where it became wrong, else 0.
        sources: ``(N,)``, equal for videos of one source; by default each is of its own.
    """
    shared = design_effect(changes, sources, lowest=-1)
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    return change_estimate(gained / shared, lost / shared, changes.size / shared)


def change_estimate(gained: float, lost: float, videos: float) -> Estimate:
    """By how much the share of right ones among independent videos rose; none of these need be whole numbers.

    Its interval is Bonett and Price's adjusted one (Journal of Educational and Behavioral Statistics 37, 2012), which
    counts one more gained and one more lost.
    """
    counted = videos + 2
    centre = (gained - lost) / counted
    reach = _Z * float(np.sqrt(((gained + lost + 2) / counted - centre**2) / counted))
    return Estimate((gained - lost) / videos, max(centre - reach, -1.0), min(centre + reach, 1.0))


def _of_sources(outcomes: np.ndarray, sources: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The sums of outcomes ``(R, N)`` over each source, int (C,), and how many outcomes that are."""
    if sources is None:
        return outcomes.sum(axis=0), np.full(outcomes.shape[1], len(outcomes))
    codes = sources
    if sources.dtype.kind != "i" or sources.min() < 0 or sources.max() > _SPARSE * len(sources):
        # Sorting a million takes a second and fifty megabytes, and ranks need none.
        _, codes = np.unique(sources, return_inverse=True)
    counts = np.bincount(codes)
    there = counts > 0
    return np.bincount(codes, outcomes.sum(axis=0)).astype(int)[there], counts[there] * len(outcomes)


def design_effect(outcomes: np.ndarray, sources: np.ndarray | None = None, lowest: int = 0) -> float:
    """By how much outcomes of the same sources say less than as many of sources of their own.

    Outcomes divided by it count as independent ones (Rao and Scott, Biometrics 48, 1992). A source of mean size is
    added, one half of it with the lowest outcomes alone and one with the highest, so that there is a variance where all
    outcomes are the same: each source then counts as one.

    Args:
        outcomes: int or bool ``(R, N)``: R outcomes of each of N videos, from `lowest` to 1.
        sources: ``(N,)``, equal for videos of one source; by default each is of its own.
        lowest: The least that an outcome can be.

    Returns:
        At least 1, and 1 of single outcomes of sources of their own.
    """
    totals, sizes = _of_sources(outcomes, sources)
    size = sizes.mean()
    if size == 1:
        return 1.0
    squares = (outcomes.astype(int) ** 2).sum() + size * (lowest**2 + 1) / 2
    wide, many = np.append(totals, [lowest * size, size]), np.append(sizes, [size, size])
    weights = np.append(np.ones(len(totals)), [0.5, 0.5])
    mean = weights @ wide / (weights @ many)
    return max(1.0, float(weights @ (wide - mean * many) ** 2 / (squares - weights @ many * mean**2)))


def _exchange_p(changes: np.ndarray, counts: np.ndarray) -> float:
    """Exact two-sided p of the sum of some changes, if the sign of each source's were a coin's.

    There are C distinct changes of sources, int (C,), and `counts`, int (C,), say how many sources have each.
    """
    sizes = {int(size): int(counts[np.abs(changes) == size].sum()) for size in np.unique(np.abs(changes)) if size}
    if not sizes:
        return 1.0
    chances = np.ones(1)
    for size, number in sizes.items():
        # A source's sign moves the sum by twice its size. What is forty deviations away, on either side, is less than
        # the least float64, and with it the work would grow with the square of the sources.
        rare = max(0, int(number / 2 - 20 * np.sqrt(number)))
        steps = np.zeros((number - 2 * rare) * size + 1)
        steps[::size] = binom.pmf(np.arange(rare, number - rare + 1), number, 0.5)
        chances = np.convolve(chances, steps)
    middle = (len(chances) - 1) / 2
    reach = abs(float(changes @ counts)) / 2
    beyond = np.abs(np.arange(len(chances)) - middle) >= reach - 1e-9
    return min(1.0, float(chances[beyond].sum()))


def detectable_difference(videos: float, flips: float) -> float | None:
    """The smallest difference that McNemar's exact test finds with a chance of `POWER`; None where it finds none.

    Of so many videos, a share `flips` is decided otherwise; where the difference is larger, all of it and nothing else
    is.
    """

    def lacking(difference: float) -> float:
        share = max(flips, difference)
        flipped, chance, needed = _flipped(round(videos), share)
        found = binom.sf(needed, flipped, (1 + difference / share) / 2)
        return POWER - float(chance @ found)

    return None if lacking(1.0) > 0 else float(root_scalar(lacking, bracket=(0.0, 1.0), xtol=1e-5).root)


@lru_cache(maxsize=4)
def _flipped(videos: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many videos may be decided otherwise, the chance of each, and how many gained ones show nothing yet."""
    least, most = binom.interval(1 - 1e-6, videos, share)
    flipped = np.arange(least, most + 1)
    # With more than so many of them gained, p is at most 0.05.
    return flipped, binom.pmf(flipped, videos, share), binom.isf(TAIL, flipped, 0.5)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p values of several tests by Holm's step-down rule, in the given order.

    Each may then be held against the level that a single test would be: the chance of any false alarm among all of them
    stays below it (Scandinavian Journal of Statistics 6, 1979).
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    # The smallest counts as often as there are tests, the next once less; none is below one before it.
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return np.minimum(adjusted, 1.0).tolist()


def share_estimate(right: float, videos: float) -> Estimate:
    """The share of right ones among independent videos; neither need be whole numbers.

    Its interval is Wilson's score interval (Journal of the American Statistical Association 22, 1927).
    """
    share, spread = right / videos, _Z**2 / videos
    centre = (share + spread / 2) / (1 + spread)
    reach = float(np.sqrt(spread * share * (1 - share) + spread**2 / 4)) / (1 + spread)
    # Rounding must not put the share itself outside.
    return Estimate(share, min(max(centre - reach, 0.0), share), max(min(centre + reach, 1.0), share))


def share_of(right: np.ndarray, sources: np.ndarray | None = None) -> Estimate:
    """The share of right decisions with its interval.

    `right` is bool ``(N,)``, or ``(R, N)``: R decisions about each of N videos, both at least 1; of `sources` see
    `design_effect`.
    """
    right = np.atleast_2d(right)
    effect = design_effect(right, sources)
    return share_estimate(float(right.sum()) / effect, right.size / effect)


def mean_class_share(label: np.ndarray, right: np.ndarray, sources: np.ndarray | None = None) -> Estimate:
    """The mean over the classes that have videos of their shares of right ones, with Wilson's interval.

    So many videos count as would give a single share the variance that this mean has where all classes are as hard;
    where they differ, the interval is wider than need be.

    Args:
        label: int (N,), the videos' classes.
        right: bool (N,), whether they are right.
        sources: ``(N,)``, equal for videos of one source, see `design_effect`.
    """
    _, codes, videos = np.unique(label, return_inverse=True, return_counts=True)
    share = (np.bincount(codes, right) / videos).mean()
    effective = len(videos) ** 2 / (1 / videos).sum() / design_effect(right[None], sources)
    return share_estimate(float(share * effective), float(effective))


def sample_deviation(values: Sequence[float]) -> float | None:
    """Standard deviation between replicates of a measurement, n - 1 in its denominator; None of a single one."""
    return stdev(values) if len(values) > 1 else None
