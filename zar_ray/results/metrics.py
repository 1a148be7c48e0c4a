"""Metrics, always of a whole result table: nothing is counted up along the way, so a resumed run cannot drift.

How the numbers are made (docs/metrics.md says it for readers):

- A failed video is wrong before and after in the headline, and left out of the second set of scores.  A video without
  a label counts in neither.
- Intervals of 95 % and tests are those of `zar_ray.results.statistics`, of mean average precision those of
  `zar_ray.results.averages`; videos of one source (the manifest's `group`) stand or fall together in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import log_softmax

from zar_ray.errors import RunError
from zar_ray.results.averages import MAP_RESAMPLES, multi_label_change, multi_label_metrics
from zar_ray.results.case_rows import (
    AMONG_FIVE,
    CASE_COLUMNS,
    RIGHT,
    CaseRows,
    by_video,
    check_labels,
    codes_of,
    firsts,
    of_case,
    sources_of,
)
from zar_ray.results.record import Accuracy, CaseMetrics, Costs, FailureGroup, Scores
from zar_ray.results.statistics import mean_class_share, paired_comparison, share_of
from zar_ray.results.trust import TRUST_COLUMNS, trust_of

COUNT_COLUMNS = ("video_id", "error", "error_stage", "label_id", "label", "labels", "warning")
"""Columns that `video_counts` and `failure_groups` are made of."""

_MEASURED = ("bytes_shipped", "images_encoded", "frames_decoded", "seconds_decode", "seconds_encode")
COST_COLUMNS = ("video_id", *_MEASURED)
"""Columns that `costs` are made of."""

_DECIDED = tuple(f"{name}_{when}" for when in ("before", "after") for name in ("top5", "top5_scores", "entropy"))
_METRIC_COLUMNS = tuple(
    dict.fromkeys(
        (
            *(*CASE_COLUMNS, *_DECIDED, *TRUST_COLUMNS, "labels", "seconds_adapt"),
            *("images", "text_tokens", "gradient_tokens", "seconds_case", "peak_memory"),
        )
    )
)


def check_counts(expected: Mapping[str, pa.Array], table: pa.Table) -> None:
    """Checks that the table holds each expected (video id, case id) pair exactly once, and nothing else.

    Args:
        expected: The videos that each case has rows of, by case id.
        table: A result table, or its `KEYS`.

    Raises:
        RunError: Rows are missing, too many or repeated; the message names the first of each.
    """
    wrong: dict[str, list[pa.Table]] = {"missing": [], "not in the manifest": [], "more than once": []}
    for case in dict.fromkeys([*expected, *table["case_id"].unique().to_pylist()]):
        found = table.filter(pc.field("case_id") == case)["video_id"].value_counts()
        videos, counts = found.field("values"), found.field("counts")
        wanted = expected.get(case, pa.array([], pa.string()))
        known = pc.call_function("is_in", [videos], pc.SetLookupOptions(wanted))
        there = pc.call_function("is_in", [wanted], pc.SetLookupOptions(videos))
        for keys, of_keys in zip(
            wrong.values(),
            (
                wanted.filter(pa.array(~_flags(there))),
                videos.filter(pa.array(~_flags(known))),
                videos.filter(pa.array(counts.to_numpy() > 1)),
            ),
            strict=True,
        ):
            keys.append(pa.table({"video": of_keys, "case": pa.array([case] * len(of_keys), pa.string())}))
    parts = []
    for what, tables in wrong.items():
        keys = pa.concat_tables(tables) if tables else pa.table({})
        if len(keys):
            first = keys.sort_by([("video", "ascending"), ("case", "ascending")]).slice(0, 3).to_pylist()
            shown = [f"{one['video']} [{one['case']}]" for one in first] + ["..."] * (len(keys) > 3)
            parts.append(f"{len(keys)} {what} ({', '.join(shown)})")
    if parts:
        raise RunError(f"the result table does not match the run's videos: {'; '.join(parts)}")


def _flags(values: pa.BooleanArray) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def video_counts(table: pa.Table) -> dict[str, Any]:
    """How many videos a table accounts for, whatever the number of cases, by the names that `RunSummary` has for them.

    A video with a failed case is failed.
    """

    def videos(rows: pa.ChunkedArray | np.ndarray) -> int:
        """Those of rows for which something is true."""
        return len(table["video_id"].filter(rows).unique())

    total, failed = len(table["video_id"].unique()), videos(table["error"].is_valid())
    nameless = table["label_id"].is_null().to_numpy() & (_lists(table["labels"])[0] == 0)
    held_out = nameless & table["label"].is_valid().to_numpy()
    return {
        "videos": total,
        "finished": total - failed,
        "failed": failed,
        "unlabelled": videos(nameless & ~held_out),
        "unknown": total - videos(~held_out) if held_out.any() else 0,
        "warned": videos(table["warning"].is_valid()),
    }


def failure_groups(table: pa.Table, examples: int = 3) -> tuple[FailureGroup, ...]:
    """Failed videos by stage, the commonest stage first, each with its first `examples` by video id."""
    failed = table.filter(table["error"].is_valid()).select(["error_stage", "video_id", "error"])
    stages = failed["error_stage"].fill_null("unknown")
    failed = failed.set_column(0, "error_stage", stages).sort_by([(name, "ascending") for name in failed.column_names])
    # In order, and so on one thread: the first error of a video that fails in several cases stands for it.
    distinct = failed.group_by(["error_stage", "video_id"], use_threads=False).aggregate([("error", "first")])
    groups = []
    for stage in distinct["error_stage"].unique().to_pylist():
        videos = distinct.filter(pc.field("error_stage") == stage).select(["video_id", "error_first"])
        first = videos.slice(0, examples).to_pylist()
        groups.append(FailureGroup(stage, len(videos), tuple((one["video_id"], one["error_first"]) for one in first)))
    return tuple(sorted(groups, key=lambda group: (-group.videos, group.stage)))


def costs(table: pa.Table) -> Costs:
    """What a video costs, over the videos where it was measured (a video's cases share these)."""
    by_video = table.group_by("video_id").aggregate([(name, "max") for name in _MEASURED])

    shipped = by_video["bytes_shipped_max"].drop_null().to_numpy()
    means = {f"{name}_mean": _mean(by_video, f"{name}_max") for name in _MEASURED}
    return Costs(**means, bytes_shipped_max=int(shipped.max()) if len(shipped) else None)


def columns_of_case(multi_label: bool) -> tuple[str, ...]:
    """Columns that `case_metrics` are made of."""
    return (*_METRIC_COLUMNS, *(("scores_before", "scores_after") if multi_label else ()))


def case_metrics(
    table: pa.Table,
    case_id: str,
    method: str,
    classes: int,
    *,
    multi_label: bool = False,
    split: str = "all",
    seed: int = 0,
    resamples: int = MAP_RESAMPLES,
) -> CaseMetrics:
    """Computes all numbers of one case.

    Args:
        table: A result table with one row per (video, case), or its `columns_of_case`. Of a multi-label split, its
            ``labels`` hold each video's right label ids, and ``scores_before`` and ``scores_after`` all K logits of the
            case's finished rows.
        case_id: The case; its rows may be none.
        method: The case's method.
        classes: Candidate classes, K, at least 1.
        multi_label: Whether a video may show several classes: mean average precision then stands in place of the
            accuracies.
        split: The protocol's split that the case is of.
        seed: Seed of the bootstraps of average precision and of `CaseMetrics.trust`; the same table and seed give the
            same numbers, whatever the rows' order.
        resamples: Draws of average precision's.

    Raises:
        RunError: A label is not among the K classes, or a finished row of a multi-label split lacks its scores.
    """
    table = by_video(of_case(table, case_id))
    finished = table["error"].is_null().to_numpy()
    if multi_label:
        measured = _average_precisions(table, classes, seed, resamples)
    else:
        rows = CaseRows.of(table, case_id, classes)
        measured = {**_accuracies(rows, classes), "trust": trust_of(rows, seed)}
    decisions = [f"{name}_{when}" for name in ("top5", "top5_scores") for when in ("before", "after")]
    decided = table.select(decisions)
    if not finished.all():
        decided = decided.filter(pa.array(finished, pa.bool_()))
    before, after, *sure = (firsts(decided[name].drop_null()) for name in decisions)
    confidence = [float(one.mean(dtype=np.float64)) if len(one) else None for one in sure]
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
        images=_mean(table, "images"),
        text_tokens=_mean(table, "text_tokens"),
        gradient_tokens=_mean(table, "gradient_tokens"),
        seconds=_mean(table, "seconds_case"),
        peak_memory=pc.call_function("max", [table["peak_memory"]]).as_py(),
        changed=int((before != after).sum()),
        confidence_before=confidence[0],
        confidence_after=confidence[1],
        **measured,
    )


def _accuracies(rows: CaseRows, classes: int) -> dict[str, Any]:
    """What is measured where a video shows one class."""
    labelled = rows.select(rows.label >= 0)
    finished = labelled.select(labelled.finished)
    failures_wrong = _scores(labelled)
    same = len(labelled.label) == len(finished.label)
    return {
        "labelled": len(labelled.label),
        "unknown": int(rows.unknown.sum()),
        "groups": _shared(labelled.sources),
        "chance": 1 / classes,
        "failures_wrong": failures_wrong,
        "failures_excluded": failures_wrong if same else _scores(finished),
    }


def _shared(sources: np.ndarray) -> int | None:
    """How many sources videos are of; None where each has its own."""
    count = len(np.unique(sources))
    return count if count < len(sources) else None


def _average_precisions(table: pa.Table, classes: int, seed: int, resamples: int) -> dict[str, Any]:
    """What is measured where a video may show several classes."""
    counts, labels = _lists(table["labels"])
    rows = np.repeat(np.arange(len(counts)), counts)
    check_labels(table["video_id"].take(pa.array(rows)), labels, classes)
    right = np.zeros((len(counts), classes), bool)  # which classes each video shows
    right[rows, labels] = True
    labelled = right.any(axis=1)
    right, ranked = right[labelled], table.filter(pa.array(labelled, pa.bool_()))
    before, after = (_all_scores(ranked, when, classes) for when in ("before", "after"))
    sources = codes_of([sources_of(ranked)])
    told: dict[str, Any] = {"sources": sources, "seed": seed, "resamples": resamples}
    map_before = multi_label_metrics(right, before, **told)
    same = np.array_equal(before, after)
    return {
        "labelled": len(right),
        "groups": _shared(sources),
        "chance": float(right[:, right.any(axis=0)].mean()) if len(right) else 1 / classes,
        "failures_wrong": None,
        "failures_excluded": None,
        "map_before": map_before,
        "map_after": map_before if same else multi_label_metrics(right, after, **told),
        "map_change": None if same else multi_label_change(right, before, after, **told),
    }


def _lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """How long each list is, 0 for null, and all their values after one another."""
    lists = column.combine_chunks()
    return lists.value_lengths().fill_null(0).to_numpy(), lists.flatten().to_numpy()


def _all_scores(table: pa.Table, when: str, classes: int) -> np.ndarray:
    """The logarithms of the classes' probabilities, ``(videos, K)`` float64; failed videos rank below all others.

    Logits will not do: those of one evaluation view are on a scale of their own in each video, those of several are
    such logarithms already.
    """
    finished = table["error"].is_null().to_numpy()
    scored = table.filter(pa.array(finished, pa.bool_()))
    lengths, logits = _lists(scored[f"scores_{when}"])
    if wrong := np.flatnonzero(lengths != classes).tolist():
        raise RunError(
            f"{scored['video_id'][wrong[0]]}: its row lacks the scores {when} adaptation of the {classes} classes, "
            "which average precision needs"
        )
    measured = log_softmax(logits.reshape(-1, classes).astype(np.float64), axis=1)
    scores = np.full((len(finished), classes), measured.min(initial=0.0) - 1)
    scores[finished] = measured
    return scores


def _mean(table: pa.Table, name: str) -> float | None:
    values = table[name].drop_null().to_numpy()
    return float(values.mean(dtype=np.float64)) if len(values) else None


def _scores(rows: CaseRows) -> Scores | None:
    if not len(rows.label):
        return None

    sources = rows.sources

    def accuracy(rank: np.ndarray) -> Accuracy:
        right = rank == RIGHT
        return Accuracy(
            top1=share_of(right, sources),
            top5=share_of(rank >= AMONG_FIVE, sources),
            mean_class=mean_class_share(rows.label, right, sources),
        )

    # Zero-shot leaves all scores as they were.
    pairs = ([rows.table[f"{name}_{when}"] for when in ("before", "after")] for name in ("top5_scores", "top5"))
    adapts = any(not before.combine_chunks().equals(after.combine_chunks()) for before, after in pairs)
    change = paired_comparison(rows.before == RIGHT, rows.after == RIGHT, sources) if adapts else None
    return Scores(len(rows.label), accuracy(rows.before), accuracy(rows.after), change)
