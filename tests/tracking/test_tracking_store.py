"""A store is opened quietly, safely and under any name; one that cannot be had is given up in seconds and one line."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished_runs import make_run
from logged_store import LoggedStore, send

import zar_ray
from zar_ray.errors import TrackingError
from zar_ray.results.study_record import FinishedStudy
from zar_ray.storage import Storage
from zar_ray.tracking import default_uri, logged_runs
from zar_ray.tracking.store import absolute_uri

SEND = """
import sys
from zar_ray.tracking import log_run_folder
log_run_folder(sys.argv[1], describe=lambda study: study.whole.name)
"""


@pytest.mark.process
def test_first_sends_at_once_are_silent_and_leave_the_working_folder_alone(tmp_path):
    root, working = tmp_path / "runs", tmp_path / "working folder"
    working.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(Path(zar_ray.__file__).parent.parent)
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", SEND, str(make_run(root / name))],
            cwd=working,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "other")
    ]
    said = [sender.communicate(timeout=120)[0] for sender in senders]
    assert [(sender.returncode, said) for sender, said in zip(senders, said, strict=True)] == [(0, "")] * 2
    assert list(working.iterdir()) == []
    assert sorted(path.name for path in root.iterdir()) == ["mlflow-artifacts", "mlflow.db", "one", "other"]
    store = LoggedStore(root)
    assert [len(store.runs(name)) for name in ("one", "other")] == [3, 3]


def test_a_folder_of_any_name_has_its_store_in_it(tmp_path, empty_store):
    root = tmp_path / "what? 100%25 #1"
    run = make_run(root / "mine")
    (root / "mlflow.db").write_bytes(empty_store.read_bytes())
    receipt = send(run)
    assert receipt.uri == f"sqlite:///{tmp_path}/what%3F 100%2525 #1/mlflow.db"
    assert send(run, receipt.uri).new is False
    (logged,) = logged_runs(receipt.uri)
    assert logged.record == FinishedStudy.open(Storage(str(run))).record
    assert sorted(path.name for path in tmp_path.iterdir()) == [root.name]
    assert sorted(path.name for path in root.iterdir()) == ["mine", "mlflow-artifacts", "mlflow.db"]


def test_a_relative_store_is_made_absolute_and_keeps_what_it_asks_of_sqlite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///a%3F.db?timeout=30") == f"sqlite:///{tmp_path}/a%3F.db?timeout=30"


@contextlib.contextmanager
def listening(answers: bool):
    """A port that refuses connections, or one that takes them and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if not answers:
            yield server.getsockname()[1]
            return
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize("answers", [False, True])
def test_a_dead_server_is_given_up_soon_quietly_and_by_name(store, monkeypatch, caplog, answers):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    run = make_run(store.root / f"unsent {answers}")
    environment = dict(os.environ)
    started = time.monotonic()
    with listening(answers) as port, pytest.raises(TrackingError) as caught:
        send(run, f"http://127.0.0.1:{port}/")
    assert time.monotonic() - started < 15
    message = str(caught.value)
    assert message.startswith(f"http://127.0.0.1:{port}: could not log the run to MLflow (no answer from the server")
    assert f"zar report mlflow '{run}' --uri http://127.0.0.1:{port}" in message
    assert "\n" not in message
    assert dict(os.environ) == environment
    assert not (run / "mlflow.json").exists()
    assert caplog.records == []
    # Nothing stands in the way of sending it later.
    assert send(run).new


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///{run}/run.json", "file is not a database"),
        ("sqlite:///{run}/run.json/mlflow.db", "exists|directory"),
        ("sqlite:///{run}", "unable to open database file"),
        ("{run}/mlruns", "file"),
        ("nonsense://host", "unsupported URI"),
        ("postgresql://me:secret@127.0.0.1:1/db", "psycopg|refused"),
    ],
)
def test_a_store_that_cannot_be_one_is_refused_at_once_without_its_password(store, uri, reason):
    run = make_run(store.root / "refused")
    started = time.monotonic()
    with pytest.raises(TrackingError, match=reason) as caught:
        send(run, uri.format(run=run))
    assert time.monotonic() - started < 10
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_output_behind_a_uri_needs_a_server():
    with pytest.raises(TrackingError, match="--mlflow-uri"):
        default_uri("s3://bucket/runs")


def test_importing_the_package_does_not_import_mlflow():
    code = "import sys, zar_ray.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
