"""What an MLflow store holds, as the tests look at it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zar_ray.results.study_record import StudyRecord
from zar_ray.tracking import default_uri, log_run_folder
from zar_ray.tracking.folder_run import MlflowReceipt


def describe(study: StudyRecord) -> str:
    """A description by which a study's runs are known."""
    return f"| {study.whole.name} |"


def send(run: Path | str, uri: str | None = None, **more) -> MlflowReceipt:
    """Sends a run with that description."""
    return log_run_folder(str(run), uri, describe=describe, **more)


@dataclass(frozen=True)
class LoggedStore:
    """A folder of runs with a store beside them."""

    root: Path

    @property
    def uri(self) -> str:
        return default_uri(str(self.root))

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, name: str) -> list:
        """Active parent runs of the folders of this name, and after each its children by name."""
        experiment = self.client.get_experiment_by_name("zar-ray")
        runs = self.client.search_runs([experiment.experiment_id], max_results=500)
        found = []
        for parent in (run for run in runs if run.info.run_name.endswith(f" ({name})")):
            children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
            found += [parent, *sorted(children, key=lambda run: run.info.run_name)]
        return found
