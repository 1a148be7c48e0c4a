"""What the runs of a study hold in MLflow: names, tags and numbers, made from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zar_ray.results.record import CaseMetrics, RunSummary
from zar_ray.results.study_record import Cell, StudyRecord, StudyTable, TableRow
from zar_ray.tracking.store import key_part

_CASE_FILES = ("per_class.csv", "confusion.png")


@dataclass(frozen=True)
class Child:
    """A run below the study's.

    Attributes:
        name: What it is called.
        cell: Its model and options.
        labels: What tells it from its siblings; tags and parameters.
        tags: Further tags.
        numbers: Its metrics.
        files: Where its files are in the study's folder, by their names in MLflow.
    """

    name: str
    cell: Cell
    labels: Mapping[str, str]
    tags: Mapping[str, str]
    numbers: Mapping[str, float]
    files: Mapping[str, str] = field(default_factory=dict)


def study_tags(study: StudyRecord) -> dict[str, str]:
    """Tags of the study's own run."""
    axes = {"axes": ", ".join(study.axes)} if study.axes else {}
    return {**model_tags(*(cell.summary for cell in study.cells)), **axes}


def model_tags(*summaries: RunSummary) -> dict[str, str]:
    """Tags that say what the models are."""
    return {
        "model": ", ".join(dict.fromkeys(one.model for one in summaries)),
        "model_fingerprint": ", ".join(dict.fromkeys(one.model_fingerprint for one in summaries)),
        "random_weights": str(any(one.random_weights for one in summaries)).lower(),
    }


def command(study: StudyRecord) -> str:
    """What MLflow shows as a run's source."""
    if "training seed" in study.axes or "shots" in study.axes:
        return "zar train"
    return "zar ablate" if "setting" in study.axes else "zar eval"


def study_numbers(study: StudyRecord) -> dict[str, float]:
    """Metrics of the study's own run: of the whole pass, and of one cell's cases and averages, or its tables' rows."""
    numbers = study.whole.numbers()
    for table in study.tables:
        for row in table.rows:
            numbers |= _under(_row_key(table, row), row.numbers())
    if len(study.cells) == 1:
        summary = study.cells[0].summary
        for case in summary.cases:
            numbers |= _under("/".join(_case_key(summary, case)), case.numbers())
        for average in summary.averages:
            numbers |= _under(average.method, average.numbers())
    return numbers


def children(study: StudyRecord) -> list[Child]:
    """The runs below the study's: a cell and method each, or in a study of one cell a split and method."""
    if len(study.cells) == 1:
        return [_of_case(study.cells[0], case) for case in study.cells[0].summary.cases]
    rows = {(place, row.method): (table, row) for place, table, row in study.rows_of_cells()}
    return [
        _of_cell(cell, method, place, *rows.get((place, method), (None, None)))
        for place, cell in enumerate(study.cells)
        for method in dict.fromkeys(case.method for case in cell.summary.cases)
    ]


def _of_case(cell: Cell, case: CaseMetrics) -> Child:
    key = _case_key(cell.summary, case)
    labels = {"method": case.method, "split": case.split} if len(key) > 1 else {"method": case.method}
    files = {name: "_".join((*key, name)) for name in _CASE_FILES}
    return Child("/".join(key), cell, labels, {"case": case.case_id}, case.numbers(), files)


def _of_cell(cell: Cell, method: str, place: int, table: StudyTable | None, row: TableRow | None) -> Child:
    """A cell's run under one method, with what the row that it is in says of it; `place` is the cell's in the study."""
    cases = [case for case in cell.summary.cases if case.method == method]
    numbers: dict[str, float] = {}
    for case in cases:
        numbers |= _under(case.split, case.numbers()) if len(cases) > 1 else case.numbers()
    for average in cell.summary.averages:
        numbers |= average.numbers() if average.method == method else {}
    if row is not None and len(row.cells) == 1:
        numbers |= row.numbers()
    elif row is not None and row.main is not None and len(row.main.replicates) == len(row.cells):
        numbers["accuracy"] = row.main.replicates[row.cells.index(place)]
    tags = {"case": ", ".join(case.case_id for case in cases)}
    if table is not None and "setting" in cell.coordinates:
        tags["sweep"] = table.name
    labels = {"method": method, **{axis.replace(" ", "_"): label for axis, label in cell.coordinates.items()}}
    return Child(f"{cell.label} / {method}", cell, labels, tags, numbers)


def _case_key(summary: RunSummary, case: CaseMetrics) -> tuple[str, ...]:
    """What tells a case from the others of its cell."""
    return (case.split, case.method) if len(summary.splits) > 1 else (case.method,)


def _row_key(table: StudyTable, row: TableRow) -> str:
    """What tells a row from all others of the study."""
    labels = ", ".join(label for axis, label in row.labels.items() if axis != "method")
    return "/".join(key_part(part) for part in (table.name, labels, row.method) if part)


def _under(key: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {f"{key}/{name}": value for name, value in numbers.items()}
