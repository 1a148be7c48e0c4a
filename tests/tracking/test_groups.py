"""Runs that belong together are shown below one run."""

from __future__ import annotations

import shutil

from zar_ray.storage import Storage
from zar_ray.tracking import RunGroup, TrainingTracker, log_group
from zar_ray.tracking.store import client_of


def test_a_group_puts_its_children_below_it_and_is_there_once(tmp_path, empty_store):
    root, runs = tmp_path, []
    shutil.copy(empty_store, root / "mlflow.db")
    client = client_of(f"sqlite:///{root}/mlflow.db")
    for seed in (1, 2):
        tracker = TrainingTracker.start(Storage(str(root / f"seed{seed}")), None, {}, {})
        runs.append(tracker.finish({}).run_id)
    place = Storage(str(root / "experiment"))
    place.write("experiment.json", b"{}")
    uri = f"sqlite:///{root}/mlflow.db"

    def group(top1: float) -> RunGroup:
        return RunGroup(
            name="demo 16 shots",
            kind="experiment",
            config={"dataset": "demo", "augment": {"flip": 0.5}},
            tags={"dataset": "demo"},
            children={run: {"seed": str(seed)} for seed, run in enumerate(runs, 1)},
            numbers={"zar/top1_mean": top1},
            note="| a table |",
            curves={"zar/top1": {0: 0.25, 500: 0.5}},
            files=("experiment.json",),
        )

    first, same = log_group(group(0.5), place, uri), log_group(group(0.5), place, uri)
    assert (first.new, same.new, same.run_id) == (True, False, first.run_id)
    later = log_group(group(0.6), place, uri)
    assert client.get_run(first.run_id).info.lifecycle_stage == "deleted"
    run = client.get_run(later.run_id)
    assert (run.data.metrics["zar/top1_mean"], run.data.params["augment.flip"]) == (0.6, "0.5")
    assert sorted((point.step, point.value) for point in client.get_metric_history(later.run_id, "zar/top1")) == [
        (0, 0.25),
        (500, 0.5),
    ]
    assert [file.path for file in client.list_artifacts(later.run_id)] == ["experiment.json"]
    for seed, child in enumerate(runs, 1):
        run = client.get_run(child)
        assert run.info.lifecycle_stage == "active"
        assert (run.data.tags["mlflow.parentRunId"], run.data.tags["seed"]) == (later.run_id, str(seed))
