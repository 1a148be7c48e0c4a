"""Sends evaluations, trainings and groups of both to MLflow; docs/mlflow.md says what arrives there.

Of an evaluation all is read from its folder, so it can be sent at its end or at any later time: a parent run with a
child run a case, or a split and case; the children share metric names, so that they compare.  A training is logged
while it runs.  A group, such as the seeds of one experiment, is a run that others become children of.  This is the only
module that imports mlflow, and it does so when something is sent: the import takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zar_ray.config import TrainConfig, fingerprint, without_password
from zar_ray.errors import RunError, TrackingError
from zar_ray.provenance import git_commit
from zar_ray.reporting.finished_runs import FinishedRun
from zar_ray.reporting.summary import RunSummary
from zar_ray.reporting.sweep_summary import SettingResult, SweepRow, SweepSummary, SweepTable, sweep_markdown
from zar_ray.reporting.tables import markdown
from zar_ray.storage import Storage, is_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

EXPERIMENT = "zar-ray"
"""The experiment that runs go to: one for all, because MLflow compares runs within an experiment."""

RECEIPTS = "mlflow.json"
"""File in the run's folder that says where the run was sent."""

_RUN_FILE = "run.json"
_IDENTITY = "identity.json"
_CASE_FILES = ("per_class.csv", "confusion.png")
_T = TypeVar("_T")

# Only where the user has not set them: by default MLflow tries for minutes before it says that a server is not there.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_LOG_LEVELS = {
    "mlflow": logging.WARNING,
    # A store that goes away is told once and in one line, by `TrainingTracker.log`.
    "mlflow.store.db": logging.CRITICAL,
    "mlflow.system_metrics": logging.CRITICAL,
    "alembic": logging.WARNING,
    "urllib3": logging.ERROR,
}

# What servers of all versions take.
_VALUE_LENGTH = 500
_NOTE_LENGTH = 5000
_PARAMS_A_BATCH = 100
_METRICS_A_BATCH = 1000

_EXPERIMENT_NOTE = (
    "Evaluations by zar-ray: a run each, and below it (+) a run a method, a split and method, or a setting of a sweep."
    " Compare those: their parameters and metrics have the same names. `top1_change` is what adaptation changed, with"
    " its 95 % interval in `top1_change_low` and `top1_change_high`, and `mcnemar_p`. Accuracies are fractions in"
    " [0, 1]. A run's description is its result table."
)
_EXPERIMENT_TAGS = {
    "mlflow.note.content": _EXPERIMENT_NOTE,
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "top1",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}

_MODEL_FOLDER = "model"
# How long a store that did not answer is left alone: each try takes seconds, and training goes on meanwhile.
_RETRY_SECONDS = 60.0

_CONTINUES = "the same command, when it can be reached, logs it"
_PARENT = "mlflow.parentRunId"
_NOTE = "mlflow.note.content"
_FOLDER_TAG = "zar.folder"
_RESULTS_TAG = "zar.results"
_FAILURE_TAG = "failure"


@dataclass(frozen=True)
class MlflowReceipt:
    """Where a run is in MLflow.

    Attributes:
        uri: The tracking store, without a password.
        experiment: The experiment's name.
        run_id: The evaluation's (parent) run, the training's or the group's.
        results: A short hash of the results that were sent; empty while a training runs.
        new: Whether this call sent them; otherwise they were there already.
    """

    uri: str
    experiment: str
    run_id: str
    results: str
    new: bool = field(default=True, compare=False)


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


def default_uri(root: str) -> str:
    """The store that serves all runs below a folder: ``mlflow.db`` in it.

    Raises:
        TrackingError: `root` is a URI, where SQLite cannot be.
    """
    if is_uri(root):
        raise TrackingError(
            f"{root}: MLflow's database cannot be there; name a tracking server with --mlflow-uri, "
            "or send the run later with `zar report mlflow RUN --uri URI`"
        )
    return f"sqlite:///{Path(root).expanduser().absolute() / 'mlflow.db'}"


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
    uri = _absolute(uri) if uri else default_uri(root)
    shown = without_password(uri)
    receipts = _receipts(storage)
    earlier = receipts.get(shown)
    send_later = f"when it can be reached, send it with `zar report mlflow {shlex.quote(storage.path())} --uri {shown}`"
    with _mlflow(shown, "log the run to MLflow", send_later):
        client = _client(uri)
        receipt = _found(client, record, earlier, shown, experiment)
        if receipt is None:
            run_id = _send(client, record, _experiment_id(client, experiment, _artifact_location(uri, root)))
            receipt = MlflowReceipt(shown, experiment, run_id, record.results)
        if earlier is not None and earlier.run_id != receipt.run_id:
            _delete(client, earlier.run_id)
    if receipt != earlier:
        _keep(storage, receipt)
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
    uri = _absolute(uri)
    shown = without_password(uri)
    with _mlflow(shown, "read MLflow's runs", "check --mlflow-uri"):
        client = _client(uri)
        known = client.get_experiment_by_name(experiment)
        if known is None:
            raise TrackingError(f'{shown}: has no experiment "{experiment}"; check --mlflow-uri')
        found = []
        with tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder:
            for run in _search(client, known.experiment_id, f"tags.`{_RESULTS_TAG}` != ''"):
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
    uri = _absolute(uri)
    shown = without_password(uri)

    def read(run_id: str) -> FinishedRun:
        with (
            _mlflow(shown, f"read run {run_id}", "check --mlflow-uri and the run id"),
            tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder,
        ):
            file = Path(_client(uri).download_artifacts(run_id, _RUN_FILE, folder))
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
    receipts = [one for one in _receipts(storage).values() if one.results == record.results]
    if uri is not None:
        uri = _absolute(uri)
        receipts = [one for one in receipts if one.uri == without_password(uri)]
    attached = []
    for receipt in receipts:
        with (
            _mlflow(receipt.uri, "attach the report", "name the store with --mlflow-uri if it needs a password"),
            tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder,
        ):
            client = _client(uri or receipt.uri)
            if _is_there(client, receipt.run_id):
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


class TrainingTracker:
    """A training's run in MLflow, kept by the training's driver; made by `start`, ended by `finish` or `fail`.

    A training that is resumed goes on in its run, and steps that it repeats are not logged twice: of each metric only
    points above the last one are taken.  Points that a store in trouble did not take are sent with later ones.  The
    machine's own figures (MLflow's system metrics, of the driver's machine) are logged while the run is open.  Methods
    may be called from several threads.

    Attributes:
        run_id: The run, for links and children.
        uri: The tracking store, without a password.
    """

    def __init__(self, client: MlflowClient, uri: str, folder: Storage, receipt: MlflowReceipt) -> None:
        self.run_id = receipt.run_id
        self.uri = without_password(uri)
        self._client, self._store, self._folder, self._receipt = client, uri, folder, receipt
        self._last: dict[str, int] = {}
        self._waiting: list[Metric] = []
        self._retry_at: float | None = None
        self._lock = threading.Lock()
        self._monitor: SystemMetricsMonitor | None = None
        self._open = contextlib.ExitStack()

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        folder: Storage,
        facts: Mapping[str, str | int | float],
        parent: str | None = None,
    ) -> TrainingTracker:
        """Opens a run, or continues the one that the folder's receipt (`RECEIPTS`) names.

        The run's name is the folder's.  Its parameters are the options that it was begun with: MLflow never changes
        one, so a resumption with another operational option shows in its own log only.

        Args:
            config: The options; `mlflow_uri` is the store, by default ``mlflow.db`` beside the folder.
            folder: The training's own folder, which keeps the receipt.
            facts: What else is known from the start, such as counts of videos and the model's name; logged as tags.
            parent: Run that this one is shown below.

        Raises:
            TrackingError: MLflow cannot be reached or refuses; training can go on without.
        """
        root = folder.location.rpartition("/")[0]
        uri = _absolute(config.mlflow_uri) if config.mlflow_uri else default_uri(root)
        shown = without_password(uri)
        git = git_commit()
        tags = {
            "kind": "training",
            "dataset": str(config.dataset),
            "git": git or "unknown",
            **{name: str(value) for name, value in facts.items()},
        }
        if git:
            tags["mlflow.source.git.commit"] = git.removesuffix("+changes")
        if parent is not None:
            tags[_PARENT] = parent
        with _mlflow(shown, "log the training to MLflow", _CONTINUES):
            client = _client(uri)
            receipt = _receipts(folder).get(shown)
            continued = receipt is not None and _is_there(client, receipt.run_id)
            if receipt is None or not continued:
                experiment_id = _experiment_id(client, EXPERIMENT, _artifact_location(uri, root))
                name = folder.location.rpartition("/")[2]
                run_id = client.create_run(experiment_id, tags=_fitting(tags), run_name=name).info.run_id
                receipt = MlflowReceipt(shown, EXPERIMENT, run_id, results="")
                _keep(folder, receipt)
            tracker = cls(client, uri, folder, receipt)
            if continued:
                tracker._reopen(tags)
            # A start that was cut off may have left some out.
            known = client.get_run(receipt.run_id).data.params
            params = _flat(config.model_dump(mode="json"))
            _log(client, receipt.run_id, {name: value for name, value in params.items() if _key(name) not in known}, {})
        tracker._open.enter_context(_quiet_and_quick())
        try:
            tracker._watch()
        except TrackingError:
            tracker._open.close()
            raise
        return tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each metric, unless an earlier session logged this step or a later one.

        Args:
            step: Steps done.
            metrics: Values by name; docs/mlflow.md lists the names.

        Raises:
            TrackingError: The store has just gone away.  The points are kept; as long as it stays away, later calls
                try now and then and are silent.
        """
        with self._lock:
            self._take(step, metrics)
            outage = self._retry_at is not None
            if self._retry_at is not None and time.monotonic() < self._retry_at:
                return
            try:
                self._send_waiting()
            except TrackingError:
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                if not outage:
                    raise
                return
            self._retry_at = None
            if outage:
                # Its thread ended with the first figure that was refused.
                self._unwatch()
                self._watch()

    def finish(
        self, metrics: Mapping[str, float], artifacts: Sequence[Path] = (), register_as: str | None = None
    ) -> MlflowReceipt:
        """Logs what the training ended with and closes the run.

        Calling it again for the same files, as after a training that found everything done, neither sends nor
        registers them again.

        Args:
            metrics: The final numbers, logged at the last step that was logged.
            artifacts: Files to send, the trained checkpoint first.
            register_as: Registered model that the first of `artifacts` becomes a version of.

        Returns:
            The receipt; `new` says whether files were sent.

        Raises:
            TrackingError: MLflow cannot be reached or refuses; the training's own files are not affected.
            ValueError: There is nothing to register.
        """
        if register_as is not None and not artifacts:
            raise ValueError("register_as goes with artifacts, whose first is registered")
        with self._lock:
            try:
                self._unwatch()
                self._take(max(self._last.values(), default=0), metrics)
                self._send_waiting()
                with _mlflow(self.uri, "log the training's end to MLflow", _CONTINUES):
                    self._receipt = self._send_files(artifacts, register_as)
                    self._client.set_terminated(self.run_id)
            finally:
                self._open.close()
        _keep(self._folder, self._receipt)
        return self._receipt

    def fail(self, reason: str) -> None:
        """Closes the run as failed; a resumption opens it again.

        Args:
            reason: What happened, one line; the tag ``failure``.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        with self._lock:
            try:
                self._unwatch()
                self._send_waiting()
                with _mlflow(self.uri, "log the training's end to MLflow", _CONTINUES):
                    self._client.set_tag(self.run_id, _FAILURE_TAG, _cut(without_password(reason)))
                    self._client.set_terminated(self.run_id, status="FAILED")
            finally:
                self._open.close()

    def _reopen(self, tags: Mapping[str, str]) -> None:
        run = self._client.get_run(self.run_id)
        self._client.update_run(self.run_id, status="RUNNING")
        for name, value in _fitting(tags).items():
            self._client.set_tag(self.run_id, name, value)
        if _FAILURE_TAG in run.data.tags:
            self._client.delete_tag(self.run_id, _FAILURE_TAG)
        for key in run.data.metrics:
            if not key.startswith("system/"):
                self._last[key] = max(point.step for point in self._client.get_metric_history(self.run_id, key))

    def _take(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in metrics.items():
            key = _key(name)
            if step > self._last.get(key, -1):
                self._last[key] = step
                self._waiting.append(Metric(key, float(value), now, step))

    def _send_waiting(self) -> None:
        with _mlflow(self.uri, "log the training's progress to MLflow", "it is tried again while training goes on"):
            while self._waiting:
                batch = self._waiting[:_METRICS_A_BATCH]
                self._client.log_batch(self.run_id, metrics=batch)
                del self._waiting[: len(batch)]

    def _watch(self) -> None:
        with _mlflow(self.uri, "log the machine's figures to MLflow", _CONTINUES):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self._store)
            self._monitor.start()

    def _unwatch(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    def _send_files(self, artifacts: Sequence[Path], register_as: str | None) -> MlflowReceipt:
        """Sends the files that are not there yet, and registers the first."""
        results = fingerprint([[file.name, _digest(file)] for file in artifacts])
        new = results != self._receipt.results
        if new:
            for number, file in enumerate(artifacts):
                self._client.log_artifact(self.run_id, str(file), None if number else _MODEL_FOLDER)
        if register_as is not None:
            _register(self._client, register_as, self.run_id, results)
        return replace(self._receipt, results=results, new=new)


@dataclass(frozen=True)
class RunGroup:
    """Runs that belong together, such as the seeds of an experiment or the alphas of a sweep.

    Attributes:
        name: What the group's run is called.
        kind: What they are of; the tag ``kind``.
        config: The options they share, as JSON values; logged as parameters.
        tags: Further tags.
        children: The runs, and tags that tell each from the others.
        numbers: Values by metric.
        curves: Values by metric and step, for metrics that are a curve over the children.
        note: The run's description, in Markdown.
        files: Files of the group's folder to send along.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    children: Mapping[str, Mapping[str, str]]
    numbers: Mapping[str, float]
    note: str
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def log_group(group: RunGroup, folder: Storage, uri: str) -> MlflowReceipt:
    """Logs a group as a run and puts its children below it.

    The same group again is found there; one that has gone on since replaces the outdated run, whose children move.

    Args:
        group: The group; its children are runs of the same store.
        folder: Where the receipt is kept.
        uri: The tracking store.

    Returns:
        The receipt; `new` says whether anything was sent.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    uri = _absolute(uri)
    shown = without_password(uri)
    results = fingerprint([group.children, group.numbers, group.curves, group.note])
    earlier = _receipts(folder).get(shown)
    with _mlflow(shown, f"log the {group.kind} to MLflow", _CONTINUES):
        client = _client(uri)
        known = earlier is not None and _is_there(client, earlier.run_id)
        if earlier is not None and known and earlier.results == results:
            return earlier
        root = folder.location.rpartition("/")[0]
        experiment_id = _experiment_id(client, EXPERIMENT, _artifact_location(uri, root))
        git = git_commit() or "unknown"
        tags = _fitting({"kind": group.kind, "git": git, **group.tags, _NOTE: group.note})
        run_id = client.create_run(experiment_id, tags=tags, run_name=group.name).info.run_id
        _log(client, run_id, _flat(group.config), group.numbers)
        for key, points in group.curves.items():
            for step, value in points.items():
                client.log_metric(run_id, _key(key), value, step=step)
        _log_files(client, run_id, folder, {name: name for name in group.files})
        for child, own in group.children.items():
            for name, value in _fitting({**own, _PARENT: run_id}).items():
                client.set_tag(child, name, value)
        client.set_terminated(run_id)
        receipt = MlflowReceipt(shown, EXPERIMENT, run_id, results)
        _keep(folder, receipt)
        if earlier is not None and known:
            client.delete_run(earlier.run_id)
    return receipt


def _receipts(storage: Storage) -> dict[str, MlflowReceipt]:
    if not storage.exists(RECEIPTS):
        return {}
    try:
        receipts = [MlflowReceipt(**one, new=False) for one in json.loads(storage.read(RECEIPTS))]
    except (ValueError, TypeError) as error:
        place = storage.path(RECEIPTS)
        raise RunError(f"{place}: cannot be read ({error}); delete it if the run is to be sent again") from None
    return {one.uri: one for one in receipts}


def _keep(storage: Storage, receipt: MlflowReceipt) -> None:
    """Writes a receipt in place of the same store's earlier one."""
    kept = [one for one in _receipts(storage).values() if one.uri != receipt.uri]
    content = [{k: v for k, v in asdict(one).items() if k != "new"} for one in (*kept, receipt)]
    storage.write(RECEIPTS, (json.dumps(content, indent=2) + "\n").encode())


def _absolute(uri: str) -> str:
    """The URI with a relative SQLite path made absolute: a receipt must mean the same in another folder."""
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"
    return uri.rstrip("/")


@contextlib.contextmanager
def _mlflow(uri: str, doing: str, way_out: str) -> Iterator[None]:
    """MLflow made quiet and quick to give up, and its errors made ours."""
    try:
        with _quiet_and_quick():
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                yield
            except (MlflowException, SQLAlchemyError, OSError) as error:
                raise TrackingError(f"{uri}: could not {doing} ({_reason(error)}); {way_out}") from error
    except ImportError as error:
        raise TrackingError(f"{uri}: could not {doing} ({_reason(error)}); {way_out}") from error


@contextlib.contextmanager
def _quiet_and_quick() -> Iterator[None]:
    """MLflow's settings and log levels while it is at work; those the user has set stay."""
    ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(ours)
    levels = {name: logging.getLogger(name).level for name in _LOG_LEVELS}
    try:
        # Importing mlflow sets its logger's level, so ours comes after.
        import mlflow  # noqa: F401

        for name, level in _LOG_LEVELS.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _reason(error: BaseException) -> str:
    """What went wrong in a few words: of a failed connection or query its cause, without URLs and SQL around it."""
    from requests import RequestException

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(cause, RequestException) for cause in causes):
        text = f"no answer from the server: {causes[-1]}"
    else:
        text = str(getattr(error, "orig", error))
    return _cut(without_password(" ".join(text.split())), 300)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        _open_database(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _open_database(uri: str) -> None:
    """Opens a database once: MLflow itself goes on trying for minutes, even where a file is not a database."""
    import sqlalchemy

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _artifact_location(uri: str, root: str) -> str | None:
    """Where a new experiment keeps its files: beside a database, else what the server says."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts").as_uri()
    if uri.startswith(("http://", "https://")) or not is_uri(uri):
        return None
    # A database without a server knows no place for files, and MLflow would put them into the working folder.
    return f"{root}/mlflow-artifacts" if is_uri(root) else (Path(root) / "mlflow-artifacts").as_uri()


def _experiment_id(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location, tags=_EXPERIMENT_TAGS)
        except MlflowException as error:
            # Another run may have made it in between.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error from None
    if found.lifecycle_stage != "active":
        raise MlflowException(f"experiment {name} has been deleted there; restore it in MLflow")
    return found.experiment_id


def _found(
    client: MlflowClient, record: _Record, earlier: MlflowReceipt | None, uri: str, experiment: str
) -> MlflowReceipt | None:
    """The receipt of these very results if the store has them.

    A sending that was cut off leaves a run that never ended, or one that the folder has no receipt of: the first is
    deleted here, the second recognised by its tags.
    """
    if earlier is not None and earlier.results == record.results and _is_there(client, earlier.run_id):
        return earlier
    known = client.get_experiment_by_name(experiment)
    if known is None or known.lifecycle_stage != "active":
        return None
    same_folder = f"tags.`{_FOLDER_TAG}` = '{_folder_key(record)}'"
    receipt = None
    for run in _search(client, known.experiment_id, same_folder):
        if run.info.status != "FINISHED":
            _delete(client, run.info.run_id)
        elif run.data.tags.get(_RESULTS_TAG) == record.results:
            receipt = MlflowReceipt(uri, experiment, run.info.run_id, record.results, new=False)
    return receipt


def _folder_key(record: _Record) -> str:
    return fingerprint(record.storage.location)


def _is_there(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _search(client: MlflowClient, experiment_id: str, condition: str) -> list[Run]:
    """All active runs under a condition."""
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=100, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _delete(client: MlflowClient, run_id: str) -> None:
    """Deletes an evaluation's run with its children, children first; nothing if it is not there."""
    if not _is_there(client, run_id):
        return
    experiment_id = client.get_run(run_id).info.experiment_id
    for child in _search(client, experiment_id, f"tags.`{_PARENT}` = '{run_id}'"):
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
        _NOTE: markdown(summary) if record.sweep is None else sweep_markdown(record.sweep),
    }
    tags |= {"mlflow.source.name": "zar eval" if record.sweep is None else "zar ablate", "mlflow.source.type": "LOCAL"}
    if record.git:
        tags["mlflow.source.git.commit"] = record.git.removesuffix("+changes")
    params = _flat(record.config)
    several = len(summary.splits) > 1
    cases = [((case.split, case.method) if several else (case.method,), case) for case in summary.cases]
    by_case = {f"{'/'.join(key)}/{name}": value for key, case in cases for name, value in case.numbers().items()}
    averages = {f"{one.method}/{name}": value for one in summary.averages for name, value in one.numbers().items()}
    parent_tags = {**tags, _FOLDER_TAG: _folder_key(record), _RESULTS_TAG: record.results}
    parent = _create(client, record, experiment_id, summary.name, parent_tags)
    _log(client, parent, params, {**summary.numbers(), **by_case, **averages})
    _log_files(client, parent, record.storage, {_RUN_FILE: _RUN_FILE, "config.yaml": "config.yaml"})
    if record.sweep is not None:
        for setting, table, row in record.sweep.rows_of_settings():
            _send_setting(client, record, experiment_id, parent, tags, setting, table, row)
        cases = []
    for key, case in cases:
        of_case = {"method": case.method, "split": case.split} if several else {"method": case.method}
        # A case's id holds a hash of its settings, so runs are compared by method.
        case_tags = {**tags, **of_case, "case": case.case_id, _PARENT: parent}
        run_id = _create(client, record, experiment_id, "/".join(key), case_tags)
        _log(client, run_id, {**params, **of_case}, case.numbers())
        files = {"_".join((*key, name)): name for name in _CASE_FILES}
        _log_files(client, run_id, record.storage, files)
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
    run_id = client.create_run(experiment_id, started, _fitting(tags), name).info.run_id
    if record.manifest is not None:
        summary = record.summary
        profile = json.dumps({"videos": summary.videos, "classes": summary.classes})
        source = json.dumps({"uri": without_password(record.storage.path("manifest.parquet"))})
        dataset = Dataset(_cut(summary.dataset), record.manifest, "zar-ray", source, profile=profile)
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
    run_id = _create(client, record, experiment_id, name, {**tags, **of_setting, "sweep": table.name, _PARENT: parent})
    _log(client, run_id, {**_flat(setting.config), **of_setting}, {**numbers, **row.numbers()})
    client.set_terminated(run_id)


def _log(client: MlflowClient, run_id: str, params: Mapping[str, str], numbers: Mapping[str, float]) -> None:
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    now = get_current_time_millis()
    for batch in _batches([Param(_key(name), _cut(value)) for name, value in params.items()], _PARAMS_A_BATCH):
        client.log_batch(run_id, params=batch)
    for batch in _batches([Metric(_key(name), value, now, 0) for name, value in numbers.items()], _PARAMS_A_BATCH):
        client.log_batch(run_id, metrics=batch)


def _log_files(client: MlflowClient, run_id: str, storage: Storage, names: Mapping[str, str]) -> None:
    """Sends those of the run's files that are there, by the names they are to have."""
    with tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder:
        for source, name in names.items():
            if storage.exists(source):
                file = Path(folder) / name
                file.write_bytes(storage.read(source))
                client.log_artifact(run_id, str(file))


def _register(client: MlflowClient, name: str, run_id: str, results: str) -> None:
    """Makes a run's model folder a version of a registered model, unless these very files are one already."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    if not any(one.run_id == run_id and one.tags.get(_RESULTS_TAG) == results for one in versions):
        source = f"{client.get_run(run_id).info.artifact_uri}/{_MODEL_FOLDER}"
        client.create_model_version(name, source, run_id, tags={_RESULTS_TAG: results})


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _batches(items: list[_T], size: int) -> Iterable[list[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _flat(values: Mapping[str, Any], at: str = "") -> dict[str, str]:
    """Nested options as dotted names with text values; lists as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{at}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{at}{name}"] = without_password(text)
    return flat


def _fitting(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: _cut(value, _NOTE_LENGTH if name == _NOTE else _VALUE_LENGTH) for name, value in tags.items()}


def _cut(value: str, length: int = _VALUE_LENGTH) -> str:
    return value if len(value) <= length else f"{value[: length - 4]} ..."


def _key(name: str) -> str:
    """A name with only the characters that MLflow's keys may have."""
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)
