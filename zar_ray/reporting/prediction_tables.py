"""A run's result table with names in place of class numbers: for Python, and as ``predictions.csv`` for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from zar_ray.reporting.blocks import csv_cell
from zar_ray.results.rows import FLAT_COLUMNS
from zar_ray.results.stored_rows import StoredRows
from zar_ray.results.study_record import StudyRecord
from zar_ray.storage import Storage

PREDICTIONS_CSV = "predictions.csv"
"""File in a run's folder that holds its result table with names."""

Classes = Mapping[str, tuple[str, tuple[str, ...]]]
"""By a case's id its cell's label, and the names that its numbers count."""

_NAMED = ("label_id", "label", "labels", "top5_before", "top5_after", "top5_scores_before", "top5_scores_after")
_LEFT_OUT = ("case_id", "label_id", "label", "recorded_at")


def classes_of(record: StudyRecord, names: Mapping[str, tuple[str, ...]]) -> Classes:
    """Of each case of a study its cell and class names, from the class names of each split."""
    only = next(iter(names.values()))
    return {
        case.case_id: (cell.label, names.get(case.split, only)) for cell in record.cells for case in cell.summary.cases
    }


def named_rows(stored: StoredRows, classes: Classes, more: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The result table bit by bit, an empty one first, with names: a row a (video, case).

    Columns are ``cell``, the right ``label`` or ``labels`` (joined by "; ", where a video may show several),
    ``predicted_before`` and ``predicted_after`` with their ``confidence``, the softmax probability; those of
    `zar_ray.results.rows.ResultRow` that hold one value; and those of `more`.

    Raises:
        RunError: The file is not there, or damaged.
    """
    shown = [name for name in FLAT_COLUMNS if name not in _LEFT_OUT]
    columns = [*dict.fromkeys([*shown, "case_id", *_NAMED, *more])]
    for table in stored.of(classes).pieces(columns):
        yield _named(table, classes, shown, more)


def _named(table: pa.Table, classes: Classes, shown: Sequence[str], more: Sequence[str]) -> pa.Table:
    coded = table["case_id"].combine_chunks().dictionary_encode()
    cases = [classes[case] for case in coded.dictionary.to_pylist()]
    names = pa.array([name for _, of_case in cases for name in of_case], pa.string())
    starts = pa.array(np.cumsum([0, *(len(of_case) for _, of_case in cases)])[:-1], pa.int64())
    start = _taken(starts, coded.indices)
    columns = {"cell": _taken(pa.array([cell for cell, _ in cases], pa.string()), coded.indices)}
    columns |= {name: table[name] for name in ("video_id", "method", "model", "setting")}

    def name_of(ids: pa.Array) -> pa.Array:
        return _taken(names, pc.call_function("add", [start, ids.cast(pa.int64())]))

    columns["label"] = pc.call_function("coalesce", [name_of(table["label_id"].combine_chunks()), table["label"]])
    several = zip(start.to_pylist(), table["labels"].to_pylist(), strict=True)
    joined = [None if ids is None else "; ".join(names[at + one].as_py() for one in ids) for at, ids in several]
    columns["labels"] = pa.array(joined, pa.string())
    for when in ("before", "after"):
        columns[f"predicted_{when}"] = name_of(_first(table[f"top5_{when}"]))
        columns[f"confidence_{when}"] = _first(table[f"top5_scores_{when}"])
    columns |= {name: table[name] for name in (*shown, *more) if name not in columns}
    return pa.table(columns)


def _taken(values: pa.Array, places: pa.Array) -> pa.Array:
    return pc.call_function("take", [values, places])


def _first(lists: pa.ChunkedArray) -> pa.Array:
    """The first value of each list; null where there is no list."""
    return pc.call_function("list_element", [lists.combine_chunks(), pa.scalar(0)])


def write_predictions_csv(storage: Storage, stored: StoredRows, classes: Classes) -> None:
    """Writes `PREDICTIONS_CSV` into a run's folder, whole or not at all; no cell of it is a formula to a spreadsheet.

    Raises:
        RunError: The rows cannot be read, or the file cannot be written.
    """
    pieces = named_rows(stored, classes)
    with storage.filling(PREDICTIONS_CSV) as file, csv.CSVWriter(file, (first := next(pieces)).schema) as writer:
        for piece in (first, *pieces):
            writer.write_table(_harmless(piece))


def _harmless(table: pa.Table) -> pa.Table:
    for place, field in enumerate(table.schema):
        if field.type == pa.string():
            coded = table.column(place).combine_chunks().dictionary_encode()
            cells = pa.array([csv_cell(text) for text in coded.dictionary.to_pylist()], pa.string())
            table = table.set_column(place, field.name, _taken(cells, coded.indices))
    return table
