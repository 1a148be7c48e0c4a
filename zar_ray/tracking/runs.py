"""Studies: sent from their folders, at their end or at any later time, and read back.

A study is a parent with a child a cell and method, or in a study of one cell a child a split and method. The children
share the names of parameters and metrics, so that they compare.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from zar_ray.errors import RunError, TrackingError
from zar_ray.options.base import fingerprint, without_password
from zar_ray.results.folder import CELLS, CONFIG, IDENTITY, MANIFEST, SUMMARY
from zar_ray.results.record import CaseMetrics, RunSummary, flat_numbers
from zar_ray.results.study_record import (
    Cell,
    FinishedStudy,
    ShiftRow,
    ShiftTable,
    StudyRecord,
    StudyTable,
    TableRow,
    label_of,
)
from zar_ray.storage import Storage
from zar_ray.tracking import store
from zar_ray.tracking.folder_run import FolderRun, MlflowReceipt, own_receipts, read_receipts
from zar_ray.untrusted import parse_json

_CASE_FILES = ("per_class.csv", "confusion.png")
# What only the last session did: one that continues a finished run measures nothing new.
_OF_SESSION = ("throughput", "resumed", "mlflow", "results", "run_file")


def _results(study: StudyRecord) -> str:
    """A hash of what was measured."""
    content = study.to_json()
    del content["seconds"]
    for summary in (content["whole"], *(cell["summary"] for cell in content["cells"])):
        for name in _OF_SESSION:
            del summary[name]
    return fingerprint(content)


def log_run_folder(run: str, uri: str | None = None, *, describe: Callable[[StudyRecord], str]) -> MlflowReceipt:
    """Sends a run to MLflow, unless the same results are there already; the receipt's `new` says which.

    The run's folder keeps a receipt a store (`RECEIPTS`).  Where the run has gone on since it was sent, it is sent
    anew and the outdated runs are deleted in MLflow (its `mlflow gc` aside, deleted runs can be restored).

    Args:
        run: The run's folder or its URI.
        uri: The tracking store; by default ``mlflow.db`` beside the run's folder.
        describe: Makes the description of the study's runs, in Markdown.

    Raises:
        RunError: The folder holds no finished run.
        TrackingError: MLflow cannot be reached or refuses; tried for seconds, not minutes.
    """
    folder = Storage(run)
    found, manifest = FinishedStudy.open(folder), _manifest_fingerprint(folder)
    results = _results(found.record)
    kept = FolderRun(folder, uri)
    again = f"`zar report mlflow {shlex.quote(folder.path())} --uri {shlex.quote(kept.shown)}`"
    with store.opened(kept.shown, "log the run to MLflow", f"when it can be reached, send it with {again}"):
        receipt = kept.find(results)
        if receipt is None:
            run_id = _Sending(folder, found, manifest, kept, describe(found.record)).send(results)
            receipt = kept.keep(run_id, results)
    return receipt


def put_below(parent: str, runs: Mapping[str, Mapping[str, str]], uri: str) -> None:
    """Shows runs, such as the trainings that a study evaluates, below another of the same store.

    Args:
        parent: The run id of the study.
        runs: By run id, tags that tell each from the others.
        uri: The tracking store.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    with store.opened(without_password(uri), "put runs below another", store.CONTINUES):
        client = store.client_of(store.absolute_uri(uri))
        for run_id, tags in runs.items():
            for name, value in {**store.fitting(tags), store.PARENT_TAG: parent}.items():
                client.set_tag(run_id, name, value)


def attach_report(run: str, files: Mapping[str, bytes], uri: str | None = None) -> tuple[MlflowReceipt, ...]:
    """Adds a report to the MLflow runs that hold a run's present results; files of the same names are replaced.

    Args:
        run: The run's folder or its URI.
        files: The report's files by their names.
        uri: Only in this store, such as one whose password the receipts do not hold; by default in all.

    Returns:
        Where it is now; empty where the run was not logged.

    Raises:
        RunError: The folder holds no finished run.
        TrackingError: MLflow cannot be reached or refuses, or the folder is a copy of one that was logged.
    """
    folder = Storage(run)
    receipts = own_receipts(folder)
    if not receipts and read_receipts(folder):
        again = f"`zar report mlflow {shlex.quote(folder.path())}`"
        raise TrackingError(f"{folder.path()}: is a copy of a run that was logged, or was moved; {again} logs it anew")
    results = _results(FinishedStudy.open(folder).record)
    uri = None if uri is None else store.absolute_uri(uri)
    attached = []
    for receipt in receipts.values():
        if receipt.results != results or (uri is not None and receipt.uri != without_password(uri)):
            continue
        with store.opened(receipt.uri, "attach the report", "name the store with --mlflow-uri if it needs a password"):
            client = store.client_of(uri or receipt.uri)
            if store.is_there(client, receipt.run_id):
                store.log_files(client, receipt.run_id, files)
                attached.append(receipt)
    return tuple(attached)


def logged_runs(uri: str, run_id: str | None = None) -> tuple[FinishedStudy, ...]:
    """The finished studies of a store, or its one study of a (parent) run id.

    Their place is the store, without a password, and the run id.

    Raises:
        TrackingError: MLflow cannot be reached, or holds no experiment of ours or no such study.
        RunError: A study there was sent by an earlier version.
    """
    uri = store.absolute_uri(uri)
    shown = without_password(uri)
    doing = "read MLflow's runs" if run_id is None else f"read run {run_id}"
    with store.opened(shown, doing, "check --mlflow-uri" if run_id is None else "check --mlflow-uri and the run id"):
        client, found = store.client_of(uri), []
        if run_id is not None:
            runs = [client.get_run(run_id)]
        elif (known := client.get_experiment_by_name(store.EXPERIMENT)) is not None:
            runs = store.search_runs(
                client, known.experiment_id, f"tags.`{store.RESULTS_TAG}` != '' and status = 'FINISHED'"
            )
        else:
            raise TrackingError(f'{shown}: has no experiment "{store.EXPERIMENT}"; check --mlflow-uri')
        for run in runs:
            with tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder:
                record = Path(client.download_artifacts(run.info.run_id, SUMMARY, folder)).read_bytes()
            ended = datetime.fromtimestamp((run.info.end_time or 0) / 1000, UTC)
            found.append(FinishedStudy.parse(record, f"{shown} run {run.info.run_id}", ended))
    return tuple(found)


def _manifest_fingerprint(folder: Storage) -> str | None:
    """What tells the run's videos and labels from others; None where the folder does not say."""
    if not folder.exists(IDENTITY):
        return None
    try:
        return parse_json(folder.read(IDENTITY)).get("manifest", {}).get("fingerprint")
    except (ValueError, AttributeError) as error:
        raise RunError(f"{folder.path(IDENTITY)}: is not the identity of a run ({error})") from None


@dataclass(frozen=True)
class _Sending:
    folder: Storage
    found: FinishedStudy
    manifest: str | None
    kept: FolderRun
    note: str

    def send(self, results: str) -> str:
        """Sends the study, which holds `results`, and returns its run id."""
        study = self.found.record
        parent = self._create(_study_name(study), _study_tags(study) | self.kept.result_tags(results))
        self._fill(
            parent, store.flattened(self.found.config), _study_numbers(study), {n: n for n in (SUMMARY, CONFIG, CELLS)}
        )
        for child in _children(study):
            tags = _model_tags(child.cell.summary) | {**child.labels, **child.tags, store.PARENT_TAG: parent}
            run_id = self._create(child.name, tags)
            self._fill(run_id, store.flattened(child.cell.config) | {**child.labels}, child.numbers, child.files)
            self.kept.client.set_terminated(run_id)
        # Only a run whose every part has arrived counts as finished, see `FolderRun.find`.
        self.kept.client.set_terminated(parent)
        return parent

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        """Starts a run, and says on which data.

        It started as long ago as the evaluation took, because what MLflow shows beside it is the time from start to
        end.
        """
        from mlflow.entities import Dataset, DatasetInput
        from mlflow.utils.time import get_current_time_millis

        whole = self.found.record.whole
        shared = {
            "dataset": whole.dataset,
            "split": whole.split or "all",
            **store.git_tags(self.found.provenance.get("git")),
            "mlflow.source.name": _command(self.found.record),
            "mlflow.source.type": "LOCAL",
            store.NOTE_TAG: self.note,
        }
        started = get_current_time_millis() - round(1000 * whole.throughput.seconds)
        run_id = self.kept.create(name, {**shared, **tags}, started)
        if self.manifest is not None:
            profile = json.dumps({"videos": whole.videos, "classes": whole.classes})
            source = json.dumps({"uri": without_password(self.folder.path(MANIFEST))})
            dataset = Dataset(store.cut(whole.dataset), self.manifest, "zar-ray", source, profile=profile)
            store.log_dataset(self.kept.client, run_id, DatasetInput(dataset))
        return run_id

    def _fill(
        self, run_id: str, params: Mapping[str, str], numbers: Mapping[str, float], files: Mapping[str, str]
    ) -> None:
        store.log_values(self.kept.client, run_id, params, numbers)
        there = {name: self.folder.read(source) for name, source in files.items() if self.folder.exists(source)}
        store.log_files(self.kept.client, run_id, there)


@dataclass(frozen=True)
class _Child:
    """A run below the study's; its labels tell it from its siblings, and its files are in the study's folder."""

    name: str
    cell: Cell
    labels: Mapping[str, str]
    tags: Mapping[str, str]
    numbers: Mapping[str, float]
    files: Mapping[str, str] = field(default_factory=dict)


def _study_name(study: StudyRecord) -> str:
    """What is compared under which name, and in brackets the folder's."""
    methods = dict.fromkeys(case.method for cell in study.cells for case in cell.summary.cases)
    models = dict.fromkeys(_model_label(cell) for cell in study.cells)
    return f"{_named(' + '.join(methods), ' + '.join(models), study.whole.dataset)} ({study.whole.name})"


def _model_label(cell: Cell) -> str:
    return cell.coordinates.get("model", cell.summary.model)


def _named(*parts: str) -> str:
    """A run's name, which begins with method, model and dataset."""
    return " · ".join(filter(None, parts))


def _study_tags(study: StudyRecord) -> dict[str, str]:
    """Tags of the study's own run."""
    axes = {"axes": ", ".join(study.axes)} if study.axes else {}
    return {**_model_tags(*(cell.summary for cell in study.cells)), **axes}


def _model_tags(*summaries: RunSummary) -> dict[str, str]:
    """Tags that say what the models are."""
    return {
        "model": ", ".join(dict.fromkeys(one.model for one in summaries)),
        "model_fingerprint": ", ".join(dict.fromkeys(one.model_fingerprint for one in summaries)),
        "random_weights": str(any(one.random_weights for one in summaries)).lower(),
    }


def _command(study: StudyRecord) -> str:
    """What MLflow shows as a run's source."""
    if "training seed" in study.axes or "shots" in study.axes:
        return "zar train"
    return "zar ablate" if "setting" in study.axes else "zar eval"


def _study_numbers(study: StudyRecord) -> dict[str, float]:
    """Metrics of the study's own run: of the whole pass, and of one cell's cases and averages, or its tables' rows."""
    numbers = study.whole.numbers()
    for table in study.tables:
        for row in table.rows:
            numbers |= _under(_row_key(table, row), row.numbers())
    for table in study.shifts:
        for row in table.rows:
            values = {"mce": row.mce, "relative_mce": row.relative_mce}
            numbers |= _under(_row_key(table, row), flat_numbers(values))
    if len(study.cells) == 1:
        summary = study.cells[0].summary
        for case in summary.cases:
            numbers |= _under("/".join(_case_key(summary, case)), case.numbers())
        for average in summary.averages:
            numbers |= _under(average.method, average.numbers())
    return numbers


def _children(study: StudyRecord) -> list[_Child]:
    """The runs below the study's: a cell and method each, or in a study of one cell a split and method."""
    if len(study.cells) == 1:
        return [_of_case(study.cells[0], case) for case in study.cells[0].summary.cases]
    rows: dict[tuple[int, str], tuple[StudyTable, TableRow]] = {}
    for table in study.tables:
        for row in table.rows:
            for place in row.cells:
                rows.setdefault((place, row.method), (table, row))
    return [
        _of_cell(cell, method, place, *rows.get((place, method), (None, None)))
        for place, cell in enumerate(study.cells)
        for method in dict.fromkeys(case.method for case in cell.summary.cases)
    ]


def _of_case(cell: Cell, case: CaseMetrics) -> _Child:
    key = _case_key(cell.summary, case)
    labels = {"method": case.method} | ({"split": case.split} if len(key) > 1 else {})
    files = {name: "_".join((*key, name)) for name in _CASE_FILES}
    name = _named(case.method, _model_label(cell), cell.summary.dataset, labels.get("split", ""))
    return _Child(name, cell, labels, {"case": case.case_id}, case.numbers(), files)


def _of_cell(cell: Cell, method: str, place: int, table: StudyTable | None, row: TableRow | None) -> _Child:
    """A cell's run under one method, with what the row that it is in says of it; `place` is the cell's in the study."""
    cases = [case for case in cell.summary.cases if case.method == method]
    numbers: dict[str, float] = {}
    for case in cases:
        numbers |= _under(case.split, case.numbers()) if len(cases) > 1 else case.numbers()
    for average in cell.summary.averages:
        numbers |= average.numbers() if average.method == method else {}
    if row is not None and len(row.cells) == 1:
        numbers |= row.numbers()
    elif row is not None and row.main is not None and len(row.main.replicates) == len(row.cells):
        numbers["accuracy"] = row.main.replicates[row.cells.index(place)]
    tags = {"case": ", ".join(case.case_id for case in cases)}
    if table is not None and "setting" in cell.coordinates:
        tags["sweep"] = table.name
    labels = {"method": method, **{axis.replace(" ", "_"): label for axis, label in cell.coordinates.items()}}
    others = label_of({axis: label for axis, label in cell.coordinates.items() if axis != "model"})
    return _Child(_named(method, _model_label(cell), cell.summary.dataset, others), cell, labels, tags, numbers)


def _case_key(summary: RunSummary, case: CaseMetrics) -> tuple[str, ...]:
    """What tells a case from the others of its cell."""
    return (case.split, case.method) if len(summary.splits) > 1 else (case.method,)


def _row_key(table: StudyTable | ShiftTable, row: TableRow | ShiftRow) -> str:
    """What tells a row from all others of the study."""
    shown = ", ".join(label for axis, label in row.labels.items() if axis != "method")
    return "/".join(store.key_part(part) for part in (table.name, shown, row.method) if part)


def _under(key: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {f"{key}/{name}": value for name, value in numbers.items()}
