"""Studies: sent from their folders, at their end or at any later time.

A study is a parent with a child a cell and method, or in a study of one cell a child a split and method. The children
share the names of parameters and metrics, so that they compare.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zar_ray.errors import RunError
from zar_ray.options.base import fingerprint, without_password
from zar_ray.results.finished import FinishedStudy
from zar_ray.results.folder import CELLS, CONFIG, IDENTITY, MANIFEST, SUMMARY
from zar_ray.results.study_record import StudyRecord
from zar_ray.storage import Storage
from zar_ray.tracking.folder_run import FolderRun, MlflowReceipt, read_receipts
from zar_ray.tracking.store import (
    CONTINUES,
    NOTE_TAG,
    PARENT_TAG,
    absolute_uri,
    client_of,
    cut,
    fitting,
    flattened,
    git_tags,
    is_there,
    log_files,
    log_values,
    opened,
)
from zar_ray.tracking.study_values import children, command, model_tags, study_numbers, study_tags

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
    """Sends a run to MLflow, unless the same results are there already.

    The run's folder keeps a receipt a store (`RECEIPTS`).  Where the run has gone on since it was sent, it is sent
    anew and the outdated runs are deleted in MLflow (its `mlflow gc` aside, deleted runs can be restored).

    Args:
        run: The run's folder or its URI.
        uri: The tracking store; by default ``mlflow.db`` beside the run's folder.
        describe: Makes the description of the study's runs, in Markdown.

    Returns:
        The receipt; `new` says whether anything was sent.

    Raises:
        RunError: The folder holds no finished run.
        TrackingError: MLflow cannot be reached or refuses; tried for seconds, not minutes.
    """
    folder = Storage(run)
    found, manifest = FinishedStudy.open(folder), _manifest_fingerprint(folder)
    results = _results(found.record)
    kept = FolderRun(folder, uri)
    again = f"`zar report mlflow {shlex.quote(folder.path())} --uri {shlex.quote(kept.shown)}`"
    with opened(kept.shown, "log the run to MLflow", f"when it can be reached, send it with {again}"):
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
    with opened(without_password(uri), "put runs below another", CONTINUES):
        client = client_of(absolute_uri(uri))
        for run_id, tags in runs.items():
            for name, value in {**fitting(tags), PARENT_TAG: parent}.items():
                client.set_tag(run_id, name, value)


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
    folder = Storage(run)
    results = _results(FinishedStudy.open(folder).record)
    uri = None if uri is None else absolute_uri(uri)
    attached = []
    for receipt in read_receipts(folder).values():
        if receipt.results != results or (uri is not None and receipt.uri != without_password(uri)):
            continue
        with opened(receipt.uri, "attach the report", "name the store with --mlflow-uri if it needs a password"):
            client = client_of(uri or receipt.uri)
            if is_there(client, receipt.run_id):
                log_files(client, receipt.run_id, {name: content})
                attached.append(receipt)
    return tuple(attached)


def _manifest_fingerprint(folder: Storage) -> str | None:
    """What tells the run's videos and labels from others; None where the folder does not say."""
    if not folder.exists(IDENTITY):
        return None
    try:
        return json.loads(folder.read(IDENTITY)).get("manifest", {}).get("fingerprint")
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
        parent = self._create(study.whole.name, study_tags(study) | self.kept.result_tags(results))
        self._fill(parent, flattened(self.found.config), study_numbers(study), {n: n for n in (SUMMARY, CONFIG, CELLS)})
        for child in children(study):
            tags = model_tags(child.cell.summary) | {**child.labels, **child.tags, PARENT_TAG: parent}
            run_id = self._create(child.name, tags)
            self._fill(run_id, flattened(child.cell.config) | {**child.labels}, child.numbers, child.files)
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
            **git_tags(self.found.provenance.get("git")),
            "mlflow.source.name": command(self.found.record),
            "mlflow.source.type": "LOCAL",
            NOTE_TAG: self.note,
        }
        started = get_current_time_millis() - round(1000 * whole.throughput.seconds)
        run_id = self.kept.create(name, {**shared, **tags}, started)
        if self.manifest is not None:
            profile = json.dumps({"videos": whole.videos, "classes": whole.classes})
            source = json.dumps({"uri": without_password(self.folder.path(MANIFEST))})
            dataset = Dataset(cut(whole.dataset), self.manifest, "zar-ray", source, profile=profile)
            self.kept.client.log_inputs(run_id, datasets=[DatasetInput(dataset)])
        return run_id

    def _fill(
        self, run_id: str, params: Mapping[str, str], numbers: Mapping[str, float], files: Mapping[str, str]
    ) -> None:
        log_values(self.kept.client, run_id, params, numbers)
        there = {name: self.folder.read(source) for name, source in files.items() if self.folder.exists(source)}
        log_files(self.kept.client, run_id, there)
