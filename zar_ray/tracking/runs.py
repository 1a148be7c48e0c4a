"""Evaluations and sweeps: sent from their folders, at their end or at any later time, and read back.

A run is a parent with a child a case, or a split and case; the children share metric names, so that they compare.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zar_ray.errors import RunError, TrackingError
from zar_ray.options.base import fingerprint, without_password
from zar_ray.reporting.finished_runs import FinishedRun
from zar_ray.reporting.summary_tables import markdown
from zar_ray.reporting.sweep_summary import SettingResult, SweepRow, SweepSummary, SweepTable, sweep_markdown
from zar_ray.results.record import RunSummary
from zar_ray.storage import Storage
from zar_ray.tracking.receipts import MlflowReceipt, keep_receipt, read_receipts
from zar_ray.tracking.store import (
    EXPERIMENT,
    NOTE_TAG,
    PARENT_TAG,
    RESULTS_TAG,
    absolute_uri,
    artifact_location,
    client_of,
    cut,
    default_uri,
    experiment_of,
    fitting,
    flattened,
    is_there,
    log_files,
    log_values,
    opened,
    search_runs,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RUN_FILE = "run.json"
_IDENTITY = "identity.json"
_CASE_FILES = ("per_class.csv", "confusion.png")
_FOLDER_TAG = "zar.folder"


@dataclass(frozen=True)
class _Record:
    """What a run's folder says about it."""

    storage: Storage
    summary: RunSummary
    config: Mapping[str, Any]
    git: str | None
    sweep: SweepSummary | None = None
    manifest: str | None = None

    @classmethod
    def read(cls, storage: Storage) -> _Record:
        place = storage.path(_RUN_FILE)
        if not storage.exists(_RUN_FILE):
            raise RunError(f"{storage.path()}: holds no {_RUN_FILE}; a run has one when its evaluation has ended")
        try:
            content = json.loads(storage.read(_RUN_FILE))
        except ValueError as error:
            raise RunError(f"{place}: is not JSON ({error})") from None
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise RunError(f"{place}: is not the record of a run (it has no config)")
        summary = RunSummary.from_json(content.get("summary"), place)
        git = (content.get("provenance") or {}).get("git")
        sweep = SweepSummary.from_json(content["sweep"], place) if "sweep" in content else None
        return cls(storage, summary, content["config"], git, sweep, _manifest_fingerprint(storage))

    @property
    def results(self) -> str:
        """A hash of what was measured: a session that only continues a finished run measures nothing new."""
        content = self.summary.to_json()
        for session in ("throughput", "resumed", "mlflow", "results", "run_file"):
            del content[session]
        if self.sweep is not None:
            content["sweep"] = [asdict(table) for table in self.sweep.tables]
        return fingerprint(content)


def log_run_folder(run: str, uri: str | None = None, experiment: str = EXPERIMENT) -> MlflowReceipt:
    """Sends a run to MLflow, unless the same results are there already.

    The run's folder keeps a receipt a store (`RECEIPTS`).  Where the run has gone on since it was sent, it is sent
    anew and the outdated runs are deleted in MLflow (its `mlflow gc` aside, deleted runs can be restored).

    Args:
        run: The run's folder or its URI.
        uri: The tracking store; by default ``mlflow.db`` beside the run's folder.
        experiment: The experiment's name.

    Returns:
        The receipt; `new` says whether anything was sent.

    Raises:
        RunError: The folder holds no finished run.
        TrackingError: MLflow cannot be reached or refuses; tried for seconds, not minutes.
    """
    storage = Storage(run)
    record = _Record.read(storage)
    root = storage.location.rpartition("/")[0]
    uri = absolute_uri(uri) if uri else default_uri(root)
    shown = without_password(uri)
    receipts = read_receipts(storage)
    earlier = receipts.get(shown)
    send_later = f"when it can be reached, send it with `zar report mlflow {shlex.quote(storage.path())} --uri {shown}`"
    with opened(shown, "log the run to MLflow", send_later):
        client = client_of(uri)
        receipt = _found(client, record, earlier, shown, experiment)
        if receipt is None:
            run_id = _send(client, record, experiment_of(client, experiment, artifact_location(uri, root)))
            receipt = MlflowReceipt(shown, experiment, run_id, record.results)
        if earlier is not None and earlier.run_id != receipt.run_id:
            _delete(client, earlier.run_id)
    if receipt != earlier:
        keep_receipt(storage, receipt)
    return receipt


def logged_runs(uri: str, experiment: str = EXPERIMENT) -> tuple[FinishedRun, ...]:
    """The finished evaluations of a store, from the run.json that each was logged with.

    Args:
        uri: The tracking store.
        experiment: The experiment's name.

    Raises:
        TrackingError: MLflow cannot be reached, or there is no such experiment.
        RunError: What it holds is not the record of a run.
    """
    uri = absolute_uri(uri)
    shown = without_password(uri)
    with opened(shown, "read MLflow's runs", "check --mlflow-uri"):
        client = client_of(uri)
        known = client.get_experiment_by_name(experiment)
        if known is None:
            raise TrackingError(f'{shown}: has no experiment "{experiment}"; check --mlflow-uri')
        found = []
        with tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder:
            for run in search_runs(client, known.experiment_id, f"tags.`{RESULTS_TAG}` != ''"):
                if run.info.status != "FINISHED":
                    continue
                ended = datetime.fromtimestamp((run.info.end_time or 0) / 1000, UTC)
                place = Path(folder) / run.info.run_id
                place.mkdir()
                file = Path(client.download_artifacts(run.info.run_id, _RUN_FILE, str(place)))
                found += FinishedRun.parse_all(file.read_bytes(), f"{shown} run {run.info.run_id}", ended)
    return tuple(found)


def logged_run(uri: str) -> Callable[[str], FinishedRun]:
    """What reads a run of a store by its run id: an evaluation's (parent) run, from the run.json it was logged with.

    Args:
        uri: The tracking store.

    Returns:
        A function of the run id; it raises `TrackingError` where MLflow cannot be reached or has no such evaluation,
        and `RunError` where what it holds is not the record of a run.
    """
    uri = absolute_uri(uri)
    shown = without_password(uri)

    def read(run_id: str) -> FinishedRun:
        with (
            opened(shown, f"read run {run_id}", "check --mlflow-uri and the run id"),
            tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder,
        ):
            file = Path(client_of(uri).download_artifacts(run_id, _RUN_FILE, folder))
            return FinishedRun.parse(file.read_bytes(), f"{shown} run {run_id}")

    return read


def attach_report(run: str, name: str, content: bytes, uri: str | None = None) -> tuple[MlflowReceipt, ...]:
    """Adds a report to the MLflow runs that hold a run's present results; one of the same name is replaced.

    Args:
        run: The run's folder or its URI.
        name: What the file is called there.
        content: The file.
        uri: Only in this store, such as one whose password the receipts do not hold; by default in all.

    Returns:
        Where it is now; empty where the run was not logged.

    Raises:
        RunError: The folder holds no finished run.
        TrackingError: MLflow cannot be reached or refuses.
    """
    storage = Storage(run)
    record = _Record.read(storage)
    receipts = [one for one in read_receipts(storage).values() if one.results == record.results]
    if uri is not None:
        uri = absolute_uri(uri)
        receipts = [one for one in receipts if one.uri == without_password(uri)]
    attached = []
    for receipt in receipts:
        with (
            opened(receipt.uri, "attach the report", "name the store with --mlflow-uri if it needs a password"),
            tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder,
        ):
            client = client_of(uri or receipt.uri)
            if is_there(client, receipt.run_id):
                file = Path(folder) / name
                file.write_bytes(content)
                client.log_artifact(receipt.run_id, str(file))
                attached.append(receipt)
    return tuple(attached)


def _manifest_fingerprint(storage: Storage) -> str | None:
    """What tells the run's videos and labels from others; None where the folder does not say."""
    if not storage.exists(_IDENTITY):
        return None
    try:
        return json.loads(storage.read(_IDENTITY)).get("manifest", {}).get("fingerprint")
    except (ValueError, AttributeError) as error:
        raise RunError(f"{storage.path(_IDENTITY)}: is not the identity of a run ({error})") from None


def _found(
    client: MlflowClient, record: _Record, earlier: MlflowReceipt | None, uri: str, experiment: str
) -> MlflowReceipt | None:
    """The receipt of these very results if the store has them.

    A sending that was cut off leaves a run that never ended, or one that the folder has no receipt of: the first is
    deleted here, the second recognised by its tags.
    """
    if earlier is not None and earlier.results == record.results and is_there(client, earlier.run_id):
        return earlier
    known = client.get_experiment_by_name(experiment)
    if known is None or known.lifecycle_stage != "active":
        return None
    same_folder = f"tags.`{_FOLDER_TAG}` = '{_folder_key(record)}'"
    receipt = None
    for run in search_runs(client, known.experiment_id, same_folder):
        if run.info.status != "FINISHED":
            _delete(client, run.info.run_id)
        elif run.data.tags.get(RESULTS_TAG) == record.results:
            receipt = MlflowReceipt(uri, experiment, run.info.run_id, record.results, new=False)
    return receipt


def _folder_key(record: _Record) -> str:
    return fingerprint(record.storage.location)


def _delete(client: MlflowClient, run_id: str) -> None:
    """Deletes an evaluation's run with its children, children first; nothing if it is not there."""
    if not is_there(client, run_id):
        return
    experiment_id = client.get_run(run_id).info.experiment_id
    for child in search_runs(client, experiment_id, f"tags.`{PARENT_TAG}` = '{run_id}'"):
        client.delete_run(child.info.run_id)
    client.delete_run(run_id)


def _send(client: MlflowClient, record: _Record, experiment_id: str) -> str:
    summary = record.summary
    tags = {
        "dataset": summary.dataset,
        "split": summary.split or "all",
        "model": summary.model,
        "model_fingerprint": summary.model_fingerprint,
        "random_weights": str(summary.random_weights).lower(),
        "git": record.git or "unknown",
        NOTE_TAG: markdown(summary) if record.sweep is None else sweep_markdown(record.sweep),
    }
    tags |= {"mlflow.source.name": "zar eval" if record.sweep is None else "zar ablate", "mlflow.source.type": "LOCAL"}
    if record.git:
        tags["mlflow.source.git.commit"] = record.git.removesuffix("+changes")
    params = flattened(record.config)
    several = len(summary.splits) > 1
    cases = [((case.split, case.method) if several else (case.method,), case) for case in summary.cases]
    by_case = {f"{'/'.join(key)}/{name}": value for key, case in cases for name, value in case.numbers().items()}
    averages = {f"{one.method}/{name}": value for one in summary.averages for name, value in one.numbers().items()}
    parent_tags = {**tags, _FOLDER_TAG: _folder_key(record), RESULTS_TAG: record.results}
    parent = _create(client, record, experiment_id, summary.name, parent_tags)
    log_values(client, parent, params, {**summary.numbers(), **by_case, **averages})
    log_files(client, parent, record.storage, {_RUN_FILE: _RUN_FILE, "config.yaml": "config.yaml"})
    if record.sweep is not None:
        for setting, table, row in record.sweep.rows_of_settings():
            _send_setting(client, record, experiment_id, parent, tags, setting, table, row)
        cases = []
    for key, case in cases:
        of_case = {"method": case.method, "split": case.split} if several else {"method": case.method}
        # A case's id holds a hash of its settings, so runs are compared by method.
        case_tags = {**tags, **of_case, "case": case.case_id, PARENT_TAG: parent}
        run_id = _create(client, record, experiment_id, "/".join(key), case_tags)
        log_values(client, run_id, {**params, **of_case}, case.numbers())
        files = {"_".join((*key, name)): name for name in _CASE_FILES}
        log_files(client, run_id, record.storage, files)
        client.set_terminated(run_id)
    # Only a run whose every part has arrived counts as finished, see `_found`.
    client.set_terminated(parent)
    return parent


def _create(client: MlflowClient, record: _Record, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Starts a run, and says on which data.

    It started as long ago as the evaluation took, because what MLflow shows beside it is the time from start to end.
    """
    from mlflow.entities import Dataset, DatasetInput
    from mlflow.utils.time import get_current_time_millis

    started = get_current_time_millis() - round(1000 * record.summary.throughput.seconds)
    run_id = client.create_run(experiment_id, started, fitting(tags), name).info.run_id
    if record.manifest is not None:
        summary = record.summary
        profile = json.dumps({"videos": summary.videos, "classes": summary.classes})
        source = json.dumps({"uri": without_password(record.storage.path("manifest.parquet"))})
        dataset = Dataset(cut(summary.dataset), record.manifest, "zar-ray", source, profile=profile)
        client.log_inputs(run_id, datasets=[DatasetInput(dataset)])
    return run_id


def _send_setting(
    client: MlflowClient,
    record: _Record,
    experiment_id: str,
    parent: str,
    tags: Mapping[str, str],
    setting: SettingResult,
    table: SweepTable,
    row: SweepRow,
) -> None:
    """One setting of a sweep: the same parameters and metrics by name as its siblings, so that MLflow draws curves."""
    summary, of_setting = setting.summary, {"setting": row.label, "method": table.method}
    cases = [case for case in summary.cases if case.method == table.method]
    averages = [one for one in summary.averages if one.method == table.method]
    numbers = {} if len(cases) > 1 else cases[0].numbers()
    for name, value in ((f"{case.split}/{name}", value) for case in cases for name, value in case.numbers().items()):
        numbers |= {name: value} if len(cases) > 1 else {}
    for average in averages:
        numbers |= average.numbers()
    if row.accuracy is not None:
        value = row.accuracy
        numbers |= {table.metric: value.value, f"{table.metric}_low": value.low, f"{table.metric}_high": value.high}
    name = f"{row.label}/{table.method}"
    run_id = _create(
        client, record, experiment_id, name, {**tags, **of_setting, "sweep": table.name, PARENT_TAG: parent}
    )
    log_values(client, run_id, {**flattened(setting.config), **of_setting}, {**numbers, **row.numbers()})
    client.set_terminated(run_id)
