"""A study from its options to its printed record: what `zar eval`, `zar ablate` and their jobs call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from zar_ray.errors import RunError, TrackingError
from zar_ray.evaluation.pipeline import evaluate
from zar_ray.evaluation.preflight import check_checkpoints_here
from zar_ray.provenance import provenance
from zar_ray.reporting.prediction_tables import classes_of, write_predictions_csv
from zar_ray.reporting.study_tables import print_study, study_csv, study_markdown
from zar_ray.results.folder import CELLS, SUMMARY, RunFolder
from zar_ray.results.record import MlflowState
from zar_ray.results.study_record import StudyRecord
from zar_ray.storage import is_uri
from zar_ray.study.axes import ModelChoice, place_of, write_mixture
from zar_ray.study.collect import collect, write_class_files
from zar_ray.study.options import EvalConfig
from zar_ray.study.plan import describe, plan_study
from zar_ray.tracking import log_run_folder


def run_study(options: EvalConfig, console: Console, models: Sequence[ModelChoice] = ()) -> StudyRecord:
    """Runs or continues a study, writes and logs its record and prints it.

    Args:
        options: The study's options.
        console: Where it shows how it goes.
        models: The models, where the options do not name them.

    Raises:
        RunError: More videos failed than `max_failed` allows; everything is written and printed by then.
        ZarError: The study cannot start or was stopped.
    """
    study = plan_study(options, console, models)
    console.print(describe(study), highlight=False)
    for mixture in dict.fromkeys(one.mixture for one in study.axes.models):
        if mixture is not None:
            write_mixture(mixture, place_of(mixture, study.options.output))
    folder = study.folder
    labels = [one.label for one in study.axes.settings]
    asked = study.asked()
    check_checkpoints_here(asked, study.options.address)
    evaluated = evaluate(study.workload, asked, labels, folder, console)
    console.print("computing accuracies and their intervals ...")
    record = collect(study, evaluated)
    about = {"config": study.options.model_dump(mode="json"), "provenance": provenance()}
    folder.write_json(SUMMARY, {"study": record.to_json(), **about})
    write_class_files(study, evaluated, folder)
    names = {split.name: split.class_names for split in study.workload.splits}
    write_predictions_csv(folder.storage, evaluated.rows, classes_of(record, names))
    if record.tables:
        folder.storage.write(CELLS, study_csv(record).encode())
    record = replace(record, whole=replace(record.whole, mlflow=_log(folder, study.options)))
    folder.write_json(SUMMARY, {"study": record.to_json(), **about})
    print_study(record, console)
    whole, allowed = record.whole, study.options.max_failed
    if whole.failed > allowed * whole.videos:
        raise RunError(
            f"{whole.failed} of {whole.videos} videos failed, more than the {allowed:.1%} that "
            f"--max-failed allows; {whole.results} says why for each"
        )
    return record


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
        receipt = log_run_folder(run, options.mlflow_uri, describe=study_markdown)
    except TrackingError as error:
        return MlflowState(why_not=str(error))
    return MlflowState(receipt.uri, receipt.experiment, receipt.run_id)
