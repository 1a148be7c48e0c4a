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
import sqlalchemy
from finished_runs import make_run
from hypothesis import given
from hypothesis import strategies as st
from logged_store import LoggedStore, send

import zar_ray
from zar_ray.errors import TrackingError
from zar_ray.options.base import without_password
from zar_ray.results.study_record import FinishedStudy
from zar_ray.storage import Storage
from zar_ray.tracking import attach_report, default_uri, logged_runs
from zar_ray.tracking.store import absolute_uri, client_of, sqlite_path

# What takes long, MLflow's import, is done before the processes part, so that they meet where it matters.
SEND = """
import fcntl, multiprocessing, sys
import mlflow.store.tracking.sqlalchemy_store
from zar_ray.tracking import log_run_folder

def send(run, begin):
    begin.wait()
    log_run_folder(run, describe=lambda study: study.whole.name)

def refuse(*_):
    raise OSError("no locks available")

if sys.argv[1] == "without locks":
    fcntl.flock = refuse
context = multiprocessing.get_context("fork")
begin = context.Barrier(len(sys.argv) - 2)
senders = [context.Process(target=send, args=(run, begin)) for run in sys.argv[2:]]
for sender in senders:
    sender.start()
for sender in senders:
    sender.join()
sys.exit(sum(sender.exitcode != 0 for sender in senders))
"""


@pytest.mark.process
@pytest.mark.parametrize(("locks", "senders"), [("with locks", 3), ("without locks", 2)])
def test_first_sends_at_once_are_silent_and_leave_the_working_folder_alone(tmp_path, locks, senders):
    root, working = tmp_path / "runs 100%25", tmp_path / "working folder"
    working.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(Path(zar_ray.__file__).parent.parent)
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    names = [f"run{number}" for number in range(senders)]
    done = subprocess.run(
        [sys.executable, "-c", SEND, locks, *(str(make_run(root / name)) for name in names)],
        cwd=working,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert list(working.iterdir()) == []
    assert sorted(path.name for path in root.iterdir()) == ["mlflow-artifacts", "mlflow.db", *names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([root.name, working.name])
    store = LoggedStore(root)
    assert [len(store.runs(name)) for name in names] == [3] * senders


@pytest.mark.slow
def test_a_store_whose_making_is_cut_off_is_none(tmp_path, monkeypatch):
    """MLflow cannot go on with tables that it has half made, nor begin anew."""
    run = make_run(tmp_path / "a % b? #c" / "mine")
    with monkeypatch.context() as cut:
        cut.setattr("mlflow.store.db.utils._upgrade_db", _cut_off)
        with pytest.raises(RuntimeError, match="cut off"):
            send(run)
    assert sorted(path.name for path in run.parent.iterdir()) == ["mine"]
    assert send(run).new
    assert sorted(path.name for path in run.parent.iterdir()) == ["mine", "mlflow-artifacts", "mlflow.db"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [run.parent.name]


def _cut_off(_) -> None:
    raise RuntimeError("cut off")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "what? 100%25 #1",
        'it\'s "so" & so;',
        "ünï cödé 日本",
        "a?b=c&d=e",
        "me:secret@host",
        "back\\slash",
        "%",
        "~",
        "100%",
    ],
)
def test_a_folder_of_any_name_has_its_store_in_it(tmp_path, empty_store, name):
    root = tmp_path / name
    run = make_run(root / "mine")
    (root / "mlflow.db").write_bytes(empty_store.read_bytes())
    receipt = send(run)
    assert receipt.uri == default_uri(str(root))
    assert send(run, receipt.uri).new is False
    (logged,) = logged_runs(receipt.uri)
    assert logged.record == FinishedStudy.open(Storage(str(run))).record
    assert attach_report(str(run), {"report.html": b"<p>"}) == (receipt,)
    assert sorted(path.name for path in tmp_path.iterdir()) == [root.name]
    assert sorted(path.name for path in root.iterdir()) == ["mine", "mlflow-artifacts", "mlflow.db"]


@given(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1))
def test_a_store_lies_where_its_uri_says(name):
    uri = default_uri(f"/somewhere/{name}")
    file = Path(f"/somewhere/{name}/mlflow.db")
    assert sqlite_path(uri) == file
    assert sqlalchemy.make_url(uri).database == str(file)
    assert absolute_uri(uri) == uri == without_password(uri)
    assert absolute_uri(uri.replace("sqlite:", "sqlite+pysqlite:")) == uri


@pytest.mark.parametrize(
    "uri", ["sqlite:///{place}/a?b/mlflow.db", "sqlite:///{place}/a?b=1&c/mlflow.db", "sqlite:///{place}/who?"]
)
def test_a_question_mark_that_is_not_escaped_is_refused(store, uri):
    run = make_run(store.root / "asked")
    place = store.root / "questions"
    with pytest.raises(TrackingError, match=r"write % and \? in a file's name as %25 and %3F"):
        send(run, uri.format(place=place))
    assert not place.exists()


def test_a_reader_makes_no_store(store, tmp_path):
    run = make_run(store.root / "read")
    uri = f"sqlite:///{tmp_path}/typo/mlflow.db"
    with pytest.raises(TrackingError, match=r"typo/mlflow\.db: could not read MLflow's runs \(no such file\)"):
        logged_runs(uri)
    send(run)
    (run / "mlflow.json").write_text((run / "mlflow.json").read_text().replace(f"{store.root}/mlflow.db", uri[10:]))
    with pytest.raises(TrackingError, match=r"typo/mlflow\.db: could not attach the report \(no such file\)"):
        attach_report(str(run), {"report.html": b"<p>"})
    with pytest.raises(FileNotFoundError):
        client_of(uri)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_store_is_made_absolute_and_keeps_what_it_asks_of_sqlite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///~nobody-here/a.db") == f"sqlite:///{tmp_path}/~nobody-here/a.db"
    assert absolute_uri("sqlite:///a%3F.db?timeout=30&a=b") == f"sqlite:///{tmp_path}/a%3F.db?timeout=30&a=b"


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


@pytest.mark.slow
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


@pytest.mark.process
def test_importing_the_package_does_not_import_mlflow():
    code = "import sys, zar_ray.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
