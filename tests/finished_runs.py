"""Summaries, records and folders of finished studies as an evaluation leaves them, without the evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from zar_ray.adaptation.base import Decision
from zar_ray.data.manifest import Manifest, VideoRow, write_manifest
from zar_ray.options.layers import leaves, merge
from zar_ray.results.folder import CONFIG, IDENTITY, MANIFEST, PREDICTIONS, SUMMARY
from zar_ray.results.metrics import case_metrics, costs, failure_groups, video_counts
from zar_ray.results.record import (
    Accuracy,
    CaseMetrics,
    Costs,
    Estimate,
    FailureGroup,
    ModelCost,
    PairedComparison,
    ProtocolAverage,
    RunSummary,
    Scores,
    SplitSummary,
    Throughput,
)
from zar_ray.results.rows import ResultRow, to_table
from zar_ray.results.statistics import holm, paired_comparison
from zar_ray.results.study_record import REPLICATES, Cell, Score, StudyRecord, StudyTable, TableRow
from zar_ray.study.options import EvalConfig

CLASSES = ("archery", "bowling", "cartwheel <b>&", "diving")

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

# numbers that are given


def make_accuracy(top1: float, reach: float = 0.1) -> Accuracy:
    """An accuracy whose other numbers follow from the first."""
    return Accuracy(
        *(Estimate(value, value - reach, value + reach) for value in (top1, min(1.0, top1 + 0.3), top1 - 0.05))
    )


def make_change(value: float) -> PairedComparison:
    """A paired change of top-1."""
    return PairedComparison(Estimate(value, value - 0.1, value + 0.1), 9, 4, 0.267)


def make_case(
    method: str,
    top1: float | None,
    *,
    before: float = 0.4,
    split: str = "all",
    videos: int = 52,
    failed: int = 1,
    classes: int = 8,
) -> CaseMetrics:
    """A case with this top-1 after adaptation; None without labels."""
    scores = None
    if top1 is not None:
        change = None
        if method != "zero_shot":
            change = make_change(top1 - before)
        scores = Scores(videos, make_accuracy(top1 if change is None else before), make_accuracy(top1), change)
    return CaseMetrics(
        case_id=f"{method}-{split}",
        method=method,
        videos=videos,
        finished=videos - failed,
        failed=failed,
        labelled=videos if scores else 0,
        classes=classes,
        chance=1 / classes,
        failures_wrong=scores,
        failures_excluded=scores,
        entropy_before=1.5,
        entropy_after=1.1,
        seconds_adapt=0.2,
        split=split,
    )


def make_summary_of(cases: Sequence[CaseMetrics], folder: str | Path = "/somewhere/runs/mine", **fields) -> RunSummary:
    """An evaluation with these cases; keyword arguments replace fields."""
    sizes = {case.split: (case.classes, case.videos) for case in cases}
    failed = max((case.failed for case in cases), default=0)
    videos = sum(size for _, size in sizes.values())
    values: dict[str, Any] = {
        "name": Path(folder).name,
        "dataset": "demo",
        "split": None,
        "model": "demo-tiny",
        "model_fingerprint": "0123456789ab",
        "random_weights": False,
        "seed": 0,
        "classes": cases[0].classes,
        "videos": videos,
        "finished": videos - failed,
        "failed": failed,
        "unlabelled": 0,
        "warned": 0,
        "resumed": 0,
        "cases": tuple(cases),
        "failures": (FailureGroup("open", failed, (("a.mp4", "moov atom not found"),)),) if failed else (),
        "costs": Costs(1.2e7, 13_000_000, 235.0, 70.0, 0.1, None),
        "throughput": Throughput(videos, 60.0),
        "results": f"{folder}/{PREDICTIONS}",
        "run_file": f"{folder}/{SUMMARY}",
        "splits": tuple(SplitSummary(split, *size) for split, size in sizes.items()),
    }
    return RunSummary(**{**values, **fields})


def summary_of(
    seed: int, top1: Mapping[tuple[str, str], float | None], averages: tuple[ProtocolAverage, ...] = ()
) -> RunSummary:
    """An evaluation over 40 videos a split with these accuracies by (split, method); None without labels."""
    cases = [
        make_case(method, value, before=value or 0.0, split=split, videos=40, failed=0)
        for (split, method), value in top1.items()
    ]
    return make_summary_of(cases, name=f"seed{seed}", seed=seed, averages=averages)


def make_record(
    summaries: RunSummary | Mapping[tuple[tuple[str, str], ...], RunSummary],
    configs: Sequence[Mapping[str, Any]] = ({},),
    varied: Sequence[Mapping[str, Any]] = (),
) -> StudyRecord:
    """A study of one cell, or of several by their coordinates, with one table of all; the first is the reference.

    Args:
        summaries: What was found, by the (axis, label) pairs of the cell.
        configs: Each cell's options; one for all where there is one.
        varied: What each cell's options differ in.
    """
    if isinstance(summaries, RunSummary):
        summaries = {(): summaries}
    cells = tuple(
        Cell(
            coordinates=dict(coordinates),
            varied=dict(varied[place]) if varied else {},
            config=dict(configs[place % len(configs)]),
            summary=summary,
        )
        for place, (coordinates, summary) in enumerate(summaries.items())
    )
    whole = cells[0].summary
    if len(cells) == 1:
        return StudyRecord(whole, (), cells, (), None, 12.0)
    axes = tuple(dict.fromkeys(axis for cell in cells for axis in cell.coordinates))
    return StudyRecord(whole, axes, cells, (make_table(cells),), None, 12.0)


def make_table(
    cells: Sequence[Cell], rights: Mapping[tuple[int, str], np.ndarray] | None = None, **fields
) -> StudyTable:
    """The table of all cells under all methods, replicates together; the first cell's row is each method's reference.

    Args:
        cells: The cells.
        rights: What is right by the cell's place and method, from which comparisons are made.
        fields: Replacements.
    """
    methods = list(dict.fromkeys(case.method for case in cells[0].summary.cases))
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for place, cell in enumerate(cells):
        labels = {axis: label for axis, label in cell.coordinates.items() if axis not in REPLICATES}
        groups.setdefault(tuple(labels.items()), []).append(place)
    rows = []
    for method in methods:
        of_method = []
        for labels, places in groups.items():
            named = dict(labels) | ({"method": method} if len(methods) > 1 else {})
            comparison = None
            if rights and of_method:
                first, own = (rights[one[0], method] for one in (next(iter(groups.values())), places))
                comparison = paired_comparison(first, own)
            scores = _scores([cells[place].summary for place in places], method)
            of_method.append(
                TableRow(
                    named,
                    method,
                    tuple(places),
                    scores,
                    None,
                    comparison,
                    None,
                    235.0,
                    81.0,
                    54.0,
                    0.023,
                    41.5,
                    123_000_000,
                    50,
                )
            )
        tests = [row.comparison.p_value for row in of_method if row.comparison]
        adjusted = iter(holm(tests))
        rows += [replace(row, p_adjusted=next(adjusted)) if row.comparison else row for row in of_method]
    varies = tuple(dict.fromkeys(axis for cell in cells for axis in cell.coordinates if axis not in REPLICATES))
    values: dict[str, Any] = {
        "name": "study",
        "title": "All cells",
        "varies": varies,
        "about": None,
        "metric": "top1",
        "decisions": cells[0].summary.videos,
        "reference": "the first cell",
        "rows": tuple(rows),
        "verdict": ("No row is distinguishable from the first cell (adjusted p >= 0.05 for all).",),
    }
    return StudyTable(**{**values, **fields})


def _scores(summaries: Sequence[RunSummary], method: str) -> dict[str, Score]:
    by_split: dict[str, list[Estimate]] = {}
    for summary in summaries:
        for case in summary.cases:
            if case.method == method and (case.map_after or case.headline):
                main = case.map_after or case.headline.after.top1
                by_split.setdefault(case.split, []).append(main)
    scores = {}
    for split, found in by_split.items():
        values = tuple(one.value for one in found)
        if len(found) == 1:
            scores[split] = Score(values[0], found[0].low, found[0].high, None, values)
        else:
            scores[split] = Score(float(np.mean(values)), None, None, float(np.std(values, ddof=1)), values)
    return scores


def make_model_cost(architecture: str | None = "ViT-B-16-quickgelu", input_size: int = 224) -> ModelCost:
    """What is known of a model; by default of OpenAI's ViT-B/16."""
    parameters = 149_620_737 if architecture else 3_900_000
    return ModelCost(architecture, input_size, parameters, 16, 281.0, 17.5625, {})


# folders


def write_record(
    folder: Path,
    record: StudyRecord,
    config: Mapping[str, Any] = OPTIONS,
    provenance: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what a finished study's folder holds besides its predictions and manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"study": record.to_json(), "config": dict(config), "provenance": provenance or {"git": "f00d+changes"}}
    (folder / SUMMARY).write_text(json.dumps(content))
    (folder / CONFIG).write_text("dataset: demo\n")
    known = identity or {"manifest": {"videos": 52, "fingerprint": "0a1b2c3d4e5f"}}
    (folder / IDENTITY).write_text(json.dumps(known))
    return folder


def make_run(folder: Path, top1: float = 0.5, seconds: float = 60.0) -> Path:
    """Writes a study of one cell with given numbers, and some of the files that an evaluation leaves beside it."""
    cases = (make_case("zero_shot", 0.4), make_case("zar", top1))
    summary = make_summary_of(cases, folder, split="test", unlabelled=2, throughput=Throughput(52, seconds))
    write_record(folder, make_record(summary, [OPTIONS]))
    (folder / "zar_per_class.csv").write_text("label_id\n0\n")
    (folder / "zar_confusion.png").write_bytes(b"\x89PNG")
    return folder


def write_finished_run(
    folder: Path,
    *,
    cells: Mapping[tuple[tuple[str, str], ...], Mapping[str, Any]] | None = None,
    videos: int = 24,
    classes: Sequence[str] = CLASSES,
    methods: Sequence[str] = ("zero_shot", "zar"),
    labelled: bool = True,
    failures: int = 2,
    multi_label: bool = False,
    held_out: Sequence[str] = (),
    random_weights: bool = False,
    features: bool = True,
    draw: int = 0,
    root: Path | None = None,
    **options,
) -> Path:
    """Writes a study of `videos` videos, whose ids are ``v00.mp4`` and so on, with decisions that are drawn.

    Args:
        folder: Where; it is made.
        cells: Options by the (axis, label) pairs of each cell; by default one cell without any.
        videos: How many.
        classes: Candidate classes.
        methods: Methods; all but ``zero_shot`` change the scores.
        labelled: Whether the videos have labels.
        failures: So many of the first videos failed.
        multi_label: Whether they show several classes.
        held_out: Classes that are held out; every video after one of each known class is of one of them.
        random_weights: Whether the model is untrained.
        features: Whether the run keeps the videos' features.
        draw: Seed of the first cell's decisions after adaptation; those before are the same everywhere.
        root: Folder of the video files, which need not be there.
        options: Options of the study.
    """
    names, root = tuple(classes), root or folder / "nowhere"
    own = _config(folder, methods, options)
    several = cells or {(): {}}
    parts = []
    for place, (coordinates, more) in enumerate(several.items()):
        config = own if not more else _config(folder, methods, merge(options, dict(more)))
        prefix = "" if not place else f"{place}-"
        rows = _rows(
            videos, len(names), methods, labelled, failures, multi_label, features, draw + place, prefix, held_out
        )
        parts.append((coordinates, config, to_table(rows), prefix))
    summaries, rights = {}, {}
    for place, (coordinates, config, table, prefix) in enumerate(parts):
        counts = video_counts(table)
        cases = [
            case_metrics(table, f"{prefix}{one}", one, len(names), multi_label=multi_label, resamples=100)
            for one in methods
        ]
        fields = {name: counts[name] for name in ("finished", "failed", "unlabelled", "unknown", "warned")}
        summaries[coordinates] = make_summary_of(
            cases,
            folder,
            **fields,
            dataset="somewhere",
            model="tiny",
            random_weights=random_weights,
            seed=config.seed,
            failures=failure_groups(table),
            costs=costs(table),
            throughput=Throughput(videos, 12.0),
        )
        for method in methods:
            column = table.filter(pa.array([one == method for one in table["method"].to_pylist()]))["correct_after"]
            rights[place, method] = np.array(column.fill_null(False).to_pylist(), bool)
    configs = [config.model_dump(mode="json") for _, config, _, _ in parts]
    record = make_record(summaries, configs, [_varied(configs[0], config) for config in configs])
    if record.tables:
        table = make_table(record.cells, None if multi_label or not labelled else rights)
        record = replace(record, tables=(table,))
    identity = {"splits": {"all": {"classes": list(names), "videos": "abc"}}}
    write_record(folder, record, configs[0], {"git": "f00d", "packages": {"torch": "2"}}, identity)
    pq.write_table(pa.concat_tables([table for _, _, table, _ in parts]), folder / PREDICTIONS)
    manifest = [_manifest_row(number, names, root, labelled, multi_label) for number in range(videos)]
    write_manifest(Manifest.of(manifest, names, root, "somewhere"), str(folder / MANIFEST))
    return folder


def _config(folder: Path, methods: Sequence[str], options: Mapping[str, Any]) -> EvalConfig:
    given = {"dataset": "somewhere", "name": folder.name, "method": tuple(methods), "mlflow": False}
    return EvalConfig.model_validate({**given, **options})


def _varied(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    ours, theirs = leaves(other), leaves(first)
    return {name: value for name, value in ours.items() if value != theirs.get(name)}


def _rows(
    videos: int,
    count: int,
    methods: Sequence[str],
    labelled: bool,
    failures: int,
    multi_label: bool,
    features: bool,
    draw: int,
    prefix: str,
    held_out: Sequence[str] = (),
) -> list[ResultRow]:
    before_rng, after_rng = np.random.default_rng(7), np.random.default_rng(100 + draw)
    rows = []
    for number in range(videos):
        video_id, label = f"v{number:02}.mp4", number % count
        several = tuple(sorted({label, (label + 1) % count}))
        right = {} if not labelled else {"labels": several} if multi_label else {"label_id": label}
        if held_out and number % (count + 1) == count:
            right = {"label": held_out[number % len(held_out)]}
        elif labelled and not multi_label:
            right["label"] = f"class {label}"
        before = before_rng.normal(size=count).astype(np.float32)
        after = (before + after_rng.normal(size=count)).astype(np.float32)
        after[label] += 1.0
        feature = before_rng.normal(size=8)
        for place, method in enumerate(methods):
            facts = {**right, "frames": 12, "seconds_decode": 0.01}
            if number < failures:
                error = {"error": f"the file ends in frame {number}", "stage": "decode" if number else "open"}
                rows.append(ResultRow.failed(video_id, f"{prefix}{method}", method, **error, **facts))
                continue
            decision = Decision(torch.from_numpy(before), torch.from_numpy(before if method == "zero_shot" else after))
            kept = features and not place and not prefix
            measured = {"seconds_encode": 0.02, "seconds_adapt": 0.003, "images_encoded": 235, "bytes_shipped": 9000}
            own = (16, 0.0125) if method == "zero_shot" else (224, 0.25)
            measured |= dict(zip(("images", "seconds_case"), own, strict=True))
            rows.append(
                ResultRow.from_decision(
                    video_id,
                    f"{prefix}{method}",
                    method,
                    decision,
                    **facts,
                    **measured,
                    frames_decoded=9,
                    video_feature=tuple((feature / np.linalg.norm(feature)).tolist()) if kept else None,
                )
            )
    return [replace(row, recorded_at=1.0e9 + index / 10) for index, row in enumerate(rows)]


def _manifest_row(number: int, names: Sequence[str], root: Path, labelled: bool, multi_label: bool) -> VideoRow:
    video_id, label = f"v{number:02}.mp4", number % len(names)
    shown: dict[str, Any] = {}
    if labelled and multi_label:
        shown = {"labels": tuple(names[one] for one in sorted({label, (label + 1) % len(names)}))}
    elif labelled:
        shown = {"label_id": label, "class_name": names[label]}
    return VideoRow(video_id, str(root / video_id), frames=12, width=64, height=48, **shown)
