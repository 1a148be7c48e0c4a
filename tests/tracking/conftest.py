"""MLflow stores whose tables are made already, which takes MLflow seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from logged_store import LoggedStore

from zar_ray.tracking.store import client_of


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """The file of a store without runs."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    client_of(f"sqlite:///{file}", make=True).search_experiments()
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store) -> LoggedStore:
    """A folder of runs with an MLflow store, for a module's tests together."""
    root = tmp_path_factory.mktemp("mlflow") / "runs"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    return LoggedStore(root)
