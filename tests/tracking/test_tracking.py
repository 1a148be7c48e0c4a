"""Runs arrive in a real MLflow store whole, once and quietly; without a store the caller learns so in seconds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from finished_run import make_case, make_run

import zar_ray
from zar_ray.errors import RunError, TrackingError
from zar_ray.options.base import without_password
from zar_ray.results.record import ProtocolAverage, RunSummary, SplitSummary
from zar_ray.tracking import default_uri, log_run_folder, logged_runs


class Store:
    """A folder of runs whose MLflow store was made by the first send, in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.cwd = root / "runs", root / "working folder"
        self.cwd.mkdir(parents=True)
        make_run(self.root / "first")
        code = f"from zar_ray.tracking import log_run_folder; log_run_folder({str(self.root / 'first')!r})"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment["PYTHONPATH"] = str(Path(zar_ray.__file__).parent.parent)
        self.sent = subprocess.run(
            [sys.executable, "-c", code], cwd=self.cwd, env=environment, capture_output=True, text=True, timeout=120
        )

        self.left_by_send = sorted(path.name for path in self.root.iterdir())

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.root}/mlflow.db")

    def runs(self, name: str) -> list:
        """Active parent runs of this name, and after each its children by name."""
        experiment = self.client.get_experiment_by_name("zar-ray")
        runs = self.client.search_runs([experiment.experiment_id], max_results=500)
        found = []
        for parent in (run for run in runs if run.info.run_name == name):
            children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
            found += [parent, *sorted(children, key=lambda run: run.info.run_name)]
        return found


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("mlflow"))


def test_the_first_send_is_silent_and_leaves_the_working_folder_alone(store):
    assert (store.sent.returncode, store.sent.stdout, store.sent.stderr) == (0, "", "")
    assert list(store.cwd.iterdir()) == []
    assert store.left_by_send == ["first", "mlflow-artifacts", "mlflow.db"]


def test_a_run_arrives_as_a_parent_with_a_child_a_method(store):
    parent, zar, zero_shot = store.runs("first")
    assert [run.info.run_name for run in (parent, zar, zero_shot)] == ["first", "zar", "zero_shot"]
    assert {run.info.status for run in (parent, zar, zero_shot)} == {"FINISHED"}

    assert (zar.data.metrics["top1"], zar.data.metrics["top1_low"]) == (0.5, 0.4)
    assert zar.data.metrics["top1_change"] == pytest.approx(0.1)
    assert zero_shot.data.metrics["top1"] == 0.4
    assert parent.data.metrics["zar/top1"] == 0.5
    assert parent.data.metrics["videos_per_second"] == pytest.approx(52 / 60)
    assert "seconds_encode_mean" not in parent.data.metrics

    assert parent.data.params["zar.lr"] == "0.005"
    assert parent.data.params["zar.betas"] == "[0.9, 0.999]"
    assert parent.data.params["split"] == "null"
    assert parent.data.params["many.option129"] == "129"
    assert len(parent.data.params["class_names"]) == 500
    assert (parent.data.params["method"], zar.data.params["method"]) == ('["zero_shot", "zar"]', "zar")

    expected = {
        "dataset": "demo",
        "split": "test",
        "model": "demo-tiny",
        "git": "f00d+changes",
        "random_weights": "false",
    }
    for run in (parent, zar, zero_shot):
        assert expected.items() <= run.data.tags.items()
        assert "| zar | before | 40.0" in run.data.tags["mlflow.note.content"]
    assert zar.data.tags["case"] == "zar-0a1b2c"
    assert (zar.data.tags["method"], zero_shot.data.tags["method"]) == ("zar", "zero_shot")
    assert parent.data.tags["mlflow.source.git.commit"] == "f00d"


def test_what_mlflow_s_own_columns_show_is_the_evaluation_s(store):
    for run in store.runs("first"):
        # The session took 60 seconds; that it was sent in a moment is of no interest.
        assert 60 <= (run.info.end_time - run.info.start_time) / 1000 < 90
        assert run.data.tags["mlflow.source.name"] == "zar eval"
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("demo", "0a1b2c3d4e5f")
        assert json.loads(used.dataset.profile) == {"videos": 52, "classes": 8}
        assert json.loads(used.dataset.source) == {"uri": f"{store.root}/first/manifest.parquet"}


def test_a_new_experiment_says_what_its_runs_are(store):
    tags = store.client.get_experiment_by_name("zar-ray").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    shown = store.runs("first")[1].data.metrics.keys()
    named = set(re.findall(r"`(\w+)`", tags["mlflow.note.content"]))
    assert named
    assert named <= shown
    assert tags["mlflow.experiment.primaryMetric.name"] in shown


def test_the_description_is_the_result_table_and_no_more_than_is_known(store):
    for run in store.runs("first"):
        note = run.data.tags["mlflow.note.content"]
        assert "| method |" in note
        assert "52 videos, 8 classes (chance 12.5 %)" in note
        assert "MLflow" not in note


def test_a_folder_without_an_identity_is_sent_without_its_data_set(store):
    run = make_run(store.root / "anonymous")
    (run / "identity.json").unlink()
    log_run_folder(str(run))
    assert store.runs("anonymous")[0].inputs.dataset_inputs == []
    broken = make_run(store.root / "broken")
    (broken / "identity.json").write_text("[]")
    with pytest.raises(RunError, match=r"identity\.json: is not the identity of a run"):
        log_run_folder(str(broken))


def test_the_searches_of_the_documentation_find_what_it_says(store, repository):
    text = (repository / "docs" / "mlflow.md").read_text()
    conditions = re.findall(r"^    (tags\..*?)  +\w", text, flags=re.MULTILINE)
    experiment = store.client.get_experiment_by_name("zar-ray").experiment_id
    first = {run.info.run_id: run.info.run_name for run in store.runs("first")}
    found = []
    for condition in conditions:
        runs = store.client.search_runs([experiment], condition, max_results=500)
        found.append({first[run.info.run_id] for run in runs if run.info.run_id in first})
    assert found == [{"zar", "zero_shot"}, {"zar"}, set()]


def test_every_column_of_the_documentation_is_logged(store, repository):
    text = (repository / "docs" / "mlflow.md").read_text()
    rows = re.findall(r"^\| (tags|metrics) \| (.*?) \|", text.partition("## Where")[0], flags=re.MULTILINE)
    data = store.runs("first")[1].data
    for kind, names in rows:
        known = data.tags if kind == "tags" else data.metrics
        # `setting` is a sweep's.
        assert set(re.findall(r"`(\w+)`", names)) - {"setting", "dataset"} <= known.keys()
    assert len(rows) == 4


def test_files_arrive_beside_the_store_under_names_that_compare(store):
    parent, zar, zero_shot = store.runs("first")

    def names(run) -> list[str]:
        return sorted(file.path for file in store.client.list_artifacts(run.info.run_id))

    assert names(parent) == ["config.yaml", "run.json"]
    assert names(zar) == ["confusion.png", "per_class.csv"]
    assert names(zero_shot) == []
    assert parent.info.artifact_uri.startswith((store.root / "mlflow-artifacts").as_uri())


def make_protocol_run(folder: Path) -> Path:
    """The folder of a run of two splits and two methods."""
    make_run(folder)
    record = json.loads((folder / "run.json").read_text())
    summary = RunSummary.from_json(record["summary"])
    cases = tuple(
        replace(make_case(method, top1), split=split)
        for split, top1s in (("base", (0.4, 0.6)), ("novel", (0.4, 0.3)))
        for method, top1 in zip(("zero_shot", "zar"), top1s, strict=True)
    )
    averages = (
        ProtocolAverage("zar", "top1", "mean", 0.45, 0.15, ("base", "novel")),
        ProtocolAverage("zar", "top1_before", "mean", 0.4, 0.0, ("base", "novel")),
        ProtocolAverage("zar", "top1", "harmonic", 0.4, None, ("base", "novel")),
    )
    splits = (SplitSummary("base", 8, 52), SplitSummary("novel", 8, 52))
    summary = replace(summary, split=None, cases=cases, splits=splits, averages=averages)
    (folder / "run.json").write_text(json.dumps({**record, "summary": summary.to_json()}))
    for name in ("per_class.csv", "confusion.png"):
        (folder / f"zar_{name}").rename(folder / f"novel_zar_{name}")
    return folder


def test_several_splits_arrive_as_a_child_a_split_and_method(store):
    log_run_folder(str(make_protocol_run(store.root / "protocol")))
    parent, *children = store.runs("protocol")
    names = ["base/zar", "base/zero_shot", "novel/zar", "novel/zero_shot"]
    assert [run.info.run_name for run in children] == names
    by_name = dict(zip(names, children, strict=True))
    for name, run in by_name.items():
        split, method = name.split("/")
        for values in (run.data.tags, run.data.params):
            assert (values["split"], values["method"]) == (split, method)
        assert parent.data.metrics[f"{name}/top1"] == run.data.metrics["top1"]
        assert parent.data.metrics[f"{name}/top1_low"] == run.data.metrics["top1_low"]
    # The same names as those of a run with one split, so that MLflow's comparison lines up.
    assert by_name["novel/zar"].data.metrics.keys() == store.runs("first")[1].data.metrics.keys()
    averages = {
        "zar/top1_mean": 0.45,
        "zar/top1_std": 0.15,
        "zar/top1_before_mean": 0.4,
        "zar/top1_before_std": 0.0,
        "zar/top1_harmonic": 0.4,
    }
    assert averages.items() <= parent.data.metrics.items()
    assert not [name for name in parent.data.metrics if name.startswith("zar/") and name not in averages]
    assert parent.data.tags["split"] == "all"
    assert "harmonic mean of base and novel" in parent.data.tags["mlflow.note.content"]

    files = [file.path for file in store.client.list_artifacts(by_name["novel/zar"].info.run_id)]
    assert sorted(files) == ["confusion.png", "per_class.csv"]
    assert store.client.list_artifacts(by_name["base/zar"].info.run_id) == []


def test_logged_runs_are_read_back_as_they_were_sent(store):
    uri = f"sqlite:///{store.root}/mlflow.db"
    found = {run.summary.name: run for run in logged_runs(uri)}
    sent = json.loads((store.root / "first" / "run.json").read_text())
    assert found["first"].summary.to_json() == sent["summary"]
    assert found["first"].config == sent["config"]
    assert found["first"].place.startswith(f"{uri} run ")
    assert found["first"].finished.year >= 2026
    with pytest.raises(TrackingError, match='has no experiment "nothing"; check --mlflow-uri'):
        logged_runs(uri, "nothing")


def test_one_split_arrives_as_ever(store):
    run = make_run(store.root / "single")
    record = json.loads((run / "run.json").read_text())
    record["summary"]["splits"] = [{"name": "test", "classes": 8, "videos": 52, "notes": []}]
    (run / "run.json").write_text(json.dumps(record))
    log_run_folder(str(run))
    for one, first in zip(store.runs("single"), store.runs("first"), strict=True):
        assert one.info.run_name.replace("single", "first") == first.info.run_name
        assert one.data.metrics == first.data.metrics
        assert one.data.params == first.data.params


def test_no_password_is_logged(store):
    parent = store.runs("first")[0]
    assert parent.data.params["mlflow_uri"] == "http://me:***@host:5000"
    assert (
        without_password("postgresql://u:p%40x@h/db and http://h:80/a@b")
        == "postgresql://u:***@h/db and http://h:80/a@b"
    )


def test_a_second_send_finds_the_run_there(store):
    run = make_run(store.root / "twice")
    first, second = log_run_folder(str(run)), log_run_folder(f"{run}/")
    assert (first.new, second.new) == (True, False)
    assert first == second
    assert len(store.runs("twice")) == 3
    # Another session that had nothing to do changes the speed, not what was measured.
    make_run(run, seconds=1.0)
    assert log_run_folder(str(run)).new is False


def test_results_that_went_on_replace_the_outdated_ones(store):
    run = make_run(store.root / "resumed")
    before = log_run_folder(str(run))
    make_run(run, top1=0.6)
    after = log_run_folder(str(run))
    assert after.new
    assert after.run_id != before.run_id
    parent, zar, _ = store.runs("resumed")
    assert (parent.info.run_id, zar.data.metrics["top1"]) == (after.run_id, 0.6)
    assert len(store.runs("resumed")) == 3
    assert store.client.get_run(before.run_id).info.lifecycle_stage == "deleted"


def test_a_run_deleted_in_mlflow_can_be_sent_again(store):
    run = make_run(store.root / "deleted")
    store.client.delete_run(log_run_folder(str(run)).run_id)
    assert log_run_folder(str(run)).new


def test_a_lost_receipt_does_not_send_twice(store):
    run = make_run(store.root / "lost")
    sent = log_run_folder(str(run))
    (run / "mlflow.json").unlink()
    found = log_run_folder(str(run))
    assert (found.new, found.run_id) == (False, sent.run_id)
    assert json.loads((run / "mlflow.json").read_text())[0]["run_id"] == sent.run_id


def test_a_send_that_was_cut_off_is_done_anew(store):
    run = make_run(store.root / "cut")
    artifacts = store.root / "mlflow-artifacts"
    kept = artifacts.rename(store.root / "kept")
    artifacts.write_text("a file where the folder should be")
    with pytest.raises(TrackingError, match="could not log the run to MLflow"):
        log_run_folder(str(run))
    artifacts.unlink()
    kept.rename(artifacts)
    assert [one.info.status for one in store.runs("cut")] == ["RUNNING"]
    assert not (run / "mlflow.json").exists()

    assert log_run_folder(str(run)).new
    assert [one.info.status for one in store.runs("cut")] == ["FINISHED"] * 3


def test_each_store_has_its_own_receipt(store, tmp_path, monkeypatch):
    run = make_run(store.root / "elsewhere")
    log_run_folder(str(run))
    shutil.copy(store.root / "mlflow.db", tmp_path / "other.db")
    monkeypatch.chdir(tmp_path)
    receipt = log_run_folder(str(run), "sqlite:///other.db", experiment="another")
    assert receipt.uri == f"sqlite:///{tmp_path}/other.db"
    assert receipt.new
    assert len(json.loads((run / "mlflow.json").read_text())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow-artifacts", "other.db"]
    assert log_run_folder(str(run)).new is False
    assert log_run_folder(str(run), receipt.uri, experiment="another").new is False


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
        log_run_folder(str(run), f"http://127.0.0.1:{port}/")
    assert time.monotonic() - started < 15
    message = str(caught.value)
    assert message.startswith(f"http://127.0.0.1:{port}: could not log the run to MLflow (no answer from the server")
    assert f"zar report mlflow '{run}' --uri http://127.0.0.1:{port}" in message
    assert "\n" not in message
    assert dict(os.environ) == environment
    assert not (run / "mlflow.json").exists()
    assert caplog.records == []
    # Nothing stands in the way of sending it later.
    assert log_run_folder(str(run)).new


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
        log_run_folder(str(run), uri.format(run=run))
    assert time.monotonic() - started < 10
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_output_behind_a_uri_needs_a_server():
    with pytest.raises(TrackingError, match="--mlflow-uri"):
        default_uri("s3://bucket/runs")


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"holds no run\.json"):
        log_run_folder(str(tmp_path))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json: is not JSON"):
        log_run_folder(str(tmp_path))
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunError, match="is not the record of a run"):
        log_run_folder(str(tmp_path))
    (tmp_path / "run.json").write_text('{"config": {}}')
    with pytest.raises(RunError, match="is not the summary of a run"):
        log_run_folder(str(tmp_path))
    run = make_run(tmp_path / "run")
    (run / "mlflow.json").write_text("{}}")
    with pytest.raises(RunError, match=r"mlflow\.json: cannot be read"):
        log_run_folder(str(run))


def test_importing_the_module_does_not_import_mlflow():
    code = "import sys, zar_ray.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
