"""Sends studies and trainings to MLflow, and reads studies back; docs/mlflow.md says what arrives there."""

from zar_ray.tracking.folder_run import RECEIPTS, MlflowReceipt
from zar_ray.tracking.logged import logged_runs
from zar_ray.tracking.runs import attach_report, log_run_folder, put_below
from zar_ray.tracking.store import EXPERIMENT, default_uri
from zar_ray.tracking.training import TrainingTracker

__all__ = [
    "EXPERIMENT",
    "RECEIPTS",
    "MlflowReceipt",
    "TrainingTracker",
    "attach_report",
    "default_uri",
    "log_run_folder",
    "logged_runs",
    "put_below",
]
