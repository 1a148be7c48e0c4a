"""Several models under several methods in one pass over the videos: the table models x methods.

Each model has a run folder of its own, as if it were evaluated alone: the same name, case ids and results. What they
share is the decoding, and beside them lies the table:

OUTPUT/NAME/
models.json    the models with their runs, and every cell with its cost
models.csv     the cells
mlflow.json    where it was logged
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from zar_ray.adaptation.methods import get_method
from zar_ray.errors import ConfigError, TrackingError
from zar_ray.evaluation.options import EvalConfig
from zar_ray.evaluation.pipeline import Evaluated, evaluate_models
from zar_ray.evaluation.streams import stream_methods
from zar_ray.evaluation.workload import Workload
from zar_ray.reporting.numbers import gflops
from zar_ray.reporting.seed_means import markdown_rows, print_rows
from zar_ray.results.folder import RunFolder
from zar_ray.results.record import Estimate, ModelCost, RunSummary
from zar_ray.storage import Storage
from zar_ray.study import job
from zar_ray.study.inputs import run_name
from zar_ray.tracking import RunGroup, default_uri, log_group

RECORD = "models.json"
CELLS = "models.csv"

_FILES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Cell:
    """One model under one method on one split.

    Attributes:
        model: The model, as it was asked for.
        method: The method.
        split: The protocol's split.
        accuracy: Top-1, or of a multi-label split mAP, after adaptation, as a fraction; None without labels.
        low: Lower end of its 95 % interval over the videos.
        high: Its upper end.
        images: Mean images a video that the method looks at or encodes itself.
        seconds: Mean seconds a video of encoding these and of adapting, as if the method ran alone.
        gflops: What these images take of the encoder and tuning of the text tower, as papers count; None of methods
            that take gradients through the encoder.
        peak_memory: The most bytes that a worker had in use meanwhile, all models of the table included.
        videos: Videos with a decision.
    """

    model: str
    method: str
    split: str
    accuracy: float | None
    low: float | None
    high: float | None
    images: float | None
    seconds: float | None
    gflops: float | None
    peak_memory: int | None
    videos: int

    def shown(self) -> str:
        """The accuracy in per cent, with its interval."""
        if self.accuracy is None or self.low is None or self.high is None:
            return "-"
        return f"{100 * self.accuracy:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class ModelTable:
    """All models' runs, and the table's cells, by model, split and method.

    Attributes:
        models: The models, as they were asked for.
        runs: Their runs.
        cells: The cells.
        location: The table's folder.
    """

    models: tuple[str, ...]
    runs: tuple[RunSummary, ...]
    cells: tuple[Cell, ...]
    location: str


def options_of_models(options: EvalConfig) -> tuple[EvalConfig, ...]:
    """The options of each model's own run.

    Raises:
        ConfigError: A model is named twice, or an option does not go with several models.
    """
    if len(set(options.models)) < len(options.models):
        raise ConfigError(f"--model {' '.join(options.models)}: names a model twice")
    for given, name in (
        (options.checkpoint, "checkpoint"),
        (options.seeds, "seeds"),
        (options.interpolate_with, "interpolate-with"),
        (options.alphas, "alphas"),
        (options.features, "features"),
    ):
        if given:
            raise ConfigError(f"--{name}: does not go with several models; evaluate them one by one")
    streams = stream_methods([options])
    if streams:
        raise ConfigError(f"--method {' '.join(streams)}: a stream method has one model; evaluate them one by one")
    return tuple(_own_run(options, model) for model in options.models)


def _own_run(options: EvalConfig, model: str) -> EvalConfig:
    name, _, tag = model.partition(":")
    weights: dict[str, object] = {"model": name, "pretrained": tag or options.pretrained}
    if Path(model).suffix in _FILES:
        default = EvalConfig.model_fields["model"].default
        weights = {"checkpoint": Path(model), "model": default, "pretrained": options.pretrained}
    own = f"{options.name}_{_label(model)}" if options.name else None
    return options.model_copy(update={**weights, "models": (), "name": own})


def _label(model: str) -> str:
    shown = Path(model).stem if Path(model).suffix in _FILES else model
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", shown)


def describe_models(options: EvalConfig, console: Console) -> str:
    """What would run, in a few lines.

    Raises:
        ZarError: See `options_of_models` and `zar_ray.study.job.prepare`.
    """
    workload, runs = _prepare(options, console)
    lines = [
        line for line in job.describe(workload, runs[0]).splitlines() if not line.startswith(("model ", "results"))
    ]
    lines.append(f"models    {', '.join(options.models)}: each video decoded once for all")
    lines += [f"results   {run.output}/{run.name}" for run in runs]
    return "\n".join([*lines, f"table     {runs[0].output}/{_name(options, workload)}"])


def run_models(options: EvalConfig, console: Console) -> ModelTable:
    """Runs or continues an evaluation of each of `options.models`, in one pass, and prints the table.

    Raises:
        ConfigError: See `options_of_models`.
        RunError: More videos failed in a run than `max_failed` allows; everything is written and printed by then.
        ZarError: A run cannot start or was stopped.
    """
    workload, runs = _prepare(options, console)
    console.print(describe_models(options, Console(quiet=True)), highlight=False)
    folders = [RunFolder(Storage(f"{run.output}/{run.name}")) for run in runs]
    evaluated = evaluate_models(workload, runs, folders, console)
    console.print("computing accuracies and their intervals ...")
    summaries = tuple(
        job.conclude(workload, run, folder, one) for run, folder, one in zip(runs, folders, evaluated, strict=True)
    )
    cells = tuple(
        cell
        for model, summary, one in zip(options.models, summaries, evaluated, strict=True)
        for cell in _cells(model, summary, one)
    )
    folder = Storage(f"{runs[0].output}/{_name(options, workload)}")
    table = ModelTable(options.models, summaries, cells, folder.location)
    _write(table, options, folder)
    texts = []
    for title, rows in tables(table):
        console.print(f"\n{title}", style="bold")
        print_rows(rows, (), console)
        texts.append(f"**{title}**\n\n{markdown_rows(rows, ())}")
    for summary in summaries:
        console.print(f"run     {summary.run_file}")
    console.print(f"table   {folder.path(RECORD)}")
    console.print(f"MLflow  {_log(table, options, folder, str(runs[0].output), chr(10).join(texts))}")
    for summary, run in zip(summaries, runs, strict=True):
        job.check_failures(summary, run)
    return table


def _prepare(options: EvalConfig, console: Console) -> tuple[Workload, tuple[EvalConfig, ...]]:
    """The videos, which all models have in common, and each run's settled options."""
    first, *others = options_of_models(options)
    workload, settled = job.prepare(first, console)
    # What there is to say of the dataset has been said.
    quiet = Console(quiet=True)
    runs = (settled, *(job.prepare(one, quiet)[1] for one in others))
    if len({run.name for run in runs}) < len(runs):
        raise ConfigError(f"--model {' '.join(options.models)}: two would have the same folder; rename one's file")
    return workload, runs


def _name(options: EvalConfig, workload: Workload) -> str:
    if options.name:
        return f"{options.name}_models"
    own = run_name(options_of_models(options)[0], workload.manifest.name)
    return f"{own.partition('_')[0]}_{'+'.join(map(_label, options.models))}_{'+'.join(options.method)}_models"


def _cells(model: str, summary: RunSummary, evaluated: Evaluated) -> list[Cell]:
    cells = []
    for case in summary.cases:
        rows = evaluated.table.filter(pc.field("case_id") == case.case_id)
        main: Estimate | None = case.map_after or (case.headline.after.top1 if case.headline else None)
        cells.append(
            Cell(
                model=model,
                method=case.method,
                split=case.split,
                accuracy=main.value if main else None,
                low=main.low if main else None,
                high=main.high if main else None,
                images=_mean(rows, "images"),
                seconds=_mean(rows, "seconds_case"),
                gflops=_gflops(summary.model_cost, case.method, _mean(rows, "images")),
                peak_memory=max(rows["peak_memory"].drop_null().to_pylist(), default=None),
                videos=case.finished,
            )
        )
    return cells


def _gflops(cost: ModelCost | None, method: str, images: float | None) -> float | None:
    if cost is None or images is None or get_method(method).updates == "weights":
        return None
    return images * cost.image_gflops + cost.tuning_gflops.get(method, 0.0)


def _mean(rows: pa.Table, column: str) -> float | None:
    values = rows[column].drop_null().to_numpy()
    return float(values.mean(dtype=np.float64)) if len(values) else None


def tables(table: ModelTable) -> list[tuple[str, list[tuple[str, ...]]]]:
    """What is printed, each with its title, and the first row the heading.

    Returns:
        A table models x methods of accuracies for each split, the averages where there are several splits, and one of
        costs.
    """
    made = []
    methods = list(dict.fromkeys(cell.method for cell in table.cells))
    splits = list(dict.fromkeys(cell.split for cell in table.cells))
    for split in splits:
        at = {(cell.model, cell.method): cell for cell in table.cells if cell.split == split}
        rows = [(model, *(at[model, method].shown() for method in methods)) for model in table.models]
        title = "accuracy % [95 % interval]" if len(splits) == 1 else f"{split}: accuracy % [95 % interval]"
        made.append((title, [("model", *methods), *rows]))
    if len(splits) > 1:
        made.append(("average over the splits, %", [("model", *methods), *_averages(table, methods)]))
    first = [cell for cell in table.cells if cell.split == splits[0]]
    costs = [
        (
            cell.model,
            cell.method,
            "-" if cell.images is None else f"{cell.images:.4g}",
            "-" if cell.seconds is None else f"{cell.seconds:.3g}",
            "-" if cell.gflops is None else gflops(cell.gflops),
            "-" if cell.peak_memory is None else f"{cell.peak_memory / 1e6:.0f}",
        )
        for cell in first
    ]
    title = "cost a video" if len(splits) == 1 else f"cost a video of {splits[0]}"
    made.append((title, [("model", "method", "images", "seconds", "GFLOPs", "peak MB"), *costs]))
    return made


def _averages(table: ModelTable, methods: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for model, run in zip(table.models, table.runs, strict=True):
        main = {one.method: one for one in run.averages if one.metric in ("top1", "map")}
        rows.append((model, *(f"{100 * main[method].value:.1f}" if method in main else "-" for method in methods)))
    return rows


def _write(table: ModelTable, options: EvalConfig, folder: Storage) -> None:
    content = {
        "config": options.model_dump(mode="json"),
        "models": [
            {"model": model, "run": run.run_file, "fingerprint": run.model_fingerprint}
            for model, run in zip(table.models, table.runs, strict=True)
        ],
        "cells": [asdict(cell) for cell in table.cells],
    }
    folder.write(RECORD, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Cell.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in table.cells)
    folder.write(CELLS, text.getvalue().encode())


def _log(table: ModelTable, options: EvalConfig, folder: Storage, root: str, note: str) -> str:
    """Logs the table as a run above the models' runs; says where it is, or why it is not there."""
    children = {run.mlflow.run_id: {"model_asked": model} for model, run in zip(table.models, table.runs, strict=True)}
    if None in children:
        return "the table is not logged, as its runs are not"
    numbers: dict[str, float] = {}
    for cell in table.cells:
        key = f"{_label(cell.model)}/{cell.split}/{cell.method}"
        known = {"accuracy": cell.accuracy, "images": cell.images, "seconds": cell.seconds, "gflops": cell.gflops}
        numbers |= {f"{key}/{name}": value for name, value in known.items() if value is not None}
    group = RunGroup(
        name=folder.location.rpartition("/")[2],
        kind="models",
        config=options.model_dump(mode="json"),
        tags={"dataset": str(options.dataset)},
        children={str(run): tags for run, tags in children.items()},
        numbers=numbers,
        note=note,
        files=(RECORD, CELLS),
    )
    try:
        receipt = log_group(group, folder, options.mlflow_uri or default_uri(root))
    except TrackingError as error:
        return f"the table is not logged: {error}"
    return f"{receipt.uri} (run {receipt.run_id})"
