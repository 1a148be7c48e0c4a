"""Studies that were sent, read back."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from zar_ray.errors import TrackingError
from zar_ray.options.base import without_password
from zar_ray.results.finished import FinishedStudy
from zar_ray.results.folder import SUMMARY
from zar_ray.tracking.store import EXPERIMENT, RESULTS_TAG, absolute_uri, client_of, opened, search_runs


def logged_runs(uri: str, run_id: str | None = None) -> tuple[FinishedStudy, ...]:
    """The finished studies of a store; their place is the store, without a password, and the run id.

    Args:
        uri: The tracking store.
        run_id: Only the study of this (parent) run.

    Raises:
        TrackingError: MLflow cannot be reached, or holds no experiment of ours or no such study.
        RunError: A study there was sent by an earlier version.
    """
    uri = absolute_uri(uri)
    shown = without_password(uri)
    doing = "read MLflow's runs" if run_id is None else f"read run {run_id}"
    with opened(shown, doing, "check --mlflow-uri" if run_id is None else "check --mlflow-uri and the run id"):
        client, found = client_of(uri), []
        if run_id is not None:
            runs = [client.get_run(run_id)]
        elif (known := client.get_experiment_by_name(EXPERIMENT)) is not None:
            runs = search_runs(client, known.experiment_id, f"tags.`{RESULTS_TAG}` != '' and status = 'FINISHED'")
        else:
            raise TrackingError(f'{shown}: has no experiment "{EXPERIMENT}"; check --mlflow-uri')
        for run in runs:
            with tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder:
                record = Path(client.download_artifacts(run.info.run_id, SUMMARY, folder)).read_bytes()
            ended = datetime.fromtimestamp((run.info.end_time or 0) / 1000, UTC)
            found.append(FinishedStudy.parse(record, f"{shown} run {run.info.run_id}", ended))
    return tuple(found)
