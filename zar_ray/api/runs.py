"""Finished runs in Python: their tables, and what holds them against each other."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from zar_ray.errors import ConfigError, RunError, suggestion
from zar_ray.options.base import meaning
from zar_ray.reporting.blocks import Form
from zar_ray.reporting.citing import cite
from zar_ray.reporting.comparison import Comparison as Compared
from zar_ray.reporting.comparison import compare_runs
from zar_ray.reporting.comparison_views import comparison_values, plot, report_comparison, write_comparison
from zar_ray.reporting.prediction_tables import classes_of, named_rows
from zar_ray.reporting.run_data import RunData, StudyData
from zar_ray.results.record import PairedComparison, RunSummary
from zar_ray.results.rows import RESULT_SCHEMA
from zar_ray.results.study_record import StudyRecord
from zar_ray.study.options import EvalConfig

if TYPE_CHECKING:
    import pandas as pd


def open_run(path: str | os.PathLike[str]) -> Run:
    """Opens a finished run's folder, which may be a URI.

    Raises:
        RunError: It holds no finished run, or files that do not belong together.
    """
    data = StudyData.read(os.fspath(path))
    return Run(data, data.cells)


def compare(*runs: Run | str | os.PathLike[str]) -> Comparison:
    """Holds runs against the first of them, as `zar report compare` does.

    Args:
        runs: Runs, or their folders; of a run of several cells all take part, or with ``[LABEL]`` behind the folder the
            one of that label.

    Raises:
        ConfigError: There are fewer than two runs or cells, or one is named twice.
        RunError: A folder holds no finished run, or no such cell.
    """
    places = [place for run in runs for place in (run.places if isinstance(run, Run) else [os.fspath(run)])]
    return Comparison(compare_runs(places, meaning(EvalConfig()).keys()))


class Run:
    """A finished run, or some of its cells; `open_run`, `evaluate` and `study` give it.

    Tables are Arrow's: ``to_pandas()`` makes data frames of them.
    """

    def __init__(self, data: StudyData, cells: Sequence[RunData]) -> None:
        self._data, self._cells = data, tuple(cells)

    def __repr__(self) -> str:
        return f"Run({', '.join(self.places)})"

    @property
    def name(self) -> str:
        """Its name: its folder's."""
        return self.record.whole.name

    @property
    def path(self) -> str:
        """Its folder or URI."""
        return self._data.place

    @property
    def places(self) -> tuple[str, ...]:
        """What `compare` and `zar report compare` call its cells."""
        return tuple(cell.place for cell in self._cells)

    @property
    def record(self) -> StudyRecord:
        """All that its run.json says of the study."""
        return self._data.record

    @property
    def config(self) -> Mapping[str, Any]:
        """The first cell's resolved options, as plain JSON values."""
        return self._cells[0].config

    @property
    def summary(self) -> RunSummary:
        """What the first cell found."""
        return self._cells[0].summary

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its cells; of a run of one cell an empty one."""
        return tuple(cell.cell.label for cell in self._cells)

    def cell(self, label: str) -> Run:
        """One cell alone.

        Raises:
            RunError: There is none of this label; the message suggests the nearest.
        """
        found = [cell for cell in self._cells if cell.cell.label == label]
        if not found:
            raise RunError(f'{self.path}: has no cell "{label}"{suggestion(label, self.labels)}')
        return Run(self._data, found)

    def predictions(self, *more: str) -> pa.Table:
        """The result table with class names: a row a (video, cell, method), sorted by video.

        The columns are those of ``predictions.csv`` (docs/results.md).

        Args:
            more: Further columns of predictions.parquet, such as ``"video_feature"`` or ``"view_entropies"``.

        Raises:
            ConfigError: There is no such column.
            RunError: The file is not there, or damaged.
        """
        for name in more:
            if name not in RESULT_SCHEMA.names:
                raise ConfigError(f"predictions: no column {name}{suggestion(name, RESULT_SCHEMA.names)}")
        classes = classes_of(self.record, {split.name: split.class_names for split in self._data.splits})
        own = {case.case_id for cell in self._cells for case in cell.summary.cases}
        stored = self._data.stored
        return pa.concat_tables(named_rows(stored, {case: one for case, one in classes.items() if case in own}, more))

    def cases(self) -> pa.Table:
        """A row a (cell, split, method): its labels on the study's axes, counts, metrics with intervals, and costs.

        Metrics are fractions after adaptation; ``_before`` is before it, and docs/mlflow.md says what the others are.
        """
        rows = []
        for cell in self._cells:
            summary = cell.summary
            about = {"dataset": summary.dataset, "model": summary.model, "fingerprint": summary.model_fingerprint}
            for case in summary.cases:
                axes = {**about, **_of_cell(cell), "seed": summary.seed}
                named = {**axes, "split": case.split, "method": case.method}
                rows.append({**named, **{name: one for name, one in case.numbers().items() if name not in named}})
        return _table(rows, ("cell",))

    def metrics(self) -> pa.Table:
        """A row a (cell, split, method, metric, when): the value with its 95 % interval, as fractions.

        ``when`` is ``before`` or ``after`` adaptation, or ``change``: the paired difference, with its ``p_value`` and
        the decisions ``gained`` and ``lost``. What a protocol reports over its splits has their ``mean`` or
        ``harmonic`` mean for a split, and ``std`` between them.
        """
        return _table([row for cell in self._cells for row in _metrics(cell)], _METRICS)

    def cite(self) -> str:
        """Its protocol as a paragraph of LaTeX, with the BibTeX entries that it cites; see `zar report cite`."""
        return cite(self._data)

    def compare(self, *others: Run | str | os.PathLike[str]) -> Comparison:
        """Holds others, or its own further cells, against its first cell; see `compare`."""
        return compare(self, *others)


class Comparison:
    """Runs held against the first of them, with paired statistics where they are of the same videos."""

    def __init__(self, compared: Compared) -> None:
        self._compared = compared

    def to_arrow(self) -> pa.Table:
        """A row a (run, split, method), as `zar report compare --format csv` prints it; shares are fractions."""
        return _table(comparison_values(self._compared))

    def to_pandas(self) -> pd.DataFrame:
        """The same as a data frame."""
        return self.to_arrow().to_pandas()

    def videos(self) -> pa.Table:
        """The videos whose decision is right in one run alone: ``gained`` in this run, ``lost`` to the first."""
        rows = [
            {
                "run": line.run.name,
                "split": line.case.split,
                "method": line.case.method,
                "video_id": one,
                "change": what,
            }
            for line in self._compared.lines
            if line.paired is not None
            for what, videos in (("gained", line.paired.gained), ("lost", line.paired.lost))
            for one in videos
        ]
        return _table(rows, ("run", "split", "method", "video_id", "change"))

    def text(self, form: Form = "terminal") -> str:
        """All of it, as `zar report compare --format FORM` prints it."""
        stream = io.StringIO()
        report_comparison(self._compared, form, Console(file=stream, width=100, highlight=False))
        return stream.getvalue()

    def write(self, output: str | os.PathLike[str]) -> str:
        """Writes all of it as a page (.html) or its plot (.png, .svg, .pdf); returns where it is.

        Raises:
            ConfigError: It is to be another kind of file, or no run has an accuracy to plot.
            RunError: The file cannot be written.
        """
        return write_comparison(self._compared, os.fspath(output))

    def __repr__(self) -> str:
        return self.text()

    def _repr_svg_(self) -> str | None:
        """The plot, which notebooks show."""
        return None if (drawn := plot(self._compared, "svg")) is None else drawn.decode()


_METRICS = (
    *("cell", "split", "method", "metric", "when", "value", "low", "high"),
    *("std", "p_value", "gained", "lost", "detectable"),
)


def _of_cell(cell: RunData) -> dict[str, Any]:
    return {"cell": cell.cell.label, **cell.cell.coordinates}


def _metrics(cell: RunData) -> Iterator[dict[str, Any]]:
    axes = _of_cell(cell)
    for case in cell.summary.cases:
        named = {**axes, "split": case.split, "method": case.method}
        for when in ("before", "after"):
            for metric, one in case.estimates(when).items():
                yield {**named, "metric": metric, "when": when, **vars(one)}
        if case.change is not None:
            yield {**named, "metric": next(iter(case.estimates("after"))), **_change(case.change)}
    for one in cell.summary.averages:
        metric, when = one.metric.removesuffix("_before"), "before" if one.metric.endswith("_before") else "after"
        named = {**axes, "split": one.kind, "method": one.method, "metric": metric}
        yield {**named, "when": when, "value": one.value, "std": one.std}
        if one.change is not None:
            yield {**named, **_change(one.change)}


def _change(one: PairedComparison) -> dict[str, Any]:
    about = {"p_value": one.p_value, "gained": one.gained, "lost": one.lost, "detectable": one.detectable}
    return {"when": "change", **vars(one.effect), **about}


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pa.Table:
    """Rows with all columns that any has, after those that are always there."""
    names = dict.fromkeys((*columns, *(name for row in rows for name in row)))
    return pa.table({name: [row.get(name) for row in rows] for name in names})
