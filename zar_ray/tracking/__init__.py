"""Sends studies and trainings to MLflow, and reads studies back; docs/mlflow.md says what arrives there."""

from zar_ray.tracking.runs import attach_report, log_run_folder, logged_runs, put_below
from zar_ray.tracking.store import default_uri, runs_page
from zar_ray.tracking.training import TrainingTracker

__all__ = [
    "TrainingTracker",
    "attach_report",
    "default_uri",
    "log_run_folder",
    "logged_runs",
    "put_below",
    "runs_page",
]
