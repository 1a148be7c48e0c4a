"""A study whose axes multiply, killed in the middle: every cell is that of its own run, in one job over one table."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import deadly_stages
import pyarrow.compute as pc
import pytest
from rich.console import Console

from zar_ray.data import datasets
from zar_ray.results.folder import CELLS, RunFolder
from zar_ray.results.study_record import StudyRecord
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig
from zar_ray.study.run import run_study

pytestmark = pytest.mark.slow

METHODS = ("zero_shot", "zar", "tpt")
SEEDS = (0, 1)
CONFIDENCES = (0.8, 0.5, 0.2)
VIEWS = {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1}
VIDEOS = 8

# What a driver does that a test kills: the same study in a process of its own, with stages that take notes.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[2])
import deadly_stages, ray
from rich.console import Console
from zar_ray.evaluation import pipeline
from zar_ray.study.options import EvalConfig
from zar_ray.study.run import run_study
ray.cloudpickle.register_pickle_by_value(deadly_stages)
pipeline.DecodeStage, pipeline.AdaptStage = deadly_stages.DeadlyDecode, deadly_stages.DeadlyAdapt
run_study(EvalConfig.model_validate(json.loads(sys.argv[1])), Console())
"""


@pytest.fixture
def study(make_video, tiny_checkpoint, larger_checkpoint, tmp_path) -> dict:
    """The options of two models x three methods x two seeds x a sweep of three settings."""
    for number in range(VIDEOS):
        # Each decoding of a file of this name is noted, in whatever process it is.
        name = f"counted-slow-model-{number:02}.mp4"
        make_video(tmp_path / "videos" / ("left", "right")[number % 2] / name, frames=10 + number, seed=number)
    sweep = tmp_path / "confidence.yaml"
    sweep.write_text(f"title: Confidence\ngrid: {{zar.confidence: {list(CONFIDENCES)}}}\n")
    return {
        "dataset": str(tmp_path / "videos"),
        "models": [str(tiny_checkpoint), str(larger_checkpoint)],
        "method": METHODS,
        "seeds": SEEDS,
        "sweep": [str(sweep)],
        "views": VIEWS,
        "tpt": {"views": 5},
        "batch_size": 2,
        "output": str(tmp_path / "runs"),
        "name": "study",
        "mlflow_uri": f"sqlite:///{tmp_path}/mlflow.db",
    }


def killed_in_the_middle(study: dict, parts: Path, log: Path, processes_below) -> None:
    """Runs the study in a process of its own, kills that amid it, and waits for all that it had started."""
    command = [sys.executable, "-c", DRIVER, json.dumps(study), str(Path(deadly_stages.__file__).parent)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # For how long Ray's agents try to tell its server, which is gone as well, that their node is.
    environment["RAY_gcs_server_request_timeout_seconds"] = "10"
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            limit = time.monotonic() + 240
            while len(list(parts.glob("*.parquet"))) < 2:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < limit, log.read_text()
                time.sleep(0.01)
            started = processes_below(process.pid)
        finally:
            process.kill()
            process.wait()
    limit = time.monotonic() + 180  # Ray's agents take a minute, more on a busy machine
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < limit:
        time.sleep(0.2)
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()], "a killed driver left processes behind"


def test_axes_multiply_into_one_job(ray_cluster, evaluate, study, tmp_path, same_results, monkeypatch, processes_below):
    from mlflow import MlflowClient

    folder = RunFolder(Storage(f"{study['output']}/study"))
    parts = Path(folder.storage.path("parts"))
    killed_in_the_middle({**study, "address": "local"}, parts, tmp_path / "log", processes_below)
    finished = {row["video_id"] for row in folder.results().select(["video_id"]).to_pylist()}
    assert 0 < len(finished) < VIDEOS
    before = Counter((tmp_path / "decoded.txt").read_text().split())

    probed = []
    probe = datasets.probe_listing
    monkeypatch.setattr(
        datasets,
        "probe_listing",
        lambda listing, *args, **kwargs: probed.append(len(listing.videos)) or probe(listing, *args, **kwargs),
    )
    said = io.StringIO()
    record = run_study(EvalConfig.model_validate(study), Console(file=said, width=160))
    assert probed == [VIDEOS], "each file is opened once for probing, whatever the number of cells"
    assert record.whole.resumed == len(finished)
    after = Counter((tmp_path / "decoded.txt").read_text().split()) - before
    lacked = {
        str(path)
        for path in Path(study["dataset"]).glob("*/*.mp4")
        if path.parent.name + "/" + path.name not in finished
    }
    assert after == Counter(dict.fromkeys(lacked, 1)), "each video is decoded once for all cells"

    # 2 models x 3 confidences x 2 seeds; of these zero_shot and tpt know no confidence, and zero_shot no seed of views
    assert len(record.cells) == 2 * 3 * 2
    assert record.axes == ("model", "setting", "seed")
    table = folder.results()
    assert len(table) == VIDEOS * len({case.case_id for cell in record.cells for case in cell.summary.cases})
    assert set(table["model"].to_pylist()) == {"tiny", "larger"}

    # Every cell of one model at one seed, and the most different ones of the other, run by themselves.
    for cell in (record.cells[1], record.cells[3], record.cells[10]):
        alone = evaluate(
            study["dataset"],
            here=True,
            name=cell.label.replace(" ", "-").replace(",", ""),
            **{
                key: value
                for key, value in cell.config.items()
                if key in ("checkpoint", "method", "views", "zar", "tpt")
            },
            seed=cell.summary.seed,
        )
        ids = alone.table["case_id"].unique()
        same_results(table.filter(pc.field("case_id").isin(ids)), alone.table, same_work=False)
        for ours, theirs in zip(cell.summary.cases, alone.summary.cases, strict=True):
            assert (ours.case_id, ours.failures_wrong) == (theirs.case_id, theirs.failures_wrong)

    models, sweep = record.tables
    assert [(row.labels["model"], row.method) for row in models.rows] == [
        (model, method) for method in METHODS for model in ("tiny", "larger")
    ]
    assert len(sweep.rows) == 2 * 3 * 3
    assert {place for row in sweep.rows for place in row.cells} == set(range(12))
    assert all(len(row.cells) == len(SEEDS) for row in (*models.rows, *sweep.rows))
    for row in sweep.rows:
        score = row.scores["all"]
        assert score.value == pytest.approx(sum(score.replicates) / 2)
        assert (row.comparison is None) == (row.labels["setting"] == "confidence 0.8")
        for word in (row.labels["model"], row.method, row.labels["setting"]):
            assert word in said.getvalue()
    assert folder.storage.read(CELLS).decode().count("\n") == 1 + len(models.rows) + len(sweep.rows)
    content = json.loads(folder.storage.read("run.json"))
    assert StudyRecord.from_json(content["study"]) == record

    client = MlflowClient(study["mlflow_uri"])
    experiment = client.get_experiment_by_name("zar-ray")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.run_id == record.whole.mlflow.run_id
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 12 * len(METHODS)
    told = {(run.data.params["model"], run.data.params["setting"], run.data.params["seed"]) for run in children}
    assert len(told) == 12
    assert all("top1" in run.data.metrics for run in children)

    decoded = (tmp_path / "decoded.txt").read_text()
    again = run_study(EvalConfig.model_validate({**study, "resume": True}), Console(file=io.StringIO()))
    assert again.whole.resumed == VIDEOS
    assert again.tables == record.tables
    assert (tmp_path / "decoded.txt").read_text() == decoded
