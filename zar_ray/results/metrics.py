"""Metrics, always of a whole result table: nothing is counted up along the way, so a resumed run cannot drift.

How the numbers are made (docs/metrics.md says it for readers):

- A failed video is wrong before and after in the headline, and left out of the second set of scores.  A video without
  a label counts in neither.
- Intervals are 95 % percentile bootstrap intervals over videos, without the redrawing where it is not needed.  Of n
  videos drawn with replacement the number of right ones is binomial, the numbers of gained and lost ones together are
  multinomial, and so are the numbers of right and wrong ones by class.  So the share of right videos has its quantiles
  from the binomial distribution, and the others are drawn from the multinomial one: the same distribution that
  `scipy.stats.bootstrap` redraws videos for, at a cost that does not grow with the number of videos.
- Where all videos are right, or all wrong, every draw is the same and the bootstrap says [1, 1] or [0, 0] however few
  videos there are.  The interval is then Clopper and Pearson's exact one.  The change is treated likewise when no video
  is gained or lost, or all of them are.
- Mean average precision has no such short cut: how often each video came up is drawn, and every class is scored anew
  with those numbers as weights.  Hence fewer draws.  Repeated videos raise precision, so the draws are moved to have
  the measured value as their mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from statistics import harmonic_mean
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score

from zar_ray.errors import RunError
from zar_ray.results.case_rows import AMONG_FIVE, RIGHT, CaseRows, check_labels
from zar_ray.results.record import (
    Accuracy,
    CaseMetrics,
    Costs,
    Estimate,
    FailureGroup,
    ProtocolAverage,
    Scores,
)
from zar_ray.results.statistics import RESAMPLES, paired_comparison, quantile_estimate, share_estimate

MAP_RESAMPLES = 200
"""Bootstrap draws of mean average precision, each of which ranks every class: the ends move by a tenth of the width."""

_CELLS_A_BATCH = 2**20


@dataclass(frozen=True)
class VideoCounts:
    """How many videos a table accounts for; a video with a failed case is failed."""

    videos: int
    finished: int
    failed: int
    unlabelled: int
    warned: int


def check_counts(expected: Set[tuple[str, str]], table: pa.Table) -> None:
    """Checks that the table holds each expected (video id, case id) pair exactly once, and nothing else.

    Raises:
        RunError: Rows are missing, too many or repeated; the message names the first of each.
    """
    found = Counter(zip(table["video_id"].to_pylist(), table["case_id"].to_pylist(), strict=True))
    wrong = {
        "missing": sorted(expected - found.keys()),
        "not in the manifest": sorted(found.keys() - expected),
        "more than once": sorted(key for key, count in found.items() if count > 1),
    }
    parts = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in wrong.items() if keys]
    if parts:
        raise RunError(f"the result table does not match the run's videos: {'; '.join(parts)}")


def _some(keys: list[tuple[str, str]]) -> str:
    shown = ", ".join(f"{video} [{case}]" for video, case in keys[:3])
    return shown if len(keys) <= 3 else f"{shown}, ..."


def video_counts(table: pa.Table) -> VideoCounts:
    """Counts videos, whatever the number of cases."""

    def videos(rows: pa.Table) -> int:
        return len(rows["video_id"].unique())

    total, failed = videos(table), videos(table.filter(table["error"].is_valid()))
    unlabelled = table["label_id"].is_null().to_numpy() & (_lists(table["labels"])[0] == 0)
    return VideoCounts(
        videos=total,
        finished=total - failed,
        failed=failed,
        unlabelled=videos(table.filter(pa.array(unlabelled, pa.bool_()))),
        warned=videos(table.filter(table["warning"].is_valid())),
    )


def failure_groups(table: pa.Table, examples: int = 3) -> tuple[FailureGroup, ...]:
    """Failed videos by stage, the commonest stage first, each with its first `examples` by video id."""
    failed = table.filter(table["error"].is_valid()).select(["error_stage", "video_id", "error"]).to_pylist()
    stages: dict[str, dict[str, str]] = {}
    for row in sorted(failed, key=lambda row: (row["video_id"], row["error"])):
        stages.setdefault(row["error_stage"] or "unknown", {}).setdefault(row["video_id"], row["error"])
    groups = (FailureGroup(s, len(videos), tuple(videos.items())[:examples]) for s, videos in stages.items())
    return tuple(sorted(groups, key=lambda group: (-group.videos, group.stage)))


def costs(table: pa.Table) -> Costs:
    """What a video costs, over the videos where it was measured (a video's cases share these)."""
    names = ["bytes_shipped", "images_encoded", "frames_decoded", "seconds_decode", "seconds_encode"]
    by_video = table.group_by("video_id").aggregate([(name, "max") for name in names])

    shipped = by_video["bytes_shipped_max"].drop_null().to_numpy()
    means = {f"{name}_mean": _mean(by_video, f"{name}_max") for name in names}
    return Costs(**means, bytes_shipped_max=int(shipped.max()) if len(shipped) else None)


def case_metrics(
    table: pa.Table,
    case_id: str,
    method: str,
    classes: int,
    *,
    multi_label: bool = False,
    split: str = "all",
    seed: int = 0,
    resamples: int | None = None,
) -> CaseMetrics:
    """Computes all numbers of one case.

    Args:
        table: A result table with one row per (video, case). Of a multi-label split, its ``labels`` hold each video's
            right label ids, and ``scores_before`` and ``scores_after`` all K logits of the case's finished rows.
        case_id: The case; its rows may be none.
        method: The case's method.
        classes: Candidate classes, K, at least 1.
        multi_label: Whether a video may show several classes: mean average precision then stands in place of the
            accuracies.
        split: The protocol's split that the case is of.
        seed: Seed of the bootstrap; the same table and seed give the same numbers, whatever the rows' order.
        resamples: Bootstrap draws; by default `RESAMPLES`, of average precision `MAP_RESAMPLES`.

    Raises:
        RunError: A label is not among the K classes, or a finished row of a multi-label split lacks its scores.
    """
    table = table.filter(pa.array(table["case_id"].to_numpy() == case_id, pa.bool_())).sort_by("video_id")
    finished = table["error"].is_null().to_numpy()
    if multi_label:
        measured = _average_precisions(table, classes, seed, MAP_RESAMPLES if resamples is None else resamples)
    else:
        rows = CaseRows.of(table, case_id, classes)
        measured = _accuracies(rows, classes, seed, RESAMPLES if resamples is None else resamples)
    return CaseMetrics(
        case_id=case_id,
        method=method,
        videos=len(finished),
        finished=int(finished.sum()),
        failed=int((~finished).sum()),
        classes=classes,
        entropy_before=_mean(table, "entropy_before"),
        entropy_after=_mean(table, "entropy_after"),
        seconds_adapt=_mean(table, "seconds_adapt"),
        split=split,
        **measured,
    )


def _accuracies(rows: CaseRows, classes: int, seed: int, resamples: int) -> dict[str, Any]:
    """What is measured where a video shows one class."""
    labelled = rows.select(rows.label >= 0)
    finished = labelled.select(labelled.finished)
    failures_wrong = _scores(labelled, seed, resamples)
    same = len(labelled.label) == len(finished.label)
    return {
        "labelled": len(labelled.label),
        "chance": 1 / classes,
        "failures_wrong": failures_wrong,
        "failures_excluded": failures_wrong if same else _scores(finished, seed, resamples),
    }


def _average_precisions(table: pa.Table, classes: int, seed: int, resamples: int) -> dict[str, Any]:
    """What is measured where a video may show several classes."""
    right = _right_classes(table, classes)
    labelled = right.any(axis=1)
    right, ranked = right[labelled], table.filter(pa.array(labelled, pa.bool_()))
    before, after = (_all_scores(ranked, when, classes) for when in ("before", "after"))
    map_before = multi_label_metrics(right, before, seed=seed, resamples=resamples)
    same = np.array_equal(before, after)
    return {
        "labelled": len(right),
        "chance": float(right[:, right.any(axis=0)].mean()) if len(right) else 1 / classes,
        "failures_wrong": None,
        "failures_excluded": None,
        "map_before": map_before,
        "map_after": map_before if same else multi_label_metrics(right, after, seed=seed, resamples=resamples),
    }


def multi_label_metrics(
    right: np.ndarray, scores: np.ndarray, *, seed: int = 0, resamples: int = MAP_RESAMPLES
) -> Estimate | None:
    """Mean average precision over the classes that some video shows, each with the same weight.

    A video that shows none of the classes is left out, as the official evaluation of Charades does in effect: it ranks
    such videos last, where they change no precision.

    Args:
        right: ``(videos, K)`` bool: which classes each video shows.
        scores: ``(videos, K)``, finite; higher is likelier.  Equal scores of a class are one step of its ranking.
        seed: Seed of the bootstrap, which redraws videos; in a draw, the mean is over the classes that came up in it.
        resamples: Bootstrap draws.

    Returns:
        The mean with its interval, quantiles of the draws; None where no video shows any class.  A video that is drawn
        twice ranks beside itself, which raises precision, so the draws are moved to have the measured value as mean.
    """
    labelled, present = right.any(axis=1), right.any(axis=0)
    if not labelled.any():
        return None
    right, scores = right[labelled][:, present], scores[labelled][:, present]
    value = np.mean([average_precision_score(*of_class) for of_class in zip(right.T, scores.T, strict=True)])
    videos = len(right)
    rng = np.random.default_rng(seed)
    drawn = _drawn(partial(_weighted_map, right, scores), rng, np.ones(videos, int), resamples)
    return quantile_estimate(float(value), np.clip(drawn + (value - drawn.mean()), 0.0, 1.0))


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


def _lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """How long each list is, 0 for null, and all their values after one another."""
    lists = column.combine_chunks()
    return lists.value_lengths().fill_null(0).to_numpy(), lists.flatten().to_numpy()


def _right_classes(table: pa.Table, classes: int) -> np.ndarray:
    """``(videos, K)`` bool: which classes each video shows."""
    counts, labels = _lists(table["labels"])
    rows = np.repeat(np.arange(len(counts)), counts)
    check_labels(table["video_id"].take(pa.array(rows)), labels, classes)
    right = np.zeros((len(counts), classes), bool)
    right[rows, labels] = True
    return right


def _all_scores(table: pa.Table, when: str, classes: int) -> np.ndarray:
    """``(videos, K)`` float64; failed videos have one score that is lower than any, so they rank last."""
    finished = table["error"].is_null().to_numpy()
    scored = table.filter(pa.array(finished, pa.bool_()))
    lengths, logits = _lists(scored[f"scores_{when}"])
    if wrong := np.flatnonzero(lengths != classes).tolist():
        raise RunError(
            f"{scored['video_id'][wrong[0]]}: its row lacks the scores {when} adaptation of the {classes} classes, "
            "which average precision needs"
        )
    measured = logits.reshape(-1, classes).astype(np.float64)
    scores = np.full((len(finished), classes), measured.min(initial=0.0) - 1)
    scores[finished] = measured
    return scores


def protocol_averages(cases: Sequence[CaseMetrics], kind: Literal["mean", "harmonic"]) -> tuple[ProtocolAverage, ...]:
    """What a protocol reports over its splits, by method in the order they first come.

    Args:
        cases: One case a split and method.
        kind: ``mean`` with the standard deviation between the splits, or ``harmonic`` mean of two splits, which is 0
            where either is.

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
        measured = [_headline_values(case) for case in splits]
        names = tuple(case.split for case in splits)
        for metric in measured[0]:
            if all(metric in one for one in measured):
                values = [one[metric] for one in measured]
                harmonic = kind == "harmonic"
                value, std = (harmonic_mean(values), None) if harmonic else (np.mean(values), float(np.std(values)))
                averages.append(ProtocolAverage(method, metric, kind, float(value), std, names))
    return tuple(averages)


def _headline_values(case: CaseMetrics) -> dict[str, float]:
    """The values that a protocol averages, as fractions; none without a labelled video."""
    after, before = case.estimates("after"), case.estimates("before")
    return {name: one.value for name, one in {**after, **{f"{name}_before": before[name] for name in before}}.items()}


def _mean(table: pa.Table, name: str) -> float | None:
    values = table[name].drop_null().to_numpy()
    return float(values.mean(dtype=np.float64)) if len(values) else None


def _scores(rows: CaseRows, seed: int, resamples: int) -> Scores | None:
    if not len(rows.label):
        return None

    def accuracy(rank: np.ndarray) -> Accuracy:
        right = rank == RIGHT
        return Accuracy(
            top1=share_estimate(int(right.sum()), len(rank)),
            top5=share_estimate(int((rank >= AMONG_FIVE).sum()), len(rank)),
            mean_class=_mean_class(rows.label, right, np.random.default_rng(seed), resamples),
        )

    adapts = _adapts(rows.table)
    change = paired_comparison(rows.before == RIGHT, rows.after == RIGHT, seed, resamples) if adapts else None
    return Scores(len(rows.label), accuracy(rows.before), accuracy(rows.after), change)


def _mean_class(label: np.ndarray, right: np.ndarray, rng: np.random.Generator, resamples: int) -> Estimate:
    """Mean over the classes that have videos; in a draw, over those that came up in it."""
    if right.all() or not right.any():
        return share_estimate(int(right.sum()), len(label))
    outcomes, counts = np.unique(label.astype(np.int64) * 2 + right, return_counts=True)
    _, class_starts = np.unique(outcomes // 2, return_index=True)

    def means(tables: np.ndarray) -> np.ndarray:
        videos = np.add.reduceat(tables, class_starts, axis=1)
        hits = np.add.reduceat(tables * (outcomes % 2), class_starts, axis=1)
        shares = np.divide(hits, videos, out=np.zeros(hits.shape), where=videos > 0)
        return shares.sum(axis=1) / (videos > 0).sum(axis=1)

    return quantile_estimate(float(means(counts[None])[0]), _drawn(means, rng, counts, resamples))


def _drawn(
    statistic: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator, counts: np.ndarray, resamples: int
) -> np.ndarray:
    """A statistic of bootstrap draws; `counts` are the videos of each outcome, which each draw has anew."""
    # In batches, so that the tables of counts of all draws are never in memory together.
    batch, videos = max(1, _CELLS_A_BATCH // len(counts)), counts.sum()
    sizes = [min(batch, resamples - start) for start in range(0, resamples, batch)]
    return np.concatenate([statistic(rng.multinomial(videos, counts / videos, size=size)) for size in sizes])


def _adapts(table: pa.Table) -> bool:
    """Whether any video's scores differ after adaptation; zero-shot leaves all of them as they were."""
    pairs = (("top5_scores_before", "top5_scores_after"), ("top5_before", "top5_after"))
    return any(not table[before].combine_chunks().equals(table[after].combine_chunks()) for before, after in pairs)
