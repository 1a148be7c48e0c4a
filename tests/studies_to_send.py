"""Folders of finished studies as far as MLflow is told of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zar_ray.results.record import (
    Accuracy,
    CaseMetrics,
    Change,
    Costs,
    Estimate,
    FailureGroup,
    RunSummary,
    Scores,
    SplitSummary,
    Throughput,
)
from zar_ray.results.study_record import Cell, Score, StudyRecord, StudyTable, TableRow

OPTIONS = {
    "dataset": "demo",
    "method": ["zero_shot", "zar"],
    "split": None,
    "zar": {"lr": 0.005, "betas": [0.9, 0.999]},
    "class_names": ",".join(f"class number {i}" for i in range(600)),
    "mlflow_uri": "http://me:secret@host:5000",
    # More parameters than MLflow takes at once, as a longer configuration would have.
    "many": {f"option{i}": i for i in range(130)},
}


def make_case(method: str, top1: float, *, split: str = "all") -> CaseMetrics:
    before = Accuracy(*(Estimate(value, value - 0.1, value + 0.1) for value in (0.4, 0.7, 0.35)))
    after = Accuracy(Estimate(top1, top1 - 0.1, top1 + 0.1), before.top5, before.mean_class)
    change = Change(Estimate(top1 - 0.4, -0.02, 0.2), 9, 4, 0.267) if method == "zar" else None
    scores = Scores(50, before, after, change)
    return CaseMetrics(f"{method}-{split}", method, 52, 51, 1, 50, 8, 0.125, scores, scores, 1.5, 1.1, 0.2, split=split)


def make_summary_of(cases: Sequence[CaseMetrics], folder: str | Path = "/somewhere/runs/mine", **fields) -> RunSummary:
    splits = tuple(SplitSummary(split, 8, 52) for split in dict.fromkeys(case.split for case in cases))
    summary = RunSummary(
        name=Path(folder).name,
        dataset="demo",
        split=None,
        model="demo-tiny",
        model_fingerprint="0123456789ab",
        random_weights=False,
        seed=0,
        classes=8,
        videos=52,
        finished=51,
        failed=1,
        unlabelled=2,
        warned=0,
        resumed=0,
        cases=tuple(cases),
        failures=(FailureGroup("open", 1, (("a.mp4", "moov atom not found"),)),),
        costs=Costs(1.2e7, 13_000_000, 235.0, 70.0, 0.1, None),
        throughput=Throughput(52, 60.0),
        results=f"{folder}/predictions.parquet",
        run_file=f"{folder}/run.json",
        splits=splits,
    )
    return replace(summary, **fields)


def make_record(
    summaries: RunSummary | Mapping[tuple[tuple[str, str], ...], RunSummary], configs: Sequence[Mapping[str, Any]]
) -> StudyRecord:
    """A study of one cell, or of several by their coordinates with one table of all, seeds together."""
    if isinstance(summaries, RunSummary):
        return StudyRecord(summaries, (), (Cell({}, {}, dict(configs[0]), summaries),), (), None, 12.0)
    cells = tuple(
        Cell(dict(coordinates), {}, dict(configs[place % len(configs)]), summary)
        for place, (coordinates, summary) in enumerate(summaries.items())
    )
    groups: dict[tuple, list[int]] = {}
    for place, cell in enumerate(cells):
        for case in cell.summary.cases:
            key = (tuple(cell.without_replicates().items()), case.method)
            places = groups.setdefault(key, [])
            places += [] if place in places else [place]
    rows = tuple(_row(cells, dict(labels), method, places) for (labels, method), places in groups.items())
    table = StudyTable("study", "All cells", (), None, "top1", 50, None, rows, ())
    axes = tuple(dict.fromkeys(axis for cell in cells for axis in cell.coordinates))
    return StudyRecord(cells[0].summary, axes, cells, (table,), None, 12.0)


def _row(cells: Sequence[Cell], labels: dict[str, str], method: str, places: Sequence[int]) -> TableRow:
    scores = {}
    for split in dict.fromkeys(case.split for case in cells[0].summary.cases):
        found = [case for place in places for case in cells[place].summary.cases if case.method == method]
        values = tuple(case.headline.after.top1.value for case in found if case.split == split)
        scores[split] = Score(sum(values) / len(values), replicates=values)
    labels = labels | {"method": method}
    return TableRow(labels, method, tuple(places), scores, None, None, None, 235.0, 0.02, 41.5, 123, 50)


def write_record(folder: Path, record: StudyRecord, config: Mapping[str, Any] = OPTIONS) -> Path:
    """The folder as an evaluation leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"study": record.to_json(), "config": dict(config), "provenance": {"git": "f00d+changes"}}
    (folder / "run.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text("dataset: demo\n")
    (folder / "identity.json").write_text(json.dumps({"manifest": {"videos": 52, "fingerprint": "0a1b2c3d4e5f"}}))
    return folder


def make_run(folder: Path, top1: float = 0.5, seconds: float = 60.0) -> Path:
    """A study of one cell with one split."""
    cases = (make_case("zero_shot", 0.4), make_case("zar", top1))
    summary = make_summary_of(cases, folder, split="test", throughput=Throughput(52, seconds))
    write_record(folder, make_record(summary, [OPTIONS]))
    (folder / "zar_per_class.csv").write_text("label_id\n0\n")
    (folder / "zar_confusion.png").write_bytes(b"\x89PNG")
    return folder
