"""One evaluation from its options to its printed table: what `zar eval` and jobs/eval.py call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from zar_ray.adaptation.methods import get_method
from zar_ray.cluster import inside_job
from zar_ray.config import EvalConfig, zar_home
from zar_ray.data.datasets import open_dataset, parse_class_names, resolve_dataset
from zar_ray.data.manifest import Manifest
from zar_ray.errors import ConfigError, ManifestError, RunError, TrackingError
from zar_ray.evaluation import metrics
from zar_ray.evaluation.inputs import run_name, with_class_names
from zar_ray.evaluation.pipeline import Evaluated, evaluate
from zar_ray.evaluation.run_folder import PREDICTIONS, SUMMARY, RunFolder
from zar_ray.provenance import provenance
from zar_ray.reporting.plots import confusion_picture, per_class_csv
from zar_ray.reporting.summary import MlflowState, RunSummary, Throughput
from zar_ray.reporting.tables import print_summary
from zar_ray.storage import Storage, is_uri
from zar_ray.tracking import log_run_folder


def prepare(options: EvalConfig, console: Console) -> tuple[Manifest, EvalConfig]:
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
    source = resolve_dataset(options.dataset, options.data_root)
    manifest = open_dataset(source, console=console, decoder=options.decoder)
    split = options.split or (source.benchmark.split_of(manifest) if source.benchmark else None)
    manifest = manifest.select(split, options.limit)
    if options.class_names is not None:
        manifest = with_class_names(manifest, parse_class_names(options.class_names))
    if len(manifest.class_names) < 2:
        raise ManifestError(
            f"{options.dataset}: has {len(manifest.class_names)} class names, and choosing needs two; "
            'give the candidate classes with --class-names "a,b,c" or a file'
        )
    note = source.benchmark.note(manifest) if source.benchmark else None
    if note:
        console.print(note)
    if not len(manifest):
        raise ManifestError(f"{options.dataset}: no videos{f' in split {split}' if split else ''}")
    name = options.name or run_name(options, manifest.name)
    settled = {
        "split": split,
        "name": name,
        "output": output_root(options.output),
        "features": _features_folder(options.features),
        # Workers have working folders of their own.
        "checkpoint": options.checkpoint.expanduser().absolute() if options.checkpoint else None,
    }
    return manifest, options.model_copy(update=settled)


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


def describe(manifest: Manifest, options: EvalConfig) -> str:
    """What would run, in a few lines."""
    broken = manifest.table["error"].is_valid().to_pylist().count(True)
    weights = options.checkpoint or f"{options.model} ({options.pretrained})"
    return "\n".join(
        (
            f"dataset   {options.dataset}{f', split {options.split}' if options.split else ''}: {len(manifest)} videos"
            f"{f' ({broken} of them broken)' if broken else ''}, {len(manifest.class_names)} classes",
            f"model     {weights}",
            f"methods   {', '.join(options.method)}",
            f"results   {options.output}/{options.name}",
        )
    )


def run_evaluation(options: EvalConfig, console: Console) -> RunSummary:
    """Runs or continues an evaluation, writes and logs its results and prints them.

    Raises:
        RunError: More videos failed than `max_failed` allows; everything is written and printed by then.
        ZarError: The run cannot start or was stopped.
    """
    manifest, options = prepare(options, console)
    console.print(describe(manifest, options), highlight=False)
    folder = RunFolder(Storage(f"{options.output}/{options.name}"))
    evaluated = evaluate(manifest, options, folder, console)
    console.print("computing accuracies and their intervals ...")
    summary = summarise(manifest, options, folder, evaluated)
    folder.finish(evaluated.table, _run_json(summary, options))
    _write_tables(manifest, folder, evaluated)
    summary = replace(summary, mlflow=_log(folder, options))
    folder.write_json(SUMMARY, _run_json(summary, options))
    print_summary(summary, console)
    if summary.failed > options.max_failed * summary.videos:
        raise RunError(
            f"{summary.failed} of {summary.videos} videos failed, more than the {options.max_failed:.1%} that "
            f"--max-failed allows; {folder.storage.path(PREDICTIONS)} says why for each"
        )
    return summary


def summarise(manifest: Manifest, options: EvalConfig, folder: RunFolder, evaluated: Evaluated) -> RunSummary:
    """All numbers of a run, from its whole result table."""
    table = evaluated.table
    counts = metrics.video_counts(table)
    return RunSummary(
        name=str(options.name),
        dataset=str(options.dataset),
        split=options.split,
        model=evaluated.model.name,
        model_fingerprint=evaluated.model.fingerprint,
        random_weights=evaluated.model.random_weights,
        seed=options.seed,
        classes=len(manifest.class_names),
        videos=counts.videos,
        finished=counts.finished,
        failed=counts.failed,
        unlabelled=counts.unlabelled,
        warned=counts.warned,
        resumed=evaluated.resumed,
        cases=tuple(
            metrics.case_metrics(table, case.case_id, case.method, len(manifest.class_names), seed=options.seed)
            for case in evaluated.cases
        ),
        failures=metrics.failure_groups(table),
        costs=metrics.costs(table),
        throughput=Throughput(evaluated.evaluated, evaluated.seconds),
        results=folder.storage.path(PREDICTIONS),
        run_file=folder.storage.path(SUMMARY),
    )


def _run_json(summary: RunSummary, options: EvalConfig) -> dict[str, object]:
    return {
        "summary": summary.to_json(),
        "config": options.model_dump(mode="json"),
        "provenance": provenance(),
    }


def _write_tables(manifest: Manifest, folder: RunFolder, evaluated: Evaluated) -> None:
    for case in evaluated.cases:
        classes = metrics.class_accuracies(evaluated.table, case.case_id, manifest.class_names)
        if any(one.videos for one in classes):
            matrix = metrics.confusion_matrix(evaluated.table, case.case_id, len(manifest.class_names))
            folder.storage.write(f"{case.method}_per_class.csv", per_class_csv(classes).encode())
            folder.storage.write(f"{case.method}_confusion.png", confusion_picture(matrix, manifest.class_names))


def _log(folder: RunFolder, options: EvalConfig) -> MlflowState:
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
        receipt = log_run_folder(run, options.mlflow_uri)
    except TrackingError as error:
        return MlflowState(why_not=str(error))
    return MlflowState(receipt.uri, receipt.experiment, receipt.run_id)
