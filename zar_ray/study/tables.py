"""A study's tables: its cells held against each other on the same videos, replicates of a cell taken together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from statistics import fmean, harmonic_mean
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zar_ray.adaptation.methods import get_method
from zar_ray.data.protocols import EvaluationSplit
from zar_ray.evaluation.pipeline import Evaluated
from zar_ray.evaluation.workload import Workload
from zar_ray.results.case_rows import CASE_COLUMNS, RIGHT, CaseRows, codes_of
from zar_ray.results.estimates import PairedComparison
from zar_ray.results.statistics import holm, paired_comparison, sample_deviation, share_of
from zar_ray.results.study_record import REPLICATES, Cell, Score, StudyTable, TableRow, label_of
from zar_ray.results.trust import MEASURES
from zar_ray.study.plan import Study
from zar_ray.study.sweeps import DEFAULT, PlacedSweep

_LEVEL = 0.05


def rows_of(
    workload: Workload, split: EvaluationSplit | None, part: Evaluated, case_id: str, columns: Sequence[str]
) -> pa.Table:
    """Some columns of a case's rows, ``video_id`` among them: of a split's videos, or of all."""
    # A run of one split has no other videos, and to look each up takes longer than to read them.
    ids = None if split is None or len(workload.splits) == 1 else split.video_ids
    videos = None if ids is None else pc.field("video_id").isin(pa.array(ids, pa.string()))
    return part.rows.of([case_id]).read(columns, videos)


@dataclass(frozen=True, eq=False)
class Group:
    """The replicates of one model and setting under one method.

    Attributes:
        study: The study.
        places: The places of its cells among the study's, one a replicate.
        cells: These cells.
        parts: Their parts of the result table.
        method: The method.
    """

    study: Study
    places: tuple[int, ...]
    cells: tuple[Cell, ...]
    parts: tuple[Evaluated, ...]
    method: str

    @cached_property
    def right(self) -> np.ndarray:
        """Bool (R, N): whether each labelled decision is right, of each (video, class set) once, in the same order."""
        return self._decisions()[0]

    @cached_property
    def sources(self) -> np.ndarray:
        """Int (N,): equal where the videos of these decisions were cut from the same."""
        return self._decisions()[1]

    def _decisions(self, split: EvaluationSplit | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Both, of all videos or of one split's."""
        workload, replicates, sources = self.study.workload, [], np.empty(0, int)
        for part in self.parts:
            cases = part.cases if split is None else workload.cases_of(split, part.cases)
            rows = [
                CaseRows.of(
                    rows_of(workload, split, part, case.case_id, CASE_COLUMNS),
                    case.case_id,
                    len(workload.class_sets[case.class_set]),
                )
                for case in cases
                if case.method == self.method
            ]
            labelled = [one.select(one.label >= 0) for one in rows]
            replicates.append(np.concatenate([one.after == RIGHT for one in labelled]))
            sources = codes_of([one.source for one in labelled])
        return np.stack(replicates), sources

    def scores(self) -> dict[str, Score]:
        """Its score on each split that has labels."""
        found = {split.name: self._score(split) for split in self.study.workload.splits}
        return {split: score for split, score in found.items() if score is not None}

    def _score(self, split: EvaluationSplit) -> Score | None:
        every = [case for cell in self.cells for case in cell.summary.cases]
        cases = [case for case in every if (case.method, case.split) == (self.method, split.name)]
        known = [next(iter(found.values())) for case in cases if (found := case.estimates("after"))]
        if not known:
            return None
        values = tuple(one.value for one in known)
        if len(known) == 1:
            return Score(values[0], known[0].low, known[0].high, replicates=values)
        deviation = sample_deviation(values)
        if cases[0].map_after is not None:
            return Score(fmean(values), std=deviation, replicates=values)
        share = share_of(*self._decisions(split))
        return Score(share.value, share.low, share.high, deviation, values)

    def average(self, scores: Mapping[str, Score]) -> Score | None:
        """The protocol's average over its splits."""
        of_cells = [
            [one for one in cell.summary.averages if one.method == self.method and one.metric in ("top1", "map")]
            for cell in self.cells
        ]
        known = [averages[0] for averages in of_cells if averages]
        if not known:
            return None
        values = tuple(one.value for one in known)
        if len(known) == 1:
            return Score(values[0], std=known[0].std, replicates=values)
        # As published tables have it: of the splits' means over the replicates, not the mean of harmonic means.
        harmonic = known[0].kind == "harmonic"
        value = harmonic_mean([scores[split].value for split in known[0].splits]) if harmonic else fmean(values)
        return Score(value, std=sample_deviation(values), replicates=values)

    def row(self, labels: dict[str, str]) -> TableRow:
        """Its row, before it is held against others."""
        means = ("images", "text_tokens", "gradient_tokens", "seconds_case")
        columns = ("method", "error", *means, "peak_memory")
        rows = pa.concat_tables([part.rows.read(columns, pc.field("method") == self.method) for part in self.parts])
        measured = [*((one, "mean") for one in means), ("peak_memory", "max")]
        (costs,) = rows.group_by([]).aggregate(measured).to_pylist()
        scores, images = self.scores(), costs["images_mean"]
        cost, gflops = self.cells[0].summary.model_cost, None
        # Of gradients through the image tower no passes forward tell the cost.
        if cost is not None and images is not None and get_method(self.method).updates != "weights":
            gflops = images * cost.image_gflops + cost.tuning_gflops.get(self.method, 0.0)
        return TableRow(
            labels=labels,
            method=self.method,
            cells=self.places,
            scores=scores,
            average=self.average(scores),
            comparison=None,
            p_adjusted=None,
            images=images,
            text_tokens=costs["text_tokens_mean"],
            gradient_tokens=costs["gradient_tokens_mean"],
            seconds=costs["seconds_case_mean"],
            gflops=gflops,
            peak_memory=costs["peak_memory_max"],
            finished=rows["error"].null_count,
            gain=self.gain(),
            trust=self.trust(),
        )

    def gain(self) -> PairedComparison | None:
        """By how much adaptation changed it, where it has one replicate: over several splits the average's change."""
        if len(self.cells) != 1:
            return None
        summary = self.cells[0].summary
        averages = [one.change for one in summary.averages if one.method == self.method and one.change is not None]
        cases = [case.change for case in summary.cases if case.method == self.method]
        return averages[0] if averages else cases[0] if len(cases) == 1 else None

    def trust(self) -> dict[str, Score]:
        """Its measures, each over all replicates and splits."""
        found: dict[str, Score] = {}
        of_cells = [[one for one in cell.summary.cases if one.method == self.method] for cell in self.cells]
        for name, when in product(MEASURES, ("before", "after")):
            every = [[getattr(case.trust[name], when) for case in cases if name in case.trust] for cases in of_cells]
            of_replicates = [known for of in every if (known := [one for one in of if one is not None])]
            if not of_replicates:
                continue
            values = tuple(fmean(one.value for one in of) for of in of_replicates)
            first = of_replicates[0][0] if len(values) == len(of_replicates[0]) == 1 else None
            ends = (None, None) if first is None else (first.low, first.high)
            score = Score(fmean(values), *ends, sample_deviation(values), values)
            found[name if when == "after" else f"{name}_before"] = score
        return found


class _Member(NamedTuple):
    """A group in a table: what the table calls it, and which group it is held against."""

    group: Group
    labels: dict[str, str]
    reference: Group


def tables_of(study: Study, cells: Sequence[Cell], parts: Sequence[Evaluated]) -> tuple[StudyTable, ...]:
    """A table a sweep, and before them one of the models and replicates under the study's own setting.

    Each of the study's cells comes with its part of the result table.
    """
    if len(cells) == 1:
        return ()
    axes, methods = study.axes, study.options.method
    models: dict[str, dict[str, str]] = {}
    places: dict[tuple[str, int], list[int]] = {}
    for place, cell in enumerate(cells):
        labels = {axis: one for axis, one in cell.coordinates.items() if axis not in (*REPLICATES, "setting")}
        model = label_of(labels)
        models.setdefault(model, labels)
        places.setdefault((model, axes.settings[place % len(axes.settings)].place), []).append(place)
    groups = {
        (*key, method): Group(study, tuple(own), tuple(cells[n] for n in own), tuple(parts[n] for n in own), method)
        for key, own in places.items()
        for method in methods
    }

    def member(model: str, setting: int, method: str, reference: str, labels: Mapping[str, str]) -> _Member:
        named = {**models[model], **labels, **({"method": method} if len(methods) > 1 else {})}
        return _Member(groups[model, setting, method], named, groups[reference, 0, method])

    tables = []
    repeated = any(axis in REPLICATES for axis in axes.names)
    if len(models) > 1 or (repeated and not axes.sweeps):
        first = next(iter(models))
        own = {"setting": axes.settings[0].coordinates["setting"]} if "setting" in axes.names else {}
        members = [member(model, 0, method, first, own) for method in methods for model in models]
        tables.append(_table(study, None, members, first if len(models) > 1 else None))
    for placed in axes.sweeps:
        settings = [(one.label, place) for one, place in zip(placed.sweep.settings, placed.places, strict=True)]
        if all(place != 0 for _, place in settings):
            settings.insert(0, (DEFAULT, 0))
        members = [
            member(model, place, method, model, {"setting": label})
            for model in models
            for method in methods
            for label, place in settings
        ]
        tables.append(_table(study, placed, members, "the study's own setting"))
    return tuple(tables)


def _table(study: Study, placed: PlacedSweep | None, members: Sequence[_Member], reference: str | None) -> StudyTable:
    """Rows with their comparisons; those against one reference are one family of tests."""
    multi_label = study.workload.multi_label
    # A multi-label video is neither right nor wrong.
    decisions = 0 if multi_label else members[0].group.right.shape[1]
    comparable = decisions > 0 and reference is not None
    rows = [one.group.row(one.labels) for one in members]
    families: dict[Group, list[int]] = {}
    for number, one in enumerate(members if comparable else ()):
        families.setdefault(one.reference, []).append(number)
    verdicts = []
    for base, family in families.items():
        # Two of a sweep's settings may be the same.
        others = dict.fromkeys(members[number].group for number in family)
        found = {one: paired_comparison(base.right, one.right, base.sources) for one in others if one is not base}
        adjusted = dict(zip(found, holm([one.p_value for one in found.values()]), strict=True))
        for number in family:
            own = members[number].group
            rows[number] = replace(rows[number], comparison=found.get(own), p_adjusted=adjusted.get(own))
        first = rows[family[0]]
        told = [first.method] if "setting" not in first.labels else []
        told = told or [label for axis, label in first.labels.items() if axis != "setting"]
        whose = f"{', '.join(told)}: " if told and len(families) > 1 else ""
        verdicts.append(whose + verdict([(members[number].group, rows[number]) for number in family]))
    axes = tuple(axis for axis in study.axes.names if axis != "setting")
    plural = {"model": "models", "share": "shares of the second checkpoint", "seed": "seeds", "shots": "shots"}
    return StudyTable(
        name=placed.sweep.name if placed else "study",
        title=placed.sweep.title if placed else " and ".join(plural.get(axis, f"{axis}s") for axis in axes),
        varies=(*axes, *placed.sweep.varies) if placed else axes,
        about=placed.sweep.about if placed else None,
        metric="map" if multi_label else "top1",
        decisions=decisions,
        reference=reference if comparable else None,
        rows=tuple(rows),
        verdict=tuple(verdicts),
    )


def verdict(family: Sequence[tuple[Group, TableRow]]) -> str:
    """Names a winner only where it beats the reference and every other row beyond doubt."""
    better = [one for one in family if _differs(one[1], +1)]
    worse = [one for one in family if _differs(one[1], -1)]
    if not better and not worse:
        return f"nothing is distinguishable from the reference (adjusted p >= {_LEVEL} for all)."
    if not better:
        return f"nothing is better than the reference; worse beyond doubt: {_listed(worse)}."
    best, row = max(better, key=lambda one: one[0].right.sum())
    rivals = {id(group): (group, _named(one)) for group, one in family if group is not best}
    against = {key: paired_comparison(group.right, best.right, best.sources) for key, (group, _) in rivals.items()}
    adjusted = dict(zip(against, holm([one.p_value for one in against.values()]), strict=True))
    beaten = {key for key, one in against.items() if adjusted[key] < _LEVEL and one.difference > 0}
    equal = [label for key, (_, label) in rivals.items() if key not in beaten]
    text = f"better than the reference beyond doubt: {_listed(better)}."
    if equal:
        return f"{text} The best of them, {_named(row)}, is not distinguishable from {', '.join(equal)}."
    return f"{text} {_named(row)} wins: it is better than each of the others, too (adjusted p < {_LEVEL})."


def _differs(row: TableRow, sign: int) -> bool:
    found, p_value = row.comparison, row.p_adjusted
    return found is not None and p_value is not None and p_value < _LEVEL and sign * found.difference > 0


def _named(row: TableRow) -> str:
    told = row.labels.get("setting")
    return told if told is not None else ", ".join(label for axis, label in row.labels.items() if axis != "method")


def _listed(family: Sequence[tuple[Group, TableRow]]) -> str:
    return ", ".join(f"{_named(row)} (p {row.p_adjusted:.2g})" for _, row in family)
