"""A training's run in a real MLflow store: kept up while it runs, gone on with, and no reason for it to fail."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from zar_ray.errors import TrackingError
from zar_ray.storage import Storage
from zar_ray.tracking import TrainingTracker, training
from zar_ray.tracking.store import client_of


@pytest.fixture
def root(tmp_path, empty_store) -> Path:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def folder(root) -> Storage:
    return Storage(str(root / "train-0a1b"))


@pytest.fixture
def client(root):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db", registry_uri=f"sqlite:///{root}/mlflow.db")


CONFIG = {"dataset": "demo", "steps": 100, "lr": 0.001, "num_workers": 1, "augment": {"flip": 0.0}}
DATA = {"dataset": "demo"}


def points(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))


def test_a_training_arrives_with_options_points_and_its_end(folder, client, root):
    before = (dict(os.environ), logging.getLogger("mlflow").level)
    tracker = TrainingTracker.start(folder, None, CONFIG, {**DATA, "videos": 450, "model": "demo"})
    for step, loss in ((25, 2.0), (50, 1.5)):
        tracker.log(step, {"train/loss": loss, "train/learning_rate": 1e-3})
    run = client.get_run(tracker.run_id)
    assert run.info.status == "RUNNING"
    assert points(client, tracker.run_id, "train/loss") == [(25, 2.0), (50, 1.5)]

    (root / "tiny.safetensors").write_bytes(b"weights")
    receipt = tracker.finish({"loss": 1.4}, ("tiny", root / "tiny.safetensors"))
    assert (dict(os.environ), logging.getLogger("mlflow").level) == before
    run = client.get_run(receipt.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "training · demo · demo (train-0a1b)")
    assert run.data.metrics["loss"] == 1.4
    assert {"lr": "0.001", "steps": "100", "augment.flip": "0.0"}.items() <= run.data.params.items()
    assert {"kind": "training", "dataset": "demo", "videos": "450", "model": "demo"}.items() <= run.data.tags.items()
    assert [file.path for file in client.list_artifacts(receipt.run_id, "model")] == ["model/tiny.safetensors"]
    assert json.loads(folder.read("mlflow.json"))[0]["run_id"] == receipt.run_id


def test_a_resumed_training_goes_on_in_its_run_without_points_twice(folder, client):
    first = TrainingTracker.start(folder, None, CONFIG, {"workers": 1})
    for step in (20, 40, 60):
        first.log(step, {"train/loss": 1 / step})
    first.log(40, {"validation/top1": 0.5})
    first.fail("worker died")
    run = client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "worker died")

    # From the checkpoint of step 40 on.
    again = TrainingTracker.start(folder, None, {**CONFIG, "num_workers": 2}, {"workers": 2}, parent="above")
    assert again.run_id == first.run_id
    run = client.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert "failure" not in run.data.tags
    assert (run.data.tags["workers"], run.data.tags["mlflow.parentRunId"]) == ("2", "above")
    assert run.data.params["num_workers"] == "1"
    again.log(60, {"train/loss": 9.0, "validation/top1": 0.6})
    again.log(80, {"train/loss": 1 / 80})
    # A worker that died within the session repeats steps too.
    again.log(60, {"train/loss": 9.0})
    again.finish({})
    assert points(client, first.run_id, "train/loss") == [(20, 1 / 20), (40, 1 / 40), (60, 1 / 60), (80, 1 / 80)]
    assert points(client, first.run_id, "validation/top1") == [(40, 0.5), (60, 0.6)]


def test_a_run_deleted_in_mlflow_begins_anew(folder, client):
    first = TrainingTracker.start(folder, None, CONFIG, DATA)
    first.finish({})
    client.delete_run(first.run_id)
    again = TrainingTracker.start(folder, None, CONFIG, DATA)
    again.log(10, {"train/loss": 1.0})
    again.finish({})
    assert again.run_id != first.run_id
    assert points(client, again.run_id, "train/loss") == [(10, 1.0)]


def test_a_start_that_was_cut_off_is_completed(folder, client, monkeypatch):
    def cut_off(*args):
        raise OSError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(training.store, "log_values", cut_off)
        with pytest.raises(TrackingError, match="cut off"):
            TrainingTracker.start(folder, None, CONFIG, DATA)
    tracker = TrainingTracker.start(folder, None, CONFIG, DATA)
    tracker.finish({})
    assert client.get_run(tracker.run_id).data.params["lr"] == "0.001"
    assert len(client.search_runs([client.get_experiment_by_name("zar-ray").experiment_id])) == 1


def test_the_checkpoint_is_registered_once(folder, client, root, tiny_checkpoint):
    for _ in range(2):
        tracker = TrainingTracker.start(folder, None, CONFIG, DATA)
        receipt = tracker.finish({}, ("tiny", tiny_checkpoint))
    assert receipt.new is False
    (version,) = client.search_model_versions("name = 'tiny'")
    assert (version.version, version.run_id) == (1, receipt.run_id)
    place = client.get_model_version_download_uri("tiny", str(version.version))
    assert place == f"{client.get_run(receipt.run_id).info.artifact_uri}/model"
    file = client.download_artifacts(receipt.run_id, f"model/{tiny_checkpoint.name}", str(root))
    assert load_file(file).keys() == load_file(tiny_checkpoint).keys()

    # Other weights are another version.
    other = root / "other.safetensors"
    other.write_bytes(tiny_checkpoint.read_bytes() + b" ")
    TrainingTracker.start(folder, None, CONFIG, DATA).finish({}, ("tiny", other))
    assert len(client.search_model_versions("name = 'tiny'")) == 2


def test_the_machine_is_watched_while_the_run_is_open(folder, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    steps = []
    for _ in range(2):
        tracker = TrainingTracker.start(folder, None, CONFIG, DATA)
        until = time.monotonic() + 20
        seen = len(steps)
        while len(steps) <= seen and time.monotonic() < until:
            time.sleep(0.2)
            steps = points(client, tracker.run_id, "system/cpu_utilization_percentage")
        tracker.finish({})
    numbers = [step for step, _ in points(client, tracker.run_id, "system/cpu_utilization_percentage")]
    assert len(numbers) >= 2
    assert numbers == list(range(len(numbers)))


def test_a_store_that_cannot_be_reached_is_told_in_one_line(root, folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(
        TrackingError, match=r"127\.0\.0\.1:1: could not log the training to MLflow \(no answer"
    ) as caught:
        TrainingTracker.start(folder, "http://me:secret@127.0.0.1:1", CONFIG, DATA)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not folder.exists("mlflow.json")
    with pytest.raises(TrackingError, match="--mlflow-uri"):
        TrainingTracker.start(Storage("s3://bucket/train-0a1b?region=none"), None, CONFIG, DATA)


@contextlib.contextmanager
def gone(root: Path):
    """The store is away for a while."""
    (root / "mlflow.db").rename(root / "kept.db")
    (root / "mlflow.db").mkdir()
    try:
        yield
    finally:
        (root / "mlflow.db").rmdir()
        (root / "kept.db").rename(root / "mlflow.db")


def test_points_of_an_outage_arrive_after_it_and_it_is_told_once(folder, client, root, monkeypatch, caplog):
    monkeypatch.setattr(training, "_RETRY_SECONDS", 0.0)
    tracker = TrainingTracker.start(folder, None, CONFIG, DATA)
    tracker.log(10, {"train/loss": 1.0})
    # Open connections would go on reading the file that was moved away.
    tracker._client = client_of(f"sqlite:///{root}/mlflow.db")
    engine = tracker._client._tracking_client.store.engine
    engine.dispose()
    with gone(root):
        with pytest.raises(TrackingError, match="could not log the training's progress"):
            tracker.log(20, {"train/loss": 0.9})
        tracker.log(30, {"train/loss": 0.8})
        engine.dispose()
    tracker.log(40, {"train/loss": 0.7})
    tracker.finish({})
    assert points(client, tracker.run_id, "train/loss") == [(10, 1.0), (20, 0.9), (30, 0.8), (40, 0.7)]
    assert caplog.records == []
