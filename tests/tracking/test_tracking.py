"""Runs arrive in a real MLflow store whole, once and quietly; without a store the caller learns so in seconds."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from finished_runs import OPTIONS, make_case, make_record, make_run, make_summary_of, write_record
from logged_store import send
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from zar_ray.errors import RunError, TrackingError
from zar_ray.options.base import without_password
from zar_ray.results.folder import CELLS
from zar_ray.results.record import ProtocolAverage
from zar_ray.results.study_record import FinishedStudy
from zar_ray.storage import Storage
from zar_ray.tracking import TrainingTracker, logged_runs, put_below, runs_page


@pytest.fixture(scope="module", autouse=True)
def first(store) -> None:
    """The run that most tests look at."""
    send(make_run(store.root / "first"))


@pytest.mark.slow
def test_a_run_arrives_as_a_parent_with_a_child_a_method(store):
    parent, zar, zero_shot = store.runs("first")
    names = ["zero_shot + zar · demo-tiny · demo (first)", "zar · demo-tiny · demo", "zero_shot · demo-tiny · demo"]
    assert [run.info.run_name for run in (parent, zar, zero_shot)] == names
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
        assert run.data.tags["mlflow.note.content"] == "| first |"
    assert zar.data.tags["case"] == "zar-all"
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


@pytest.mark.parametrize(("said", "fails"), [("(sqlite3.IntegrityError) UNIQUE", False), ("no", True)])
def test_the_first_of_its_data_may_be_two_at_once(store, monkeypatch, said, fails):
    tell, refused = MlflowClient.log_inputs, []

    def refuse(client, run_id, **inputs):
        if not refused:
            refused.append(run_id)
            raise MlflowException(said)
        tell(client, run_id, **inputs)

    monkeypatch.setattr(MlflowClient, "log_inputs", refuse)
    run = make_run(store.root / f"at once, {fails}")
    with pytest.raises(TrackingError, match="no") if fails else contextlib.nullcontext():
        send(run)
    assert fails or all(one.inputs.dataset_inputs for one in store.runs(run.name))


def test_a_new_experiment_says_what_its_runs_are(store):
    tags = store.client.get_experiment_by_name("zar-ray").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    shown = store.runs("first")[1].data.metrics.keys()
    named = set(re.findall(r"`(\w+)`", tags["mlflow.note.content"]))
    assert named
    assert named <= shown
    assert tags["mlflow.experiment.primaryMetric.name"] in shown


def test_a_folder_without_an_identity_is_sent_without_its_data_set(store):
    run = make_run(store.root / "anonymous")
    (run / "identity.json").unlink()
    send(run)
    assert store.runs("anonymous")[0].inputs.dataset_inputs == []
    broken = make_run(store.root / "broken")
    (broken / "identity.json").write_text("[]")
    with pytest.raises(RunError, match=r"identity\.json: is not the identity of a run"):
        send(broken)


def test_the_searches_of_the_documentation_find_what_it_says(store, repository):
    text = (repository / "docs" / "mlflow.md").read_text()
    conditions = re.findall(r"^    (tags\..*?)  +\w", text, flags=re.MULTILINE)
    experiment = store.client.get_experiment_by_name("zar-ray").experiment_id
    first = {run.info.run_id: run.data.tags.get("method") for run in store.runs("first")}
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
        # `setting` and `seed` are of studies that vary them.
        assert set(re.findall(r"`(\w+)`", names)) - {"setting", "seed", "dataset"} <= known.keys()
    assert len(rows) == 4


def test_files_arrive_beside_the_store_under_names_that_compare(store):
    parent, zar, zero_shot = store.runs("first")

    def names(run) -> list[str]:
        return sorted(file.path for file in store.client.list_artifacts(run.info.run_id))

    assert names(parent) == ["config.yaml", "run.json"]
    assert names(zar) == ["confusion.png", "per_class.csv"]
    assert names(zero_shot) == []
    assert parent.info.artifact_uri.startswith((store.root / "mlflow-artifacts").as_uri())


def protocol_summary(folder: Path, **fields):
    """What a run of two splits and two methods found."""
    cases = [
        make_case(method, top1, split=split)
        for split, top1s in (("base", (0.4, 0.6)), ("novel", (0.4, 0.3)))
        for method, top1 in zip(("zero_shot", "zar"), top1s, strict=True)
    ]
    averages = (
        ProtocolAverage("zar", "top1", "mean", 0.45, 0.15, ("base", "novel")),
        ProtocolAverage("zar", "top1_before", "mean", 0.4, 0.0, ("base", "novel")),
        ProtocolAverage("zar", "top1", "harmonic", 0.4, None, ("base", "novel")),
    )
    return make_summary_of(cases, folder, averages=averages, **fields)


def test_several_splits_arrive_as_a_child_a_split_and_method(store):
    run = write_record(store.root / "protocol", make_record(protocol_summary(store.root / "protocol"), [OPTIONS]))
    for name in ("per_class.csv", "confusion.png"):
        (run / f"novel_zar_{name}").write_text("of novel")
    send(run)
    parent, *children = store.runs("protocol")
    names = ["base/zar", "novel/zar", "base/zero_shot", "novel/zero_shot"]
    called = [f"{method} · demo-tiny · demo · {split}" for split, method in (name.split("/") for name in names)]
    assert [run.info.run_name for run in children] == called
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

    files = [file.path for file in store.client.list_artifacts(by_name["novel/zar"].info.run_id)]
    assert sorted(files) == ["confusion.png", "per_class.csv"]
    assert store.client.list_artifacts(by_name["base/zar"].info.run_id) == []


@pytest.fixture(scope="module")
def grid(store) -> list:
    """A study of two models, two settings of a sweep and two seeds, with two methods: its run, and those below it."""
    folder, summaries, configs = store.root / "grid", {}, []
    for model, confidence, seed in product(("clip", "vifi"), (0.1, 0.5), (0, 1)):
        coordinates = (("model", model), ("setting", f"confidence {confidence}"), ("seed", str(seed)))
        cases = [make_case("zero_shot", 0.4), make_case("zar", 0.5 + seed / 10)]
        summaries[coordinates] = make_summary_of(
            cases, folder, model=f"{model}-b16", model_fingerprint=f"{model}-weights", random_weights=model == "clip"
        )
        configs.append({"zar": {"confidence": confidence}, "seed": seed, "model": f"{model}.pt"})
    write_record(folder, make_record(summaries, configs), {"model": "clip.pt"})
    (folder / CELLS).write_text("table\n")
    send(folder)
    return store.runs("grid")


def test_a_larger_study_arrives_as_a_child_a_cell_and_method(grid, store):
    by_name = {run.info.run_name: run for run in grid[1:]}
    assert len(by_name) == len(grid) - 1 == 16
    one = by_name["zar · vifi · demo · confidence 0.5, seed 1"]
    labels = {"model": "vifi", "setting": "confidence 0.5", "seed": "1", "method": "zar"}
    assert one.data.params == {**labels, "zar.confidence": "0.5"}
    expected = {**labels, "sweep": "study", "case": "zar-all", "model_fingerprint": "vifi-weights"}
    assert expected.items() <= one.data.tags.items()
    assert one.data.tags["random_weights"] == "false"
    # The row's mean over both seeds is 0.55.
    assert one.data.metrics["accuracy"] == one.data.metrics["top1"] == pytest.approx(0.6)
    assert one.data.metrics.keys() - {"accuracy"} == store.runs("first")[1].data.metrics.keys()

    # The same names everywhere, so that MLflow's comparison and curves line up.
    for name, run in by_name.items():
        like = by_name[f"{name.partition(' ')[0]} · vifi · demo · confidence 0.5, seed 1"]
        assert run.data.metrics.keys() == like.data.metrics.keys()
        assert run.data.params.keys() == like.data.params.keys()
        assert run.info.status == "FINISHED"


def test_a_larger_study_s_own_run_holds_the_rows_of_its_tables(grid, store):
    metrics, tags = grid[0].data.metrics, grid[0].data.tags
    # Seeds are replicates: a row is their mean.
    assert metrics["study/vifi_ confidence 0.5/zar/accuracy"] == pytest.approx(0.55)
    assert metrics["study/clip_ confidence 0.1/zero_shot/images"] == 235
    assert metrics["videos"] == 52
    expected = {
        "axes": "model, setting, seed",
        "model": "clip-b16, vifi-b16",
        "random_weights": "true",
        "mlflow.source.name": "zar ablate",
    }
    assert expected.items() <= tags.items()
    files = [file.path for file in store.client.list_artifacts(grid[0].info.run_id)]
    assert sorted(files) == sorted(["config.yaml", "run.json", CELLS])


def test_a_cell_of_several_splits_has_them_and_their_averages(store):
    summaries = {
        (("model", name),): protocol_summary(store.root / "models", model=name, splits=()) for name in ("a/b", "c")
    }
    send(write_record(store.root / "models", make_record(summaries, [OPTIONS])))
    parent, *children = store.runs("models")
    names = [f"{method} · {model} · demo" for method in ("zar", "zero_shot") for model in ("a/b", "c")]
    assert [run.info.run_name for run in children] == names
    for run in children[:2]:
        metrics = run.data.metrics
        assert (metrics["base/top1"], metrics["novel/top1"]) == (0.6, 0.3)
        assert (metrics["top1_mean"], metrics["top1_std"], metrics["top1_harmonic"]) == (0.45, 0.15, 0.4)
        assert run.data.tags["case"] == "zar-base, zar-novel"
    assert children[0].data.metrics["images"] == 235
    assert "study/a_b/zar/accuracy" in parent.data.metrics
    assert "top1_mean" not in children[2].data.metrics


def test_a_label_of_any_kind_is_a_metric_s_name(store):
    long = "rates 1, 1/2, 1/4 " * 20
    coordinates = [(("setting", label),) for label in (long, f"{long}!", "..", "a//b", "å=1", "ø=1", ".")]
    summaries = {one: make_summary_of([make_case("zar", 0.5)], store.root / "labels") for one in coordinates}
    send(write_record(store.root / "labels", make_record(summaries, [OPTIONS])))
    parent, *children = store.runs("labels")
    assert len(children) == len(coordinates)
    assert len([name for name in parent.data.metrics if name.endswith("/accuracy")]) == len(coordinates)


def test_the_trainings_of_a_study_move_below_it_and_survive_its_replacement(store):
    folder = store.root / "few shots"
    make_run(folder)
    tracker = TrainingTracker.start(Storage(str(store.root / "training")), None, {}, {"dataset": "demo"})
    tracker.finish({})
    trainings = {tracker.run_id: {"seed": "1"}}
    for top1 in (0.5, 0.6):
        make_run(folder, top1)
        sent = send(folder)
        put_below(sent.run_id, trainings, store.uri)
        tags = store.client.get_run(tracker.run_id).data.tags
        assert (tags["mlflow.parentRunId"], tags["seed"]) == (sent.run_id, "1")
        assert store.client.get_run(tracker.run_id).info.lifecycle_stage == "active"
    assert send(folder).new is False


def test_logged_runs_are_read_back_as_they_were_sent(store, tmp_path, empty_store):
    found = {run.record.whole.name: run for run in logged_runs(store.uri)}
    sent = FinishedStudy.open(Storage(str(store.root / "first")))
    for what in ("record", "config", "provenance"):
        assert getattr(found["first"], what) == getattr(sent, what)
    assert found["first"].place.startswith(f"{store.uri} run ")
    assert found["first"].finished.year >= 2026
    (alone,) = logged_runs(store.uri, found["first"].place.rpartition(" ")[2])
    assert vars(alone) == vars(found["first"])
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match='has no experiment "zar-ray"; check --mlflow-uri'):
        logged_runs(f"sqlite:///{tmp_path}/mlflow.db")


def test_no_password_is_logged(store):
    parent = store.runs("first")[0]
    assert parent.data.params["mlflow_uri"] == "http://me:***@host:5000"
    assert (
        without_password("postgresql://u:p%40x@h/db and http://h:80/a@b")
        == "postgresql://u:***@h/db and http://h:80/a@b"
    )


def test_a_second_send_finds_the_run_there(store):
    run = make_run(store.root / "twice")
    first, second = send(run), send(f"{run}/")
    assert (first.new, second.new) == (True, False)
    assert first == second
    assert len(store.runs("twice")) == 3
    # Another session that had nothing to do changes the speed, not what was measured.
    make_run(run, seconds=1.0)
    assert send(run).new is False


def test_results_that_went_on_replace_the_outdated_ones(store):
    run = make_run(store.root / "resumed")
    before = send(run)
    make_run(run, top1=0.6)
    after = send(run)
    assert after.new
    assert after.run_id != before.run_id
    parent, zar, _ = store.runs("resumed")
    assert (parent.info.run_id, zar.data.metrics["top1"]) == (after.run_id, 0.6)
    assert len(store.runs("resumed")) == 3
    assert store.client.get_run(before.run_id).info.lifecycle_stage == "deleted"


def test_a_copy_is_a_run_of_its_own_and_leaves_the_original_s_alone(store):
    run = make_run(store.root / "original")
    before = send(run)
    copy = store.root / "copied"
    shutil.copytree(run, copy)
    make_run(copy, top1=0.7)
    after = send(copy)
    assert after.new
    assert after.run_id != before.run_id
    assert send(run) == before
    assert not send(run).new
    assert send(copy).run_id == after.run_id
    # A link to a folder is the folder.
    (store.root / "link").symlink_to(run)
    assert send(store.root / "link").run_id == before.run_id


def test_a_long_name_is_cut_to_what_servers_take(store):
    folder = store.root / "long"
    summary = make_summary_of([make_case("zar", 0.5)], folder, model="ViT-" + 30 * "huge-")
    sent = send(write_record(folder, make_record(summary, [OPTIONS])))
    name = store.client.get_run(sent.run_id).info.run_name
    assert name.startswith("zar · ViT-huge-huge-")
    assert name.endswith("(long)")

    summary = replace(summary, model=f"{summary.model}{20 * 'huge-'}")
    sent = send(write_record(folder, make_record(summary, [OPTIONS])))
    assert len(store.client.get_run(sent.run_id).info.run_name) == 250


def test_the_page_opens_on_the_accuracies(store, tmp_path, empty_store):
    experiment = store.client.get_experiment_by_name("zar-ray")
    address = runs_page(store.uri, "http://127.0.0.1:5001")
    place, _, query = address.partition("?")
    assert place == f"http://127.0.0.1:5001/#/experiments/{experiment.experiment_id}/runs"
    words = dict(parse_qsl(query))
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{words['viewStateShareKey']}"])
    state = json.loads(view["state"])
    runs = store.client.search_runs([experiment.experiment_id], state["searchFilter"], max_results=500)
    names = {run.info.run_name for run in runs}
    assert {run.info.run_name for run in store.runs("first")[1:]} <= names
    assert store.runs("first")[0].info.run_name not in names
    shown = {re.fullmatch(r"metrics\.`(\w+)`", column)[1] for column in state["selectedColumns"]}
    assert shown - {"map"} <= store.runs("first")[1].data.metrics.keys()

    store.client.delete_experiment_tag(experiment.experiment_id, f"mlflow.sharedViewState.{words['viewStateShareKey']}")
    assert "viewStateShareKey" not in runs_page(store.uri, "http://localhost")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    assert runs_page(f"sqlite:///{tmp_path}/mlflow.db", "http://host").startswith("http://host/#/experiments?")
    with pytest.raises(TrackingError, match=r"none\.db: could not find the experiment .no such file"):
        runs_page(f"sqlite:///{tmp_path}/none.db", "http://host")


def test_a_run_deleted_in_mlflow_can_be_sent_again(store):
    run = make_run(store.root / "deleted")
    store.client.delete_run(send(run).run_id)
    assert send(run).new


def test_a_lost_receipt_does_not_send_twice(store):
    run = make_run(store.root / "lost")
    sent = send(run)
    (run / "mlflow.json").unlink()
    found = send(run)
    assert (found.new, found.run_id) == (False, sent.run_id)
    assert json.loads((run / "mlflow.json").read_text())[0]["run_id"] == sent.run_id


def test_a_send_that_was_cut_off_is_done_anew(store):
    run = make_run(store.root / "cut")
    artifacts = store.root / "mlflow-artifacts"
    kept = artifacts.rename(store.root / "kept")
    artifacts.write_text("a file where the folder should be")
    with pytest.raises(TrackingError, match="could not log the run to MLflow"):
        send(run)
    artifacts.unlink()
    kept.rename(artifacts)
    assert [one.info.status for one in store.runs("cut")] == ["RUNNING"]
    assert not (run / "mlflow.json").exists()

    assert send(run).new
    assert [one.info.status for one in store.runs("cut")] == ["FINISHED"] * 3


def test_each_store_has_its_own_receipt(store, tmp_path, monkeypatch, empty_store):
    run = make_run(store.root / "elsewhere")
    send(run)
    shutil.copy(empty_store, tmp_path / "other.db")
    monkeypatch.chdir(tmp_path)
    receipt = send(run, "sqlite:///other.db")
    assert receipt.uri == f"sqlite:///{tmp_path}/other.db"
    assert receipt.new
    assert len(json.loads((run / "mlflow.json").read_text())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow-artifacts", "other.db"]
    assert send(run).new is False
    assert send(run, receipt.uri).new is False


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"holds no run\.json"):
        send(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json: is not JSON"):
        send(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunError, match="is not the record of a run"):
        send(tmp_path)
    (tmp_path / "run.json").write_text('{"config": {}}')
    with pytest.raises(RunError, match="was made by an earlier version; run it again"):
        send(tmp_path)
    (tmp_path / "run.json").write_text('{"config": {}, "study": {}}')
    with pytest.raises(RunError, match="is not the record of a run"):
        send(tmp_path)
    run = make_run(tmp_path / "run")
    (run / "mlflow.json").write_text("{}}")
    with pytest.raises(RunError, match=r"mlflow\.json: cannot be read"):
        send(run)
