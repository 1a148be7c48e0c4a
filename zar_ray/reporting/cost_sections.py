"""Accuracy against cost, in the report of a study with several methods."""

from __future__ import annotations

from zar_ray.reporting.cost_figures import PlottedCost, pareto_chart
from zar_ray.reporting.numbers import METRICS
from zar_ray.reporting.pages import Content, Figure, Section, why_empty
from zar_ray.results.study_record import CORRUPTION, StudyRecord, label_of

_TITLE = "Accuracy against cost"
_COSTS = ("seconds", "images")
"""What a video costs, by its names in cases and rows."""


def cost_section(record: StudyRecord) -> Section:
    """The picture, once by seconds and once by images; of a study of one method why there is none."""
    content: list[Content] = []
    for cost in _COSTS:
        metric, points = plotted(record, cost)
        if len({one.method for one in points}) > 1:
            content.append(Figure(pareto_chart(points, METRICS[metric], cost), _caption(record)))
    if not content:
        return why_empty(_TITLE, "It takes two methods with a score, and what they cost.")
    return Section(_TITLE, content)


def plotted(record: StudyRecord, cost: str) -> tuple[str, list[PlottedCost]]:
    """The metric, and a point a row of the first table, or of a study of one cell a case."""
    points = []
    if record.tables:
        table = record.tables[0]
        first = table.rows[0].labels.get(CORRUPTION)
        for row in table.rows:
            if (main := row.main) is not None and row.labels.get(CORRUPTION) == first and (took := getattr(row, cost)):
                others = {axis: one for axis, one in row.labels.items() if axis not in ("method", CORRUPTION)}
                name = ", ".join(part for part in (row.method, label_of(others)) if part)
                points.append(PlottedCost(name, row.method, took, main.value, main.low, main.high))
        return table.metric, points
    cases, metric = record.cells[0].summary.cases, "top1"
    for case in cases:
        # Scores on the videos of several splits are not to be held against each other.
        if case.split == cases[0].split and (found := case.estimates("after")) and (took := getattr(case, cost)):
            metric, score = next(iter(found.items()))
            points.append(PlottedCost(case.method, case.method, took, score.value, score.low, score.high))
    return metric, points


def _caption(record: StudyRecord) -> str:
    first = record.tables[0].rows[0].labels.get(CORRUPTION) if record.tables else None
    shown = f" Frames: {first}." if first is not None else ""
    if not record.tables and len(record.whole.splits) > 1:
        shown = f" Split {record.cells[0].summary.cases[0].split}."
    return (
        "Means a video as if each method ran alone, with 95 % intervals of the score. The dashed front joins what "
        f"nothing else is both as cheap and as good as.{shown}"
    )
