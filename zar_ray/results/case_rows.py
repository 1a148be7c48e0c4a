"""The rows of one case as arrays, and what is counted by class from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from zar_ray.errors import RunError
from zar_ray.results.record import ClassAccuracy, Estimate
from zar_ray.results.statistics import change_of, share_of

CASE_COLUMNS = (
    *("video_id", "case_id", "label_id", "label", "group", "error"),
    *("correct_before", "correct_after", "correct5_before", "correct5_after"),
)
"""Columns that `CaseRows` is made of."""

CLASS_COLUMNS = (*CASE_COLUMNS, "top5_after")
"""Columns that `class_accuracies` and `confusion_matrix` are made of."""

RIGHT, AMONG_FIVE, MISSED = 2, 1, 0
"""Where a decision ranks the right class: first, among the best five, or below."""


@dataclass(frozen=True, eq=False)
class CaseRows:
    """The rows of one case as arrays, in the table's order.

    Attributes:
        label: int (N,), the right label ids; -1 for none.
        before: int8 (N,), how the decision before adaptation ranks the right class: `RIGHT`, `AMONG_FIVE`, `MISSED`.
        after: The same after adaptation.
        finished: bool (N,), whether there is a decision.
        unknown: bool (N,), whether the class was held out of the class names: such a video has no label id.
        source: Text (N,), see `sources_of`.
    """

    table: pa.Table
    label: np.ndarray
    before: np.ndarray
    after: np.ndarray
    finished: np.ndarray
    unknown: np.ndarray
    source: pa.ChunkedArray

    @classmethod
    def of(cls, table: pa.Table, case_id: str, classes: int) -> CaseRows:
        """Takes a case's rows out of a result table, or of its `CASE_COLUMNS`.

        Raises:
            RunError: A label is not among the K classes.
        """
        table = of_case(table, case_id)
        label = table["label_id"].fill_null(-1).to_numpy()
        check_labels(table["video_id"], label, classes)

        def rank(when: str) -> np.ndarray:
            first, among = (table[f"{name}_{when}"].fill_null(False).to_numpy() for name in ("correct", "correct5"))
            return np.where(first, RIGHT, np.where(among, AMONG_FIVE, MISSED)).astype(np.int8)

        finished = table["error"].is_null().to_numpy()
        unknown = (label < 0) & table["label"].is_valid().to_numpy()
        return cls(table, label, rank("before"), rank("after"), finished, unknown, sources_of(table))

    def select(self, chosen: np.ndarray) -> CaseRows:
        """Those of the rows where `chosen`, bool (N,), is true."""
        if chosen.all():
            return self
        mask = pa.array(chosen, pa.bool_())
        return CaseRows(
            self.table.filter(mask),
            self.label[chosen],
            self.before[chosen],
            self.after[chosen],
            self.finished[chosen],
            self.unknown[chosen],
            self.source.filter(mask),
        )

    @cached_property
    def sources(self) -> np.ndarray:
        """Int (N,), equal for videos of one source, and in the sources' order."""
        return codes_of([self.source])


def of_case(table: pa.Table, case_id: str) -> pa.Table:
    """The rows of one case, which are no copy where there are no others."""
    chosen = pc.call_function("equal", [table["case_id"], pa.scalar(case_id)])
    return table if len(chosen.unique()) == 1 and chosen[0].as_py() else table.filter(chosen)


def by_video(table: pa.Table) -> pa.Table:
    """The rows in their videos' order, which are no copy where they stand in it."""
    places = pc.call_function("array_sort_indices", [table["video_id"].combine_chunks()])
    order = places.to_numpy()
    return table if (order[1:] > order[:-1]).all() else table.take(places)


def sources_of(table: pa.Table) -> pa.ChunkedArray:
    """What each video was cut from, text (N,): its group, or itself."""
    return pc.call_function("coalesce", [table["group"], table["video_id"]])


def codes_of(sources: Sequence[pa.ChunkedArray]) -> np.ndarray:
    """Texts after one another as numbers, int (N,), which are equal, less or greater where the texts are."""
    column = pa.chunked_array([chunk for one in sources for chunk in one.chunks], pa.string()).combine_chunks()
    rises = pc.call_function("less", [column[:-1], column[1:]])
    if pc.call_function("all", [rises]).as_py():  # as of videos without groups, which lie in their ids' order
        return np.arange(len(column))
    encoded = column.dictionary_encode()
    ranks = np.empty(len(encoded.dictionary), np.int64)
    ranks[pc.call_function("array_sort_indices", [encoded.dictionary]).to_numpy()] = np.arange(len(ranks))
    return ranks[encoded.indices.to_numpy()]


def firsts(lists: pa.ChunkedArray) -> np.ndarray:
    """The first value of each list; none is empty, as of the best five of finished rows."""
    of_chunks = [one.values.to_numpy()[one.offsets.to_numpy()[:-1]] for one in lists.chunks if len(one)]
    return np.concatenate(of_chunks) if of_chunks else np.array([], lists.type.value_type.to_pandas_dtype())


def check_labels(video_ids: pa.ChunkedArray, labels: np.ndarray, classes: int) -> None:
    """Refuses label ids that are no position among the classes.

    Raises:
        RunError: There is one; the message names its video.
    """
    if len(labels) and labels.max() >= classes:
        worst = int(labels.argmax())
        raise RunError(
            f"{video_ids[worst]}: its label is number {labels[worst]}, but the run has {classes} classes, "
            "numbered from 0; evaluate with the class names that the manifest was made with"
        )


def class_accuracies(table: pa.Table, case_id: str, class_names: Sequence[str]) -> tuple[ClassAccuracy, ...]:
    """Accuracy by class, in the order of the class names; failed videos count as wrong.

    Raises:
        RunError: A label is not among the classes.
    """
    count = len(class_names)
    rows = CaseRows.of(table, case_id, count)
    rows = rows.select(rows.label >= 0)

    def by_class(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(rows.label[chosen], minlength=count)

    videos, failed = by_class(np.ones(len(rows.label), bool)), by_class(~rows.finished)
    before, after = by_class(rows.before == RIGHT), by_class(rows.after == RIGHT)
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


def class_estimates(rows: CaseRows, *, adapts: bool) -> dict[int, Estimate]:
    """By how much the top-1 share of each class that has videos rose, with its interval; failed videos count as wrong.

    Of a case that adapts nothing it is the share itself. See `zar_ray.results.statistics` for the intervals.
    """
    rows = rows.select(rows.label >= 0)
    order, sources = np.argsort(rows.label, kind="stable"), rows.sources
    present, begins = np.unique(rows.label[order], return_index=True)
    found = {}
    for label, chosen in zip(present.tolist(), np.split(order, begins[1:]), strict=True):
        before, after = rows.before[chosen] == RIGHT, rows.after[chosen] == RIGHT
        changes = after.astype(int)[None] - before
        found[label] = change_of(changes, sources[chosen]) if adapts else share_of(after, sources[chosen])
    return found


def confusion_matrix(table: pa.Table, case_id: str, classes: int) -> np.ndarray:
    """How often each class is taken for each after adaptation, over the labelled videos that finished.

    Returns:
        ``(K, K)`` int64: rows are the right class, columns the predicted one.

    Raises:
        RunError: A label is not among the classes.
    """
    rows = CaseRows.of(table, case_id, classes)
    rows = rows.select((rows.label >= 0) & rows.finished)
    if not len(rows.label):
        return np.zeros((classes, classes), np.int64)
    predicted = firsts(rows.table["top5_after"])
    return sklearn_confusion_matrix(rows.label, predicted, labels=range(classes)).astype(np.int64)
