"""A study's tables: its cells held against each other on the same videos, replicates of a cell taken together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, harmonic_mean

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zar_ray.adaptation.methods import get_method
from zar_ray.evaluation.pipeline import Evaluated
from zar_ray.results.case_rows import RIGHT, CaseRows
from zar_ray.results.record import CaseMetrics, ProtocolAverage
from zar_ray.results.statistics import (
    PairedComparison,
    holm,
    paired_comparison,
    replicated_share,
    sample_deviation,
)
from zar_ray.results.study_record import REPLICATES, Cell, Score, StudyTable, TableRow
from zar_ray.study.plan import Study
from zar_ray.study.sweeps import DEFAULT, PlacedSweep

_LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Group:
    """The replicates of one model and setting under one method.

    Attributes:
        study: The study.
        cells: All of its cells.
        parts: Each cell's part of the result table.
        places: The places of the group's cells, one a replicate.
        method: The method.
        setting: The place of its setting; 0 is the study's own.
    """

    study: Study
    cells: Sequence[Cell]
    parts: Sequence[Evaluated]
    places: tuple[int, ...]
    method: str
    setting: int

    @property
    def labels(self) -> dict[str, str]:
        """What tells it from others, by axis, without what replicates."""
        return self.cells[self.places[0]].without_replicates()

    @property
    def model(self) -> tuple[tuple[str, str], ...]:
        """Its labels on the axes of models."""
        return tuple((axis, label) for axis, label in self.labels.items() if axis != "setting")

    @cached_property
    def right(self) -> np.ndarray:
        """Bool (R, N): whether each labelled decision is right, of each (video, class set) once, in the same order."""
        return np.stack([self._right(place) for place in self.places])

    def _right(self, place: int) -> np.ndarray:
        part, class_sets = self.parts[place], self.study.workload.class_sets
        found = [np.empty(0, bool)]
        for case in part.cases:
            if case.method == self.method:
                rows = CaseRows.of(part.table, case.case_id, len(class_sets[case.class_set]))
                found.append((rows.after == RIGHT)[rows.label >= 0])
        return np.concatenate(found)

    @cached_property
    def rows(self) -> pa.Table:
        """All of its result rows."""
        of_method = pc.field("method") == self.method
        return pa.concat_tables([self.parts[place].table.filter(of_method) for place in self.places])

    def mean(self, column: str) -> float | None:
        """The mean of a column, where it was measured."""
        values = self.rows[column].drop_null().to_numpy()
        return float(values.mean(dtype=np.float64)) if len(values) else None

    def scores(self) -> dict[str, Score]:
        """Its score on each split that has labels."""
        by_split: dict[str, list[CaseMetrics]] = {}
        for place in self.places:
            for case in self.cells[place].summary.cases:
                if case.method == self.method:
                    by_split.setdefault(case.split, []).append(case)
        found = {split: self._score(split, cases) for split, cases in by_split.items()}
        return {split: score for split, score in found.items() if score is not None}

    def _score(self, split: str, cases: Sequence[CaseMetrics]) -> Score | None:
        main = [case.map_after or (case.headline.after.top1 if case.headline else None) for case in cases]
        known = [one for one in main if one is not None]
        if not known:
            return None
        values = tuple(one.value for one in known)
        if len(known) == 1:
            return Score(values[0], known[0].low, known[0].high, replicates=values)
        deviation = sample_deviation(values)
        if cases[0].map_after is not None:
            return Score(fmean(values), std=deviation, replicates=values)
        seed = self.cells[self.places[0]].summary.seed
        share = replicated_share(self._right_of_split(split), seed)
        return Score(share.value, share.low, share.high, deviation, values)

    def _right_of_split(self, split: str) -> np.ndarray:
        """Bool (R, N): the same of one split's videos."""
        (of_split,) = (one for one in self.study.workload.splits if one.name == split)
        ids = pa.array(of_split.video_ids, pa.string())
        found = []
        for place in self.places:
            part = self.parts[place]
            cases = self.study.workload.cases_of(of_split, part.cases)
            (case,) = (one for one in cases if one.method == self.method)
            table = part.table.filter(pc.field("video_id").isin(ids))
            rows = CaseRows.of(table, case.case_id, len(of_split.class_names))
            found.append((rows.after == RIGHT)[rows.label >= 0])
        return np.stack(found)

    def average(self, scores: Mapping[str, Score]) -> Score | None:
        """The protocol's average over its splits."""
        of_cells = [_main_average(self.cells[place], self.method) for place in self.places]
        known = [one for one in of_cells if one is not None]
        if not known:
            return None
        values = tuple(one.value for one in known)
        if len(known) == 1:
            return Score(values[0], std=known[0].std, replicates=values)
        # As published tables have it: of the splits' means over the replicates, not the mean of harmonic means.
        harmonic = known[0].kind == "harmonic"
        value = harmonic_mean([scores[split].value for split in known[0].splits]) if harmonic else fmean(values)
        return Score(value, std=sample_deviation(values), replicates=values)

    def row(self) -> TableRow:
        """Its row, before it is held against others."""
        scores, images = self.scores(), self.mean("images")
        peaks = self.rows["peak_memory"].drop_null().to_pylist()
        cost = self.cells[self.places[0]].summary.model_cost
        gflops = None
        # Of gradients through the image tower no passes forward tell the cost.
        if cost is not None and images is not None and get_method(self.method).updates != "weights":
            gflops = images * cost.image_gflops + cost.tuning_gflops.get(self.method, 0.0)
        return TableRow(
            labels=self.labels,
            method=self.method,
            cells=self.places,
            scores=scores,
            average=self.average(scores),
            comparison=None,
            p_adjusted=None,
            images=images,
            seconds=self.mean("seconds_case"),
            gflops=gflops,
            peak_memory=max(peaks, default=None),
            finished=self.rows["error"].null_count,
        )


def _main_average(cell: Cell, method: str) -> ProtocolAverage | None:
    found = (one for one in cell.summary.averages if one.method == method and one.metric in ("top1", "map"))
    return next(found, None)


def tables_of(study: Study, cells: Sequence[Cell], parts: Sequence[Evaluated]) -> tuple[StudyTable, ...]:
    """A table a sweep, and before them one of the models and replicates under the study's own setting.

    Args:
        study: The study.
        cells: Its cells.
        parts: Each cell's part of the result table, in the same order.
    """
    if len(cells) == 1:
        return ()
    groups: dict[tuple[tuple[tuple[str, str], ...], int, str], Group] = {}
    for method in study.options.method:
        by_key: dict[tuple[tuple[tuple[str, str], ...], int], list[int]] = {}
        for place, cell in enumerate(cells):
            setting = study.axes.settings[place % len(study.axes.settings)].place
            model = tuple((a, label) for a, label in cell.without_replicates().items() if a != "setting")
            by_key.setdefault((model, setting), []).append(place)
        for (model, setting), places in by_key.items():
            groups[model, setting, method] = Group(study, cells, parts, tuple(places), method, setting)
    models = list(dict.fromkeys(model for model, _, _ in groups))
    repeated = any(axis in REPLICATES for axis in study.axes.names)
    tables = []
    if len(models) > 1 or (repeated and not study.axes.sweeps):
        members = [(groups[model, 0, method], {}) for method in study.options.method for model in models]
        first = {method: groups[models[0], 0, method] for method in study.options.method}
        references = {id(group): first[group.method] for group, _ in members}
        label = ", ".join(text if axis == "model" else f"{axis} {text}" for axis, text in models[0])
        tables.append(_table(study, None, members, references, label if len(models) > 1 else None))
    for placed in study.axes.sweeps:
        tables.append(_sweep_table(study, placed, models, groups))
    return tuple(tables)


def _sweep_table(
    study: Study,
    placed: PlacedSweep,
    models: Sequence[tuple[tuple[str, str], ...]],
    groups: Mapping[tuple[tuple[tuple[str, str], ...], int, str], Group],
) -> StudyTable:
    settings = [(one.label, place) for one, place in zip(placed.sweep.settings, placed.places, strict=True)]
    if all(place != 0 for _, place in settings):
        settings.insert(0, (DEFAULT, 0))
    members = [
        (groups[model, place, method], {"setting": label})
        for model in models
        for method in study.options.method
        for label, place in settings
    ]
    references = {id(group): groups[group.model, 0, group.method] for group, _ in members}
    return _table(study, placed, members, references, "the study's own setting")


def _table(
    study: Study,
    placed: PlacedSweep | None,
    members: Sequence[tuple[Group, Mapping[str, str]]],
    references: Mapping[int, Group],
    reference: str | None,
) -> StudyTable:
    """Rows with their comparisons; those against one reference are one family of tests."""
    seed, multi_label = study.options.seed, study.workload.multi_label
    # A multi-label video is neither right nor wrong.
    decisions = 0 if multi_label else members[0][0].right.shape[1]
    comparable = decisions > 0 and reference is not None
    families: dict[int, list[tuple[Group, PairedComparison]]] = {}
    for group, _ in members if comparable else ():
        base = references[id(group)]
        if group is not base and all(group is not known for known, _ in families.get(id(base), ())):
            families.setdefault(id(base), []).append((group, paired_comparison(base.right, group.right, seed)))
    found: dict[int, tuple[PairedComparison, float]] = {}
    for family in families.values():
        adjusted = holm([one.p_value for _, one in family])
        found |= {id(group): (one, p) for (group, one), p in zip(family, adjusted, strict=True)}
    rows = []
    for group, labels in members:
        row = group.row()
        named = {**row.labels, **labels, **({"method": group.method} if len(study.options.method) > 1 else {})}
        comparison, p_adjusted = found.get(id(group), (None, None))
        rows.append(replace(row, labels=named, comparison=comparison, p_adjusted=p_adjusted))
    axes = tuple(axis for axis in study.axes.names if axis != "setting")
    return StudyTable(
        name=placed.sweep.name if placed else "study",
        title=placed.sweep.title if placed else _title(study),
        varies=(*axes, *placed.sweep.varies) if placed else axes,
        about=placed.sweep.about if placed else None,
        metric="map" if multi_label else "top1",
        decisions=decisions,
        reference=reference if comparable else None,
        rows=tuple(rows),
        verdict=_verdicts(members, rows, references, seed) if comparable else (),
    )


def _title(study: Study) -> str:
    axes = [axis for axis in study.axes.names if axis != "setting"]
    plural = {"model": "models", "share": "shares of the second checkpoint", "seed": "seeds", "shots": "shots"}
    return " and ".join(plural.get(axis, f"{axis}s") for axis in axes)


def _verdicts(
    members: Sequence[tuple[Group, Mapping[str, str]]],
    rows: Sequence[TableRow],
    references: Mapping[int, Group],
    seed: int,
) -> tuple[str, ...]:
    """What the data tell, a line for each reference."""
    families: dict[int, list[tuple[Group, TableRow]]] = {}
    for (group, _), row in zip(members, rows, strict=True):
        families.setdefault(id(references[id(group)]), []).append((group, row))
    lines = []
    for family in families.values():
        row = family[0][1]
        told = [label for axis, label in row.labels.items() if axis != "setting"] if len(families) > 1 else []
        if "setting" not in row.labels and len(families) > 1:
            told = [row.method]
        lines.append((f"{', '.join(told)}: " if told else "") + verdict(family, seed))
    return tuple(lines)


def verdict(family: Sequence[tuple[Group, TableRow]], seed: int) -> str:
    """Names a winner only where it beats the reference and every other row beyond doubt."""
    better = [one for one in family if _differs(one[1], +1)]
    worse = [one for one in family if _differs(one[1], -1)]
    if not better and not worse:
        return f"nothing is distinguishable from the reference (adjusted p >= {_LEVEL} for all)."
    if not better:
        return f"nothing is better than the reference; worse beyond doubt: {_listed(worse)}."
    best, row = max(better, key=lambda one: one[0].right.sum())
    rivals = {id(group): (group, _named(one)) for group, one in family if group is not best}
    against = {key: paired_comparison(group.right, best.right, seed) for key, (group, _) in rivals.items()}
    adjusted = dict(zip(against, holm([one.p_value for one in against.values()]), strict=True))
    beaten = {key for key, one in against.items() if adjusted[key] < _LEVEL and one.difference > 0}
    equal = [label for key, (_, label) in rivals.items() if key not in beaten]
    text = f"better than the reference beyond doubt: {_listed(better)}."
    if equal:
        return f"{text} The best of them, {_named(row)}, is not distinguishable from {', '.join(equal)}."
    return f"{text} {_named(row)} wins: it is better than each of the others, too (adjusted p < {_LEVEL})."


def _differs(row: TableRow, sign: int) -> bool:
    return (
        row.comparison is not None
        and row.p_adjusted is not None
        and row.p_adjusted < _LEVEL
        and sign * row.comparison.difference > 0
    )


def _named(row: TableRow) -> str:
    told = row.labels.get("setting")
    return told if told is not None else ", ".join(label for axis, label in row.labels.items() if axis != "method")


def _listed(family: Sequence[tuple[Group, TableRow]]) -> str:
    return ", ".join(f"{_named(row)} (p {row.p_adjusted:.2g})" for _, row in family)
