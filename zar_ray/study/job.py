"""One evaluation from its options to its printed table: what `zar eval` and jobs/eval.py call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from zar_ray.adaptation.methods import get_method
from zar_ray.cluster import inside_job
from zar_ray.data.class_texts import is_context_file
from zar_ray.data.datasets import (
    Benchmark,
    known_benchmarks,
    load_benchmark,
    open_dataset,
    parse_class_names,
    protocol_name,
    resolve_dataset,
)
from zar_ray.data.manifest import Manifest
from zar_ray.data.protocols import EvaluationSplit, whole_split
from zar_ray.errors import ConfigError, ManifestError, RunError, TrackingError
from zar_ray.evaluation.options import EvalConfig
from zar_ray.evaluation.pipeline import Evaluated, evaluate
from zar_ray.evaluation.streams import check_methods, stream_methods
from zar_ray.evaluation.workload import Workload
from zar_ray.options.layers import zar_home
from zar_ray.provenance import provenance
from zar_ray.reporting.plots import confusion_picture, per_class_csv
from zar_ray.reporting.tables import print_summary
from zar_ray.results import metrics
from zar_ray.results.case import Case
from zar_ray.results.case_rows import class_accuracies, confusion_matrix
from zar_ray.results.folder import PREDICTIONS, SUMMARY, RunFolder
from zar_ray.results.record import CaseMetrics, MlflowState, RunSummary, SplitSummary, Throughput
from zar_ray.storage import Storage, is_uri
from zar_ray.study.inputs import run_name, with_class_names
from zar_ray.tracking import log_run_folder


def prepare(options: EvalConfig, console: Console) -> tuple[Workload, EvalConfig]:
    """Opens the dataset and settles what the options leave open.

    Returns:
        The videos to evaluate with their candidate classes, and the options with every default filled in that
        depends on the dataset or on where this runs.

    Raises:
        ZarError: The dataset, a class name or an option cannot be used.
    """
    if options.dataset is None:
        raise ConfigError("zar eval: say what to evaluate with --dataset NAME, MANIFEST.parquet, LIST.csv or FOLDER")
    for name in options.method:
        get_method(name)
    if len(set(options.method)) < len(options.method):
        raise ConfigError(f"--method {' '.join(options.method)}: names a method twice")
    check_methods(options, stream_methods([options]))
    source = resolve_dataset(protocol_name(options.dataset, options.protocol), options.data_root)
    manifest = open_dataset(source, console=console, decoder=options.decoder)
    splits = choose_splits(manifest, source.benchmark, options)
    for split in splits:
        if len(split.class_names) < 2:
            raise ManifestError(
                f"{options.dataset}: has {len(split.class_names)} class names, and choosing needs two; "
                'give the candidate classes with --class-names "a,b,c" or a file'
            )
    workload = Workload.of(manifest, splits)
    if options.limit is not None:
        limited = workload.manifest.select(limit=options.limit)
        kept = limited.table["video_id"].to_pylist()
        workload = Workload.of(limited, [split.restricted_to(kept) for split in splits])
    note = source.benchmark.note(manifest) if source.benchmark else None
    for line in (*([note] if note else []), *(line for split in workload.splits for line in split.notes)):
        console.print(line, highlight=False, markup=False)
    if not len(workload.manifest):
        raise ManifestError(f"{options.dataset}: no videos")
    name = options.name or run_name(options, manifest.name)
    settled = {
        "name": name,
        "output": output_root(options.output),
        "features": _features_folder(options.features),
        # Workers have working folders of their own.
        "checkpoint": options.checkpoint.expanduser().absolute() if options.checkpoint else None,
        "class_texts": options.class_texts.expanduser().absolute() if options.class_texts else None,
        "context": str(Path(options.context).expanduser().absolute())
        if is_context_file(options.context)
        else options.context,
    }
    return workload, options.model_copy(update=settled)


def choose_splits(manifest: Manifest, benchmark: Benchmark | None, options: EvalConfig) -> tuple[EvaluationSplit, ...]:
    """The splits that the options ask for: a benchmark's protocol, or a manifest as it is.

    Raises:
        ConfigError: There is no such split, or an option does not go with the dataset.
        ManifestError: The manifest has no video for a split, or a label is not among the given class names.
    """
    if options.legacy_labels and not (benchmark and benchmark.legacy_swaps):
        raise ConfigError(f"--legacy-labels: no published label file of {options.dataset} is known to exchange names")
    if options.class_names is not None:
        # Names of one's own are no protocol's: the videos are the manifest's, or one of its splits.
        split = options.split or (benchmark.split_of(manifest) if benchmark else None)
        named = with_class_names(manifest.select(split), parse_class_names(options.class_names))
        return (whole_split(named),)
    if benchmark is None:
        return (whole_split(manifest, options.split),)
    return benchmark.evaluations(manifest, options.split, legacy_labels=options.legacy_labels)


def output_root(output: str) -> str:
    """The folder of all runs as an absolute path or URI.

    Raises:
        ConfigError: A relative path inside a Ray job, whose working folder is deleted with the job.
    """
    if is_uri(output):
        return output
    path = Path(output).expanduser()
    if path.is_absolute() or not inside_job():
        return str(path.absolute())
    if output == EvalConfig.model_fields["output"].default:
        return str(zar_home() / "runs")
    raise ConfigError(f"--output {output}: a Ray job's folder is temporary; give an absolute path or a URI")


def _features_folder(features: str | None) -> str | None:
    """The feature store as an absolute path or URI.

    Raises:
        ConfigError: A relative path inside a Ray job, whose working folder is deleted with the job.
    """
    if features is None or is_uri(features):
        return features
    path = Path(features).expanduser()
    if path.is_absolute() or not inside_job():
        return str(path.absolute())
    raise ConfigError(f"--features {features}: a Ray job's folder is temporary; give an absolute path or a URI")


def describe(workload: Workload, options: EvalConfig) -> str:
    """What would run, in a few lines."""
    broken = workload.manifest.table["error"].is_valid().to_pylist().count(True)
    weights = options.checkpoint or f"{options.model} ({options.pretrained})"
    shown = f"{options.dataset}{f', {options.protocol}' if options.protocol != 'standard' else ''}"
    splits = [f"{split.name}: {len(split)} videos, {len(split.class_names)} classes" for split in workload.splits]
    if len(splits) == 1:
        splits[0] = splits[0].partition(": ")[2] if workload.splits[0].name == "all" else f"split {splits[0]}"
    lines = [
        f"dataset   {shown}, {'; '.join(splits)}{f' ({broken} videos broken)' if broken else ''}",
        f"model     {weights}",
        f"methods   {', '.join(options.method)}",
        f"results   {options.output}/{options.name}",
    ]
    if len(splits) > 1:
        lines.insert(1, f"videos    {len(workload.manifest)}, each decoded and encoded once")
    return "\n".join(lines)


def run_evaluation(options: EvalConfig, console: Console) -> RunSummary:
    """Runs or continues an evaluation, writes and logs its results and prints them.

    Raises:
        RunError: More videos failed than `max_failed` allows; everything is written and printed by then.
        ZarError: The run cannot start or was stopped.
    """
    workload, options = prepare(options, console)
    console.print(describe(workload, options), highlight=False)
    folder = RunFolder(Storage(f"{options.output}/{options.name}"))
    evaluated = evaluate(workload, options, folder, console)
    console.print("computing accuracies and their intervals ...")
    summary = conclude(workload, options, folder, evaluated)
    print_summary(summary, console)
    check_failures(summary, options)
    return summary


def conclude(workload: Workload, options: EvalConfig, folder: RunFolder, evaluated: Evaluated) -> RunSummary:
    """Writes and logs what a run found."""
    summary = summarise(workload, options, folder, evaluated)
    folder.finish(evaluated.table, run_json(summary, options))
    _write_tables(workload, folder, evaluated)
    summary = replace(summary, mlflow=log(folder, options))
    folder.write_json(SUMMARY, run_json(summary, options))
    return summary


def check_failures(summary: RunSummary, options: EvalConfig) -> None:
    """Refuses a run of which too many videos failed.

    Raises:
        RunError: More failed than `max_failed` allows.
    """
    if summary.failed > options.max_failed * summary.videos:
        raise RunError(
            f"{summary.failed} of {summary.videos} videos failed, more than the {options.max_failed:.1%} that "
            f"--max-failed allows; {summary.results} says why for each"
        )


def summarise(workload: Workload, options: EvalConfig, folder: RunFolder, evaluated: Evaluated) -> RunSummary:
    """All numbers of a run, from its whole result table."""
    table = evaluated.table
    counts = metrics.video_counts(table)
    cases = tuple(
        _case_metrics(workload, split, case, evaluated, options.seed)
        for split in workload.splits
        for case in workload.cases_of(split, evaluated.cases)
    )
    several = len(workload.splits) > 1
    return RunSummary(
        name=str(options.name),
        dataset=protocol_name(str(options.dataset), options.protocol),
        split=options.split,
        model=evaluated.model.name,
        model_fingerprint=evaluated.model.fingerprint,
        random_weights=evaluated.model.random_weights,
        seed=options.seed,
        classes=len({name for names in workload.class_sets for name in names}),
        videos=counts.videos,
        finished=counts.finished,
        failed=counts.failed,
        unlabelled=counts.unlabelled,
        warned=counts.warned,
        resumed=evaluated.resumed,
        cases=cases,
        failures=metrics.failure_groups(table),
        costs=metrics.costs(table),
        throughput=Throughput(evaluated.evaluated, evaluated.seconds),
        results=folder.storage.path(PREDICTIONS),
        run_file=folder.storage.path(SUMMARY),
        splits=tuple(
            SplitSummary(split.name, len(split.class_names), len(split), split.notes) for split in workload.splits
        ),
        averages=metrics.protocol_averages(cases, _average(options)) if several else (),
        order_dependent=stream_methods(evaluated.settings),
        model_cost=next(iter(evaluated.model.costs), None),
    )


def _average(options: EvalConfig) -> Literal["mean", "harmonic"]:
    name = protocol_name(str(options.dataset), options.protocol)
    return load_benchmark(name).average if name in known_benchmarks() else "mean"


def _case_metrics(
    workload: Workload, split: EvaluationSplit, case: Case, evaluated: Evaluated, seed: int
) -> CaseMetrics:
    """One case over the videos of one split."""
    rows = _rows_of(split, evaluated.table)
    measure = metrics.multi_label_case_metrics if split.multi_label else metrics.case_metrics
    return measure(rows, case.case_id, case.method, len(split.class_names), split=split.name, seed=seed)


def _rows_of(split: EvaluationSplit, table: pa.Table) -> pa.Table:
    return table.filter(pc.field("video_id").isin(pa.array(split.video_ids, pa.string())))


def run_json(summary: RunSummary, options: EvalConfig) -> dict[str, object]:
    """The content of a run's record, ``run.json``."""
    return {
        "summary": summary.to_json(),
        "config": options.model_dump(mode="json"),
        "provenance": provenance(),
    }


def _write_tables(workload: Workload, folder: RunFolder, evaluated: Evaluated) -> None:
    for split in workload.splits:
        if split.multi_label:
            continue
        rows = _rows_of(split, evaluated.table)
        for case in workload.cases_of(split, evaluated.cases):
            name = f"{split.name}_{case.method}" if len(workload.splits) > 1 else case.method
            classes = class_accuracies(rows, case.case_id, split.class_names)
            if any(one.videos for one in classes):
                matrix = confusion_matrix(rows, case.case_id, len(split.class_names))
                folder.storage.write(f"{name}_per_class.csv", per_class_csv(classes).encode())
                folder.storage.write(f"{name}_confusion.png", confusion_picture(matrix, split.class_names))


def log(folder: RunFolder, options: EvalConfig) -> MlflowState:
    """Logs a finished run; one that cannot be logged now is no failed run, and says how to log it later."""
    if not options.mlflow:
        return MlflowState(why_not="switched off by --no-mlflow")
    run = folder.storage.location
    if is_uri(options.output) and options.mlflow_uri is None:
        return MlflowState(
            why_not="the output is a URI and no --mlflow-uri names a server;"
            f" `zar report mlflow {run} --uri URI` logs it later"
        )
    try:
        from zar_ray.reporting.study_tables import study_markdown

        receipt = log_run_folder(run, options.mlflow_uri, describe=study_markdown)
    except TrackingError as error:
        return MlflowState(why_not=str(error))
    return MlflowState(receipt.uri, receipt.experiment, receipt.run_id)
