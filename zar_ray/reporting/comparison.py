"""Finished runs held against the first of them, video by video where they are of the same videos.

A run is one cell of a study: another run's, or another cell of the same.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zar_ray.errors import ConfigError, RunError, ZarError, suggestion
from zar_ray.options.layers import leaves
from zar_ray.reporting.numbers import METRICS
from zar_ray.reporting.run_data import RunData, StudyData
from zar_ray.results.case_rows import CASE_COLUMNS, CLASS_COLUMNS, RIGHT, CaseRows, by_video, class_accuracies
from zar_ray.results.estimates import Measure
from zar_ray.results.folder import SUMMARY
from zar_ray.results.record import CaseMetrics, ClassAccuracy, Estimate, PairedComparison
from zar_ray.results.statistics import holm, paired_comparison
from zar_ray.results.study_record import FinishedRun, FinishedStudy
from zar_ray.results.trust import Decisions, compare_trust, trust_columns
from zar_ray.storage import Storage, folder_of

Lookup = Callable[[str], FinishedStudy]
"""Reads a study of MLflow by its run id."""

_OF_CELL = re.compile(r"(?P<run>.+?)\[(?P<label>[^\[\]]*)\]")


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run that takes part in a comparison.

    Attributes:
        mark: What it is called where room is short: A for the first run, B for the second.
        name: What it is called elsewhere, different from all others.
        data: Its folder's content, or why that is not at hand.
        settings: How its options, model and dataset differ from the first run's, a phrase each.
    """

    mark: str
    name: str
    finished: FinishedRun
    data: RunData | str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paired:
    """A case of a run held against one of the first run, on the same videos.

    Attributes:
        method: The first run's method that it is held against.
        comparison: The difference; gained are right only in this run, lost only in the first.
        adjusted: Its p, adjusted by Holm's rule for the number of tests in the comparison. Where no video changed
            there is no test, and it is 1.
        classes: Every class that has videos, the most gained first: before is the first run, after this one.
        trust: Measures of trust over the videos that finished in both: before is the first run, after this one.
    """

    method: str
    videos: int
    comparison: PairedComparison
    adjusted: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    classes: tuple[ClassAccuracy, ...]
    trust: Mapping[str, Measure]


@dataclass(frozen=True, eq=False)
class Line:
    """One case of one run.

    Attributes:
        paired: Its paired comparison with the first run.
        unpaired: Why there is none; None too for the first run's own cases.
    """

    run: ComparedRun
    case: CaseMetrics
    paired: Paired | None = None
    unpaired: str | None = None

    @property
    def metric(self) -> str:
        """What `after` is of."""
        return METRICS[next(iter(self.case.estimates("after")), "top1")]

    @property
    def after(self) -> Estimate | None:
        """Top-1, or mean average precision, which is the run's result; None without labels."""
        return next(iter(self.case.estimates("after").values()), None)

    @property
    def before(self) -> Estimate | None:
        """The same before adaptation; None for a method that does not adapt."""
        return next(iter(self.case.estimates("before").values()), None) if self.case.adapts else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs beside each other, and their cases run by run; all others are held against the first."""

    runs: tuple[ComparedRun, ...]
    lines: tuple[Line, ...]


def compare_runs(places: Sequence[str], meaningful: Collection[str], lookup: Lookup | None = None) -> Comparison:
    """Compares runs with the first of them.

    Args:
        places: Folders or URIs of studies; with `lookup` also run ids of MLflow. All cells of a study take part, or
            with ``[LABEL]`` behind its place the one of that label.
        meaningful: The options, by their first names, that numbers depend on.
        lookup: Reads a study of MLflow.

    Raises:
        ConfigError: There are fewer than two runs, or one is named twice.
        RunError: A place holds no finished run, or no such cell.
        TrackingError: MLflow has no such run or cannot be reached.
    """
    known: dict[str, list[ComparedRun]] = {}
    found = [run for place in places for run in _read(place, lookup, known)]
    if len(found) < 2:
        raise ConfigError(
            "zar report compare: give two runs or more, as folders or with --mlflow-uri as run ids, or one of several "
            "cells"
        )
    runs = _named(found, meaningful)
    first = runs[0]
    lines = [Line(first, case) for case in first.finished.summary.cases]
    for run in runs[1:]:
        lines += [_line(first, run, case) for case in run.finished.summary.cases]
    # Where no video changed, nothing is tested.
    tests = [line.paired for line in lines if line.paired is not None and (line.paired.gained or line.paired.lost)]
    adjusted = dict(zip(map(id, tests), holm([one.comparison.p_value for one in tests]), strict=True))
    for number, line in enumerate(lines):
        if line.paired is not None:
            lines[number] = replace(line, paired=replace(line.paired, adjusted=adjusted.get(id(line.paired), 1.0)))
    return Comparison(runs, tuple(lines))


def _read(place: str, lookup: Lookup | None, known: dict[str, list[ComparedRun]]) -> list[ComparedRun]:
    """The cells that a place names; `known` holds those of studies that were read before."""
    named = None if Storage(place).exists(SUMMARY) else _OF_CELL.fullmatch(place)
    run = named["run"] if named else place
    if run not in known:
        known[run] = _cells(run, lookup)
    if named is None:
        return known[run]
    labels = [one.finished.cell.label for one in known[run]]
    if named["label"] not in labels:
        place, near = known[run][0].finished.study.place, suggestion(named["label"], labels)
        raise RunError(f'{place}: has no cell "{named["label"]}"{near}')
    return [known[run][labels.index(named["label"])]]


def _cells(run: str, lookup: Lookup | None) -> list[ComparedRun]:
    if lookup is None or Storage(run).exists():
        return [ComparedRun("", one.name, one, one) for one in StudyData.read(run).cells]
    study = lookup(run)
    folder = folder_of(study.record.whole.run_file)
    try:
        data = StudyData.read(folder)
        if [cell.summary.cases for cell in data.record.cells] != [c.summary.cases for c in study.record.cells]:
            raise RunError(f"{folder} holds other results than MLflow's run {run}")
    except ZarError as error:
        return [ComparedRun("", one.name, one, str(error)) for one in study.runs]
    return [ComparedRun("", one.name, one, data.cells[one.number]) for one in study.runs]


def _named(runs: Sequence[ComparedRun], meaningful: Collection[str]) -> tuple[ComparedRun, ...]:
    """The runs with marks, with names that differ, and with what differs in their settings."""
    places = [run.finished.place for run in runs]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise ConfigError(f"zar report compare: {twice} is named twice")
    names = [run.name for run in runs]
    first = _settings(runs[0].finished, meaningful)
    named = []
    for number, run in enumerate(runs):
        name = run.name
        if names.count(name) > 1:
            name = f"{name} ({_mark(number)})"
        own = _settings(run.finished, meaningful)
        keys = [key for key in {**first, **own} if first.get(key) != own.get(key)]
        settings = tuple(f"{key} {_shown(first.get(key))} -> {_shown(own.get(key))}" for key in keys)
        named.append(replace(run, mark=_mark(number), name=name, settings=settings))
    return tuple(named)


def _mark(number: int) -> str:
    letters = string.ascii_uppercase
    return letters[number] if number < len(letters) else f"R{number + 1}"


def _settings(run: FinishedRun, meaningful: Collection[str]) -> Mapping[str, object]:
    """What a run's numbers depend on, by name."""
    summary = run.summary
    model = {"model": f"{summary.model} ({summary.model_fingerprint})"}
    own = {name: one for name, one in run.config.items() if name in meaningful and name not in ("model", "method")}
    return {"dataset": summary.dataset, **model, **leaves(own)}


def _shown(value: object) -> str:
    if value is None:
        return "default"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


class _UnpairedError(Exception):
    """Why a case has no paired comparison."""


def _line(first: ComparedRun, run: ComparedRun, case: CaseMetrics) -> Line:
    try:
        base = _counterpart(first, run, case)
        return Line(run, case, _pair(_data(first), base, _data(run), case))
    except _UnpairedError as why:
        return Line(run, case, unpaired=str(why))


def _counterpart(first: ComparedRun, run: ComparedRun, case: CaseMetrics) -> CaseMetrics:
    """The first run's case of the same split and method; where it has one method alone, that."""
    single = all(len({one.split for one in each.finished.summary.cases}) == 1 for each in (first, run))
    cases = [one for one in first.finished.summary.cases if single or one.split == case.split]
    if not cases:
        raise _UnpairedError(f"{first.name} has no split {case.split}")
    same = [one for one in cases if one.method == case.method]
    if not same and len(cases) > 1:
        raise _UnpairedError(f"{first.name} has several methods, and not {case.method}")
    return (same or cases)[0]


def _data(run: ComparedRun) -> RunData:
    if isinstance(run.data, str):
        raise _UnpairedError(f"{run.name}: its predictions are not at hand ({run.data})")
    return run.data


def _labelled(data: RunData, case: CaseMetrics) -> tuple[np.ndarray, CaseRows]:
    """The names of a run's classes, and a case's labelled videos by id."""
    names = data.split(case.split).class_names
    rows = CaseRows.of(by_video(data.rows(case, CASE_COLUMNS)), case.case_id, len(names))
    return np.array(names), rows.select(rows.label >= 0)


def _pair(first: RunData, base: CaseMetrics, other: RunData, case: CaseMetrics) -> Paired:
    """Two cases on the same videos."""
    if first.split(base.split).multi_label or other.split(case.split).multi_label:
        raise _UnpairedError("a video may show several classes, so it is not right or wrong as a whole")
    # One after the other: each holds rows of both, which take hundreds of megabytes for a million videos.
    paired = _compared(first, base, other, case)
    classes = _class_changes(first, base, other, case)
    old, new, sources = _decisions(first, base, other, case)
    return replace(paired, classes=classes, trust=compare_trust(old, new, sources, int(other.summary.seed)))


def _compared(first: RunData, base: CaseMetrics, other: RunData, case: CaseMetrics) -> Paired:
    """The same without classes and trust."""
    (names, rows), (other_names, other_rows) = _labelled(first, base), _labelled(other, case)
    ids, others = rows.table["video_id"], other_rows.table["video_id"]
    if not len(ids) or not len(others):
        raise _UnpairedError("no video has a label")
    if not ids.equals(others):
        alone, more = _lacking(others, ids), _lacking(ids, others)
        raise _UnpairedError(
            f"not of the same videos: {alone:,} are in the first run alone, {more:,} in this one alone"
        )
    # Numbers for names: those of a million videos would take hundreds of megabytes.
    same = names[:, None] == other_names
    if len(differing := np.flatnonzero(~same[rows.label, other_rows.label])):
        raise _UnpairedError(
            f"not of the same labels: {len(differing):,} videos have another one, such as {ids[int(differing[0])]}"
        )
    before, after = rows.after == RIGHT, other_rows.after == RIGHT  # of failed videos neither is
    comparison = paired_comparison(before, after, rows.sources)
    return Paired(
        method=base.method,
        videos=len(ids),
        comparison=comparison,
        adjusted=comparison.p_value,
        gained=tuple(ids.filter(pa.array(after & ~before)).to_pylist()),
        lost=tuple(ids.filter(pa.array(before & ~after)).to_pylist()),
        classes=(),
        trust={},
    )


def _decisions(
    first: RunData, base: CaseMetrics, other: RunData, case: CaseMetrics
) -> tuple[Decisions, Decisions, np.ndarray]:
    """What two cases of the same labelled videos decided about those that both finished, and the sources of these.

    Of unknown videos too, where both have the same.
    """
    pair = [
        CaseRows.of(by_video(data.rows(one, trust_columns("after"))), one.case_id, one.classes)
        for data, one in ((first, base), (other, case))
    ]
    unknown = [one.table["video_id"].filter(pa.array(one.unknown)) for one in pair]
    both = unknown[0].equals(unknown[1])
    pair = [one.select((one.label >= 0) | (one.unknown & both)) for one in pair]
    finished = pair[0].finished & pair[1].finished
    old, new = (one.select(finished) for one in pair)
    return Decisions.of(old, "after"), Decisions.of(new, "after"), old.sources


def _lacking(there: pa.ChunkedArray, videos: pa.ChunkedArray) -> int:
    """How many videos are not there."""
    found = pc.call_function("is_in", [videos], pc.SetLookupOptions(there))
    return len(videos) - int(found.to_numpy().sum())


def _class_changes(first: RunData, base: CaseMetrics, other: RunData, case: CaseMetrics) -> tuple[ClassAccuracy, ...]:
    """Every class that has videos, in the first run as before and in the other as after."""

    def by_label(data: RunData, one: CaseMetrics) -> dict[str, ClassAccuracy]:
        rows, names = data.rows(one, CLASS_COLUMNS), data.split(one.split).class_names
        return {each.label: each for each in class_accuracies(rows, one.case_id, names)}

    before, after = by_label(first, base), by_label(other, case)
    changes = [
        replace(one, top1_before=one.top1_after, top1_after=after[label].top1_after)
        for label, one in before.items()
        if one.videos
    ]
    return tuple(sorted(changes, key=lambda one: (-one.change, one.label)))
