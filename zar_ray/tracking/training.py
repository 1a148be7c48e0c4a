"""A training's run, logged while it trains."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zar_ray.errors import TrackingError
from zar_ray.options.base import fingerprint, without_password
from zar_ray.options.places import AnyFile
from zar_ray.provenance import git_commit
from zar_ray.storage import Storage
from zar_ray.tracking import store
from zar_ray.tracking.folder_run import TRAINING, FolderRun, MlflowReceipt

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_MODEL_FOLDER = "model"
_FAILURE_TAG = "failure"
# How long a store that did not answer is left alone: each try takes seconds, and training goes on meanwhile.
_RETRY_SECONDS = 60.0


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

    def __init__(self, kept: FolderRun, receipt: MlflowReceipt) -> None:
        self.run_id = receipt.run_id
        self.uri = kept.shown
        self._kept, self._client, self._receipt = kept, kept.client, receipt
        self._last: dict[str, int] = {}
        self._waiting: list[Metric] = []
        self._retry_at: float | None = None
        self._lock = threading.Lock()
        self._monitor: SystemMetricsMonitor | None = None
        self._open = contextlib.ExitStack()

    @classmethod
    def start(
        cls,
        folder: Storage,
        uri: str | None,
        config: Mapping[str, Any],
        facts: Mapping[str, str | int | float],
        parent: str | None = None,
    ) -> TrainingTracker:
        """Opens a run, or continues the one that the folder's receipt (`RECEIPTS`) names.

        The run's name says what is trained on what, as far as `facts` do, and in brackets the folder's name.  Its
        parameters are the options that it was begun with: MLflow never changes one, so a resumption with another
        operational option shows in its own log only.

        Args:
            folder: The training's own folder, which keeps the receipt.
            uri: The tracking store; by default ``mlflow.db`` beside the folder.
            config: The options, as plain JSON values.
            facts: What else is known from the start, such as the data set, counts of videos and the model's name;
                logged as tags.
            parent: Run that this one is shown below.

        Raises:
            TrackingError: MLflow cannot be reached or refuses; training can go on without.
        """
        tags = {"kind": TRAINING, **store.git_tags(git_commit()), **{name: str(value) for name, value in facts.items()}}
        if parent is not None:
            tags[store.PARENT_TAG] = parent
        kept, said = FolderRun(folder, uri), [str(facts[name]) for name in ("model", "dataset") if name in facts]
        named = f"{' · '.join([TRAINING, *said])} ({folder.name})"
        with store.opened(kept.shown, "log the training to MLflow", store.CONTINUES):
            continued = kept.find()
            receipt = continued or kept.keep(kept.create(named, tags))
            tracker = cls(kept, receipt)
            if continued is not None:
                tracker._reopen(tags)
            # A start that was cut off may have left some out.
            known = kept.client.get_run(receipt.run_id).data.params
            params = {
                name: value for name, value in store.flattened(config).items() if store.metric_key(name) not in known
            }
            store.log_values(kept.client, receipt.run_id, params, {})
        tracker._open.enter_context(store.quiet_and_quick())
        try:
            tracker._watch()
        except TrackingError:
            tracker._open.close()
            raise
        return tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each metric at a step, unless an earlier session logged this step or a later one.

        The page docs/mlflow.md lists the names.

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

    def finish(self, metrics: Mapping[str, float], registered: tuple[str, AnyFile] | None = None) -> MlflowReceipt:
        """Logs what the training ended with, at the last step that was logged, and closes the run.

        Calling it again for the same checkpoint, as after a training that found everything done, neither sends nor
        registers it again.

        Args:
            metrics: The final numbers.
            registered: A registered model's name, and the trained checkpoint that is sent and becomes a version of it.

        Raises:
            TrackingError: MLflow cannot be reached or refuses; the training's own files are not affected.
        """
        with self._ending(metrics):
            if registered is not None:
                self._register(*registered)
            self._client.set_terminated(self.run_id)
        return self._receipt

    def fail(self, reason: str) -> None:
        """Closes the run as failed, with what happened in a line as the tag ``failure``; a resumption opens it again.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        with self._ending({}):
            self._client.set_tag(self.run_id, _FAILURE_TAG, store.cut(without_password(reason)))
            self._client.set_terminated(self.run_id, status="FAILED")

    @contextlib.contextmanager
    def _ending(self, metrics: Mapping[str, float]) -> Iterator[None]:
        """Sends what is left, for the block to close the run."""
        with self._lock:
            try:
                self._unwatch()
                self._take(max(self._last.values(), default=0), metrics)
                self._send_waiting()
                with store.opened(self.uri, "log the training's end to MLflow", store.CONTINUES):
                    yield
            finally:
                self._open.close()

    def _reopen(self, tags: Mapping[str, str]) -> None:
        run = self._client.get_run(self.run_id)
        self._client.update_run(self.run_id, status="RUNNING")
        for name, value in store.fitting(tags).items():
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
            key = store.metric_key(name)
            if step > self._last.get(key, -1):
                self._last[key] = step
                self._waiting.append(Metric(key, float(value), now, step))

    def _send_waiting(self) -> None:
        with store.opened(
            self.uri, "log the training's progress to MLflow", "it is tried again while training goes on"
        ):
            while self._waiting:
                batch = self._waiting[: store.METRICS_A_BATCH]
                self._client.log_batch(self.run_id, metrics=batch)
                del self._waiting[: len(batch)]

    def _watch(self) -> None:
        with store.opened(self.uri, "log the machine's figures to MLflow", store.CONTINUES):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            uri = store.driver_uri(self._kept.uri)
            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=uri)
            self._monitor.start()

    def _unwatch(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    def _register(self, name: str, checkpoint: AnyFile) -> None:
        """Sends a checkpoint and makes it a version of a registered model, unless this very file is there already."""
        from mlflow.exceptions import MlflowException

        with checkpoint.open("rb") as stream:
            results = fingerprint([checkpoint.name, hashlib.file_digest(stream, "sha256").hexdigest()])
        new = results != self._receipt.results
        if new:
            # MLflow sends local files alone, under their names.
            with checkpoint.open("rb") as stream, tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch) / checkpoint.name
                with copy.open("wb") as target:
                    shutil.copyfileobj(stream, target)
                self._client.log_artifact(self.run_id, str(copy), _MODEL_FOLDER)
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"name = '{name}'")
        if not any(one.run_id == self.run_id and one.tags.get(store.RESULTS_TAG) == results for one in versions):
            source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{_MODEL_FOLDER}"
            self._client.create_model_version(name, source, self.run_id, tags={store.RESULTS_TAG: results})
        self._receipt = self._kept.keep(self.run_id, results, new)
