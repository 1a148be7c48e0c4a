"""Sends evaluations, trainings and groups of both to MLflow; docs/mlflow.md says what arrives there."""

from zar_ray.tracking.folder_run import RECEIPTS, MlflowReceipt
from zar_ray.tracking.groups import RunGroup, log_group
from zar_ray.tracking.logged import LoggedRun, logged_runs
from zar_ray.tracking.runs import STUDY_CSV, attach_report, log_run_folder
from zar_ray.tracking.store import EXPERIMENT, default_uri
from zar_ray.tracking.training import TrainingTracker

__all__ = [
    "EXPERIMENT",
    "RECEIPTS",
    "STUDY_CSV",
    "LoggedRun",
    "MlflowReceipt",
    "RunGroup",
    "TrainingTracker",
    "attach_report",
    "default_uri",
    "log_group",
    "log_run_folder",
    "logged_runs",
]
