"""Metrics, always of a whole result table: nothing is counted up along the way, so a resumed run cannot drift.

How the numbers are made (docs/metrics.md says it for readers):

- A failed video is wrong before and after in the headline, and left out of the second set of scores.  A video without
  a label counts in neither.
- Intervals are 95 % percentile bootstrap intervals over videos.  Drawing n videos with replacement and counting how
  often each kind of outcome (class, rank before, rank after) comes up is one multinomial draw, so the bootstrap is
  drawn that way: the same distribution as redrawing videos one by one (what `scipy.stats.bootstrap` does), at a cost
  that does not grow with the number of videos.  One draw serves every statistic, which makes differences paired.
- Where all videos are right, or all wrong, every draw is the same and the bootstrap says [1, 1] or [0, 0] however few
  videos there are.  The interval is then Clopper and Pearson's exact one.  The change uses the same bound, on either
  side of zero, when no video is gained or lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from zar_ray.errors import RunError
from zar_ray.reporting.summary import (
    Accuracy,
    CaseMetrics,
    Change,
    ClassAccuracy,
    Costs,
    Estimate,
    FailureGroup,
    Scores,
)

RESAMPLES = 5000
"""Bootstrap draws: enough for the ends of an interval to move by a few hundredths of its width from seed to seed."""

_RIGHT, _AMONG_FIVE, _MISSED = 2, 1, 0
_TAIL = 0.025
_CELLS_A_BATCH = 2**20


@dataclass(frozen=True)
class VideoCounts:
    """How many videos a table accounts for; a video with a failed case is failed."""

    videos: int
    finished: int
    failed: int
    unlabelled: int
    warned: int


def check_counts(video_ids: Iterable[str], table: pa.Table, case_ids: Sequence[str]) -> None:
    """Checks that the table holds each video of the manifest exactly once a case, and nothing else.

    Args:
        video_ids: Ids of the manifest's videos that the run is about.
        table: A result table.
        case_ids: The run's cases.

    Raises:
        RunError: Rows are missing, too many or repeated; the message names the first of each.
    """
    expected = {(video, case) for video in video_ids for case in case_ids}
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
    return VideoCounts(
        videos=total,
        finished=total - failed,
        failed=failed,
        unlabelled=videos(table.filter(table["label_id"].is_null())),
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

    def mean(name: str) -> float | None:
        values = by_video[f"{name}_max"].drop_null().to_numpy()
        return float(values.mean()) if len(values) else None

    shipped = by_video["bytes_shipped_max"].drop_null().to_numpy()
    return Costs(
        bytes_shipped_mean=mean("bytes_shipped"),
        bytes_shipped_max=int(shipped.max()) if len(shipped) else None,
        images_encoded_mean=mean("images_encoded"),
        frames_decoded_mean=mean("frames_decoded"),
        seconds_decode_mean=mean("seconds_decode"),
        seconds_encode_mean=mean("seconds_encode"),
    )


def case_metrics(
    table: pa.Table, case_id: str, method: str, classes: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> CaseMetrics:
    """Computes all numbers of one case.

    Args:
        table: A result table with one row per (video, case).
        case_id: The case; its rows may be none.
        method: The case's method.
        classes: Candidate classes, K, at least 1.
        seed: Seed of the bootstrap; the same table and seed give the same numbers, whatever the rows' order.
        resamples: Bootstrap draws.

    Raises:
        RunError: A label is not among the K classes.
    """
    rows = _Rows.of(table, case_id, classes)
    labelled = rows.label >= 0
    everything, finished = rows.select(labelled), rows.select(labelled & rows.finished)
    failures_wrong = _scores(everything, seed, resamples)
    same = len(everything.label) == len(finished.label)
    return CaseMetrics(
        case_id=case_id,
        method=method,
        videos=len(rows.label),
        finished=int(rows.finished.sum()),
        failed=int((~rows.finished).sum()),
        labelled=int(labelled.sum()),
        classes=classes,
        chance=1 / classes,
        failures_wrong=failures_wrong,
        failures_excluded=failures_wrong if same else _scores(finished, seed, resamples),
        entropy_before=_mean(rows.table, "entropy_before"),
        entropy_after=_mean(rows.table, "entropy_after"),
        seconds_adapt=_mean(rows.table, "seconds_adapt"),
    )


def class_accuracies(table: pa.Table, case_id: str, class_names: Sequence[str]) -> tuple[ClassAccuracy, ...]:
    """Accuracy by class, in the order of the class names; failed videos count as wrong.

    Raises:
        RunError: A label is not among the classes.
    """
    count = len(class_names)
    rows = _Rows.of(table, case_id, count)
    rows = rows.select(rows.label >= 0)

    def by_class(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(rows.label[chosen], minlength=count)

    videos, failed = by_class(np.ones(len(rows.label), bool)), by_class(~rows.finished)
    before, after = by_class(rows.before == _RIGHT), by_class(rows.after == _RIGHT)
    mistaken = confusion_matrix(table, case_id, count)
    np.fill_diagonal(mistaken, 0)
    worst: list[int] = mistaken.argmax(axis=1).tolist()
    return tuple(
        ClassAccuracy(
            label_id=i,
            label=name,
            videos=int(videos[i]),
            failed=int(failed[i]),
            top1_before=float(before[i] / videos[i]) if videos[i] else None,
            top1_after=float(after[i] / videos[i]) if videos[i] else None,
            taken_for=class_names[worst[i]] if mistaken[i, worst[i]] else None,
            taken_for_videos=int(mistaken[i, worst[i]]),
        )
        for i, name in enumerate(class_names)
    )


def confusion_matrix(table: pa.Table, case_id: str, classes: int) -> np.ndarray:
    """How often each class is taken for each after adaptation, over the labelled videos that finished.

    Returns:
        ``(K, K)`` int64: rows are the right class, columns the predicted one.

    Raises:
        RunError: A label is not among the classes.
    """
    rows = _Rows.of(table, case_id, classes)
    rows = rows.select((rows.label >= 0) & rows.finished)
    if not len(rows.label):
        return np.zeros((classes, classes), np.int64)
    # The first of each row's list: a finished row's list is never empty.
    top5 = rows.table["top5_after"].combine_chunks()
    predicted = top5.values.to_numpy()[top5.offsets.to_numpy()[:-1]]
    return sklearn_confusion_matrix(rows.label, predicted, labels=range(classes)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of one case as arrays: label (-1 for none), rank of the right class before and after, finished."""

    table: pa.Table
    label: np.ndarray
    before: np.ndarray
    after: np.ndarray
    finished: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, case_id: str, classes: int) -> _Rows:
        table = table.filter(pa.array(table["case_id"].to_numpy() == case_id, pa.bool_()))
        label = table["label_id"].fill_null(-1).to_numpy()
        if len(label) and label.max() >= classes:
            worst = int(label.argmax())
            raise RunError(
                f"{table['video_id'][worst]}: its label is number {label[worst]}, but the run has {classes} classes, "
                "numbered from 0; evaluate with the class names that the manifest was made with"
            )

        def rank(when: str) -> np.ndarray:
            first, among = (table[f"{name}_{when}"].fill_null(False).to_numpy() for name in ("correct", "correct5"))
            return np.where(first, _RIGHT, np.where(among, _AMONG_FIVE, _MISSED))

        return cls(table, label, rank("before"), rank("after"), table["error"].is_null().to_numpy())

    def select(self, chosen: np.ndarray) -> _Rows:
        return _Rows(
            self.table.filter(pa.array(chosen, pa.bool_())),
            self.label[chosen],
            self.before[chosen],
            self.after[chosen],
            self.finished[chosen],
        )


def _mean(table: pa.Table, name: str) -> float | None:
    values = table[name].drop_null().to_numpy()
    return float(values.mean(dtype=np.float64)) if len(values) else None


def _scores(rows: _Rows, seed: int, resamples: int) -> Scores | None:
    if not len(rows.label):
        return None
    outcomes = _Outcomes.of(rows)
    measured = outcomes.statistics(outcomes.counts[None].astype(np.float64))
    drawn = outcomes.bootstrap(seed, resamples)
    videos = len(rows.label)

    def estimate(name: str) -> Estimate:
        value = float(measured[name][0])
        if value in (0.0, 1.0):
            exact = binomtest(round(value * videos), videos).proportion_ci(1 - 2 * _TAIL, method="exact")
            return Estimate(value, float(exact.low), float(exact.high))
        low, high = np.quantile(drawn[name], [_TAIL, 1 - _TAIL])
        # Where rare classes drop out of draws the mean over classes is shifted, and can leave the value outside.
        return Estimate(value, min(float(low), value), max(float(high), value))

    def accuracy(when: str) -> Accuracy:
        return Accuracy(estimate(f"top1_{when}"), estimate(f"top5_{when}"), estimate(f"mean_class_{when}"))

    return Scores(videos, accuracy("before"), accuracy("after"), _change(rows, measured, drawn))


def _change(rows: _Rows, measured: dict[str, np.ndarray], drawn: dict[str, np.ndarray]) -> Change | None:
    if not _adapts(rows.table):
        return None
    gained = int(((rows.after == _RIGHT) & (rows.before != _RIGHT)).sum())
    lost = int(((rows.after != _RIGHT) & (rows.before == _RIGHT)).sum())
    value = float(measured["change"][0])
    if gained + lost == 0:
        bound = float(binomtest(0, len(rows.label)).proportion_ci(1 - 2 * _TAIL, method="exact").high)
        return Change(Estimate(value, -bound, bound), gained, lost, 1.0)
    low, high = np.quantile(drawn["change"], [_TAIL, 1 - _TAIL])
    p_value = float(binomtest(gained, gained + lost).pvalue)
    return Change(Estimate(value, min(float(low), value), max(float(high), value)), gained, lost, p_value)


def _adapts(table: pa.Table) -> bool:
    """Whether any video's scores differ after adaptation; zero-shot leaves all of them as they were."""
    pairs = (("top5_scores_before", "top5_scores_after"), ("top5_before", "top5_after"))
    return any(not table[before].combine_chunks().equals(table[after].combine_chunks()) for before, after in pairs)


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """Labelled videos, counted by outcome, with outcomes of the same class side by side.

    Attributes:
        counts: ``(C,)`` int64, videos an outcome.
        before: ``(C,)`` int64, rank of the right class before adaptation.
        after: ``(C,)`` int64, the same after.
        class_starts: Where each class's outcomes begin.
    """

    counts: np.ndarray
    before: np.ndarray
    after: np.ndarray
    class_starts: np.ndarray

    @classmethod
    def of(cls, rows: _Rows) -> _Outcomes:
        codes, counts = np.unique((rows.label.astype(np.int64) * 3 + rows.before) * 3 + rows.after, return_counts=True)
        _, class_starts = np.unique(codes // 9, return_index=True)
        return cls(counts, codes // 3 % 3, codes % 3, class_starts)

    def bootstrap(self, seed: int, resamples: int) -> dict[str, np.ndarray]:
        """Statistics of `resamples` draws of as many videos with replacement, ``(resamples,)`` each."""
        rng = np.random.default_rng(seed)
        videos = int(self.counts.sum())
        batch = max(1, _CELLS_A_BATCH // len(self.counts))
        drawn = [
            self.statistics(
                rng.multinomial(videos, self.counts / videos, size=min(batch, resamples - start)).astype(np.float64)
            )
            for start in range(0, resamples, batch)
        ]
        return {name: np.concatenate([statistics[name] for statistics in drawn]) for name in drawn[0]}

    def statistics(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Statistics of tables of counts, ``(B, C)`` float64, as ``(B,)`` each."""
        videos = counts.sum(axis=1)
        class_videos = np.add.reduceat(counts, self.class_starts, axis=1)
        statistics: dict[str, np.ndarray] = {}
        right: dict[str, np.ndarray] = {}
        for when, rank in (("before", self.before), ("after", self.after)):
            right[when] = (rank == _RIGHT).astype(np.float64)
            class_right = np.add.reduceat(counts * right[when], self.class_starts, axis=1)
            shares = np.divide(class_right, class_videos, out=np.zeros_like(class_right), where=class_videos > 0)
            statistics[f"top1_{when}"] = counts @ right[when] / videos
            statistics[f"top5_{when}"] = counts @ (rank >= _AMONG_FIVE).astype(np.float64) / videos
            statistics[f"mean_class_{when}"] = shares.sum(axis=1) / (class_videos > 0).sum(axis=1)
        statistics["change"] = counts @ (right["after"] - right["before"]) / videos
        return statistics
