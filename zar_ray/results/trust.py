"""How far decisions can be believed: calibration of their probabilities, and whether they tell unknown classes.

Over the videos that finished; docs/metrics.md says how the numbers are made, for readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from sklearn.metrics import auc, roc_curve

from zar_ray.results.averages import draw_weights, quantile_estimate
from zar_ray.results.case_rows import CASE_COLUMNS, RIGHT, CaseRows
from zar_ray.results.certainty import SCORES
from zar_ray.results.estimates import Estimate, Measure, PairedComparison
from zar_ray.results.statistics import design_effect, share_estimate

BINS = 15
"""Bins of confidence (Guo et al., ICML 2017)."""

KEPT = 0.95
"""The share of known videos that a threshold keeps, at which the share of unknown ones that it keeps is measured."""

CALIBRATION = ("ece", "adaptive_ece", "brier", "nll")

_DETECTION = {score: (f"auroc_{score}", f"fpr95_{score}") for score in SCORES}
_TOGETHER = (CALIBRATION, *_DETECTION.values())
MEASURES = tuple(chain.from_iterable(_TOGETHER))
"""The names of all measures, in the order that tables have."""

_SAID = ("top5_scores", "nll", "brier", "energy", "entropy")


def trust_columns(*times: str) -> tuple[str, ...]:
    """Columns that `CaseRows` and the `Decisions` of some times are made of."""
    return (*CASE_COLUMNS, *(f"{name}_{when}" for when in times for name in _SAID))


TRUST_COLUMNS = trust_columns("before", "after")
"""Columns that `trust_of` is made of."""

_DRAWS = 500
# More sources than this are drawn in so many bundles, and scores of more values are drawn as so many ranks of as many
# videos: what the draws take does not grow with the videos.
_UNITS = 512
_LEVELS = 512
# The logits of a method that gives logarithms of probabilities have no energy: it is 0, but for rounding.
_NO_ENERGY = 1e-3


@dataclass(frozen=True, eq=False)
class Decisions:
    """What was decided about N videos at one time.

    Attributes:
        known: bool (N,), whether the right class is among the class names; if not it was held out of them.
        right: bool (N,), whether the best class is the right one.
        losses: By the names ``nll`` and ``brier``: float64 (N,), NaN of videos that are not known.
        scores: By the names of `SCORES`: float64 (N,), the higher the surer; those that are defined.
    """

    known: np.ndarray
    right: np.ndarray
    losses: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]

    @classmethod
    def of(cls, rows: CaseRows, when: str) -> Decisions:
        """Those of rows that are all finished, and of labelled videos or unknown ones."""
        table = rows.table

        def column(name: str) -> np.ndarray:
            return table[f"{name}_{when}"].cast("float64").fill_null(np.nan).to_numpy()

        lists = table[f"top5_scores_{when}"].combine_chunks()
        starts, lengths = lists.offsets.to_numpy()[:-1], lists.value_lengths().fill_null(0).to_numpy()
        values = np.append(lists.values.to_numpy(), [np.nan, 0.0]).astype(np.float64)
        best = values[np.where(lengths > 0, starts, len(values) - 2)]
        second = values[np.where(lengths > 1, starts + 1, len(values) - 1)]
        scores = {"max_probability": best, "margin": best - second, "energy": column("energy")}
        scores["entropy"] = -column("entropy")
        if not (np.abs(scores["energy"]) > _NO_ENERGY).any():
            del scores["energy"]
        losses = {name: column(name) for name in ("brier", "nll")}
        return cls(rows.label >= 0, getattr(rows, when) == RIGHT, losses, scores)


@dataclass(frozen=True, eq=False)
class _Statistics:
    """Measures that are made of sums over videos, so that bootstrap draws of them need no videos.

    Attributes:
        values: float64 (M,): the measures.
        sums: float32 (U, C): what the videos of each unit add up to.
        of: Makes measures (R, M) of sums (R, C).
        biased: Whether they are larger where videos are few, and in draws larger once more, as calibration errors are.
    """

    values: np.ndarray
    sums: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]
    biased: bool

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        """Bootstrap draws, float64 (R, M), those of biased measures moved to have the measured values as their means.

        NaN where no video came up that a measure could be made of.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            found = self.of((weights @ self.sums).astype(np.float64))
        there = found[np.isfinite(found).all(axis=1)]
        if not len(there):
            return found
        # Sums of scores that were put together into levels are not quite those of the scores.
        middle = there.mean(axis=0) if self.biased else self.of(self.sums.sum(axis=0, keepdims=True, dtype=np.float64))
        return found + (self.values - middle)


def trust_of(rows: CaseRows, seed: int = 0) -> dict[str, Measure]:
    """All measures of one case, before and after adaptation, by their names.

    Args:
        rows: The case's rows, with `TRUST_COLUMNS`; videos that failed, or are neither labelled nor of a class that was
            held out, are passed over.
        seed: Seed of the draws.

    Returns:
        Calibration where a known video finished, and detection where an unknown one did too; empty of rows that hold no
        probabilities, as those of earlier versions.
    """
    chosen = rows.select(rows.finished & ((rows.label >= 0) | rows.unknown))
    before, after = (Decisions.of(chosen, when) for when in ("before", "after"))
    return compare_trust(before, after, chosen.sources, seed)


def compare_trust(before: Decisions, after: Decisions, sources: np.ndarray, seed: int = 0) -> dict[str, Measure]:
    """Measures of two decisions about each of N videos, with their change on the same bootstrap draws of sources.

    Args:
        before: What was decided first.
        after: What was decided then, about the same videos in the same order.
        sources: ``(N,)``, equal for videos of one source, which are drawn together.
        seed: Seed of the draws.
    """
    if not before.known.any():
        return {}
    rng = np.random.default_rng(seed)
    codes = np.unique(sources, return_inverse=True)[1]
    count = int(codes.max()) + 1
    if count > _UNITS:
        codes, count = (rng.permutation(count) % _UNITS)[codes], _UNITS
    weights = draw_weights(rng, np.arange(count), _DRAWS).astype(np.float32)
    found: dict[str, Measure] = {}
    olds, news = (_makers(one, codes, count) for one in (before, after))
    for names in _TOGETHER:
        old, new = (makers[names]() if names in makers else None for makers in (olds, news))
        found |= _measures(names, old, new, weights)
    return found


def _measures(
    names: Sequence[str], old: _Statistics | None, new: _Statistics | None, weights: np.ndarray
) -> dict[str, Measure]:
    """Measures before and after, and their changes on the same draws."""
    drawn = [None if one is None else one.drawn(weights) for one in (old, new)]
    found = {}
    for place, name in enumerate(names):
        most = {"brier": 2.0, "nll": np.inf}.get(name, 1.0)
        values, draws, estimates = [], [], []
        for one, of_one in zip((old, new), drawn, strict=True):
            values.append(np.nan if one is None else float(one.values[place]))
            draws.append(np.array([]) if of_one is None else of_one[:, place])
            ends = np.clip(_there(draws[-1], values[-1]), 0, most)
            estimates.append(None if one is None else quantile_estimate(values[-1], ends))
        change = None
        if old is not None and new is not None and not np.array_equal(old.sums, new.sums):
            difference = values[1] - values[0]
            change = _change(difference, _there(draws[1] - draws[0], difference))
        if old is not None or new is not None:
            found[name] = Measure(estimates[0], estimates[1], change)
    return found


def _there(drawn: np.ndarray, value: float) -> np.ndarray:
    """The draws that there are; of none the value."""
    found = drawn[np.isfinite(drawn)]
    return found if len(found) else np.array([value])


def _change(difference: float, drawn: np.ndarray) -> PairedComparison:
    """A measured difference with bootstrap draws (R,) of it, of which p is made too: it agrees with the interval."""
    as_low, as_high = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    p_value = min(1.0, 2 * (1 + min(as_low, as_high)) / (1 + len(drawn)))
    return PairedComparison(quantile_estimate(difference, drawn), None, None, p_value)


def _makers(said: Decisions, codes: np.ndarray, count: int) -> dict[tuple[str, ...], Callable[[], _Statistics]]:
    """What makes the measures that are defined, one at a time, since sums take memory.

    `codes`, int (N,), say which of `count` units a video is of.
    """
    made: dict[tuple[str, ...], Callable[[], _Statistics]] = {}
    needed = (*said.losses.values(), said.scores["max_probability"])
    if not any(np.isnan(one[said.known]).any() for one in needed):
        made[CALIBRATION] = partial(_calibration, said, codes[said.known], count)
    if not said.known.all():
        for score, names in _DETECTION.items():
            if score in said.scores and not np.isnan(said.scores[score]).any():
                made[names] = partial(_detection, said.known, said.scores[score], codes, count)
    return made


def _spread(
    units: np.ndarray, count: int, place: np.ndarray, width: int, values: np.ndarray | None = None
) -> np.ndarray:
    """float64 (count, width): the sums of values, by default of ones, that lie at a unit and a place."""
    sums = np.bincount(units * width + place, values, minlength=count * width)
    return sums.reshape(count, width).astype(np.float64, copy=False)


def equal_width_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Which of some bins of equal width over [0, 1] N confidences are in, int (N,); bins hold their upper ends."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)


def equal_mass_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The same of bins that hold as many of N > 0 confidences each, give or take one; equal ones are in one bin."""
    ends = -(-len(confidence) * np.arange(1, bins) // bins) - 1
    return np.searchsorted(np.sort(confidence)[np.maximum(ends, 0)], confidence)


def _calibration(said: Decisions, units: np.ndarray, count: int) -> _Statistics:
    """What `CALIBRATION` names, over the known videos, which are of these units."""
    confidence, right = said.scores["max_probability"][said.known], said.right[said.known]
    bins = [equal_width_bins(confidence), equal_mass_bins(confidence)]
    losses = [said.losses[name][said.known] for name in ("brier", "nll")]

    def measures(sums: np.ndarray) -> np.ndarray:
        width, mass, brier, nll, videos = np.split(sums, [BINS, 2 * BINS, 2 * BINS + 1, 2 * BINS + 2], axis=1)
        errors = [np.abs(gaps).sum(axis=1, keepdims=True) for gaps in (width, mass)]
        return np.hstack([*errors, brier, nll]) / videos

    gaps = [_spread(units, count, place, BINS, confidence - right) for place in bins]
    ones = [np.bincount(units, values, minlength=count) for values in (*losses, None)]
    sums = np.column_stack([*gaps, *ones])
    return _Statistics(measures(sums.sum(axis=0, keepdims=True))[0], sums.astype(np.float32), measures, True)


def _detection(known: np.ndarray, score: np.ndarray, codes: np.ndarray, count: int) -> _Statistics:
    """The area under the ROC curve, and what share of unknown videos the threshold keeps that keeps `KEPT` of known.

    The area is the chance that a known video is surer than an unknown one, a tie counting half.
    """

    def measures(sums: np.ndarray) -> np.ndarray:
        of_known, of_unknown = np.split(sums, 2, axis=1)
        kept_known, kept_unknown = of_known.cumsum(axis=1), of_unknown.cumsum(axis=1)
        known, unknown = kept_known[:, -1:], kept_unknown[:, -1:]
        area = ((kept_known - of_known / 2) * of_unknown).sum(axis=1, keepdims=True) / (known * unknown)
        place = (kept_known >= KEPT * known - 1e-9 * (known > 0)).argmax(axis=1)[:, None]
        return np.hstack([area, np.take_along_axis(kept_unknown, place, axis=1) / unknown + 0 * area])

    _, ranks, videos = np.unique(-score, return_inverse=True, return_counts=True)
    if len(videos) > _LEVELS:
        ranks = ((videos.cumsum() - videos) * _LEVELS // len(score))[ranks]
    width = int(ranks.max()) + 1
    sums = np.hstack([_spread(codes[one], count, ranks[one], width) for one in (known, ~known)])
    kept_unknown, kept_known, _ = roc_curve(known, score, drop_intermediate=False)
    values = [auc(kept_unknown, kept_known), kept_unknown[(kept_known >= KEPT).argmax()]]
    return _Statistics(np.array(values), sums.astype(np.float32), measures, False)


def threshold_of(score: np.ndarray, keep: float, sources: np.ndarray) -> Estimate:
    """The threshold that keeps a share of decisions: the largest score at or above which so many of them lie.

    Its interval is Woodruff's (Journal of the American Statistical Association 47, 1952): the thresholds that keep the
    ends of the interval of that share.

    Args:
        score: float (N,), N > 0: how sure they are, finite.
        keep: The share of them that is to be kept, in (0, 1].
        sources: ``(N,)``, equal for videos of one source, see `design_effect`.
    """
    falling = -np.sort(-score)

    def at(share: float) -> float:
        # The tolerance is for a product that rounding leaves a little above a whole number.
        return float(falling[max(math.ceil(share * len(falling) - 1e-9), 1) - 1])

    value = at(keep)
    videos = len(score) / design_effect((score >= value)[None], sources)
    share = share_estimate(keep * videos, videos)
    return Estimate(value, at(share.high), at(share.low))
