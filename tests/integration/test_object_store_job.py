"""Index, evaluation, a killed driver's resume, features, a sweep, reports and training, all in a bucket that fails."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from object_store import KEY, SECRET, object_store
from rich.console import Console

from zar_ray.commands.predict import predict_command
from zar_ray.commands.report import write_run_report
from zar_ray.data.index import run_index
from zar_ray.data.manifest import read_manifest
from zar_ray.data.options import IndexConfig
from zar_ray.options.base import meaning
from zar_ray.reporting.comparison import compare_runs
from zar_ray.results.study_record import find_runs
from zar_ray.study.options import EvalConfig

pytestmark = pytest.mark.slow

BUCKET = "s3://zar-bucket"


@pytest.fixture
def store(monkeypatch, video_folder, tiny_checkpoint):
    """A bucket with the twelve videos, below a prefix that a URI would write otherwise; 5 % of requests fail."""
    with object_store(monkeypatch, share=0.05, seed=23) as store:
        store.bucket("zar-bucket")
        for path in sorted(video_folder.rglob("*.mp4")):
            key = f"50% of all #1/{path.relative_to(video_folder).as_posix()}"
            store.put("zar-bucket", key, path.read_bytes())
        store.put("zar-bucket", "weights/tiny.safetensors", tiny_checkpoint.read_bytes())
        yield store


def run(*words, **more):
    command = [sys.executable, "-m", "zar_ray.commands.main", *map(str, words)]
    environment = {**os.environ, "RAY_gcs_server_request_timeout_seconds": "10"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.STDOUT, start_new_session=True, **more)


def test_everything_is_at_uris_though_requests_fail(
    store, evaluate, video_folder, tiny_checkpoint, tmp_path, same_results, processes_below, tiny_training, capsys
):
    began = time.monotonic()
    videos, runs, features = f"{BUCKET}/50% of all #1/", f"{BUCKET}/runs", f"{BUCKET}/features"
    assert run_index(IndexConfig(source=videos, workers=2), Console(file=io.StringIO())) == f"{videos}manifest.parquet"
    dataset = f"{videos}manifest.parquet"
    rows = [*read_manifest(dataset).rows()]
    assert ({row.error for row in rows}, Counter(row.class_name for row in rows)["blue bar"]) == ({None}, 4)
    assert all(row.path == f"{videos}{row.video_id}" for row in rows)
    reference = evaluate(video_folder, here=True)

    # A driver that is killed leaves its finished videos in the bucket, and another goes on.
    weights = f"{BUCKET}/weights/tiny.safetensors"
    words = ["--checkpoint", weights, "--views.frames", 4, "--views.eval-frames", 4, "--batch-size", 1]
    words += ["--output", runs, "--name", "killed", "--features", features, "--no-mlflow", "--address", "local"]
    with (tmp_path / "killed.log").open("wb") as log:
        driver = run("eval", "--dataset", dataset, *words, stdout=log)
        try:
            limit = time.monotonic() + 120
            while sum("/parts/" in key for key in store.keys("zar-bucket")) < 3 and driver.poll() is None:
                assert time.monotonic() < limit
                time.sleep(0.1)
        finally:
            left_behind = processes_below(driver.pid)
            driver.kill()
            driver.wait()
    options = {"output": runs, "features": features, "checkpoint": weights, "here": True}
    resumed = evaluate(dataset, name="killed", resume=True, **options)
    assert 0 < resumed.summary.resumed < 12, (tmp_path / "killed.log").read_text()
    same_results(resumed.table, reference.table)

    # What it stored serves a sweep, and each cell's report and comparison are read from there.
    swept = evaluate(dataset, name="swept", sweep=("steps",), **options)
    assert "12 videos read from the store" in swept.printed
    assert [run.name for run in find_runs(runs).runs if run.name == "killed"] == ["killed"]
    assert write_run_report(f"{runs}/killed", attention=False) == 0
    assert b"<html" in store.get("zar-bucket", "runs/killed/report.html")
    comparison = compare_runs([f"{runs}/killed", f"{runs}/swept"], meaning(EvalConfig()).keys())
    assert len(comparison.runs) == 1 + len(swept.record.cells)
    assert predict_command([f"{videos}blue bar/0.mp4", "--labels", "a,b", "--checkpoint", weights]) == 0

    # A training's videos and checkpoints.
    words = ["--architecture", tiny_training().architecture, "--frames", 2, "--batch-size", 6, "--micro-batch", 3]
    words += ["--warmup-steps", 2, "--cache-frames", 4, "--steps", 6, "--checkpoint-steps", 3, "--no-mlflow"]
    words += ["--storage", f"{BUCKET}/training", "--name", "mine", "--output", f"{BUCKET}/out/trained.safetensors"]
    training = run("train", "--dataset", dataset, *words, "--address", "local", stdout=subprocess.PIPE)
    said = training.communicate()[0].decode()
    assert training.returncode == 0, said
    assert any(re.match(r"training/mine/.*checkpoint", key) for key in store.keys("zar-bucket"))
    assert store.get("zar-bucket", "training/mine/history.csv").count(b"\n") == 7

    # What it trained, mixed with what it is compared with; the mixtures lie in the bucket too.
    mixed = {**options, "checkpoint": f"{BUCKET}/out/trained.safetensors", "alphas": (0.5,)}
    both = evaluate(dataset, name="mixed", interpolate_with=f"{BUCKET}/out/trained.safetensors", **mixed)
    assert len(both.table) == len(reference.table)
    assert any(key.startswith("runs/checkpoints/") for key in store.keys("zar-bucket"))

    # Nothing that was written or said holds a credential.
    written = b"".join(store.get("zar-bucket", key) for key in store.keys("zar-bucket") if key.startswith("runs/"))
    everything = [said, capsys.readouterr().out, (tmp_path / "killed.log").read_text(), written.decode("latin-1")]
    assert not [text for text in everything if SECRET in text or KEY in text]
    assert len(store.weather.faults) == 4
    assert np.sum([*store.weather.faults.values()]) > 10
    while any(os.path.exists(f"/proc/{pid}") for pid in left_behind):  # noqa: PTH110
        assert time.monotonic() - began < 300, "a killed driver left processes behind"
        time.sleep(0.2)
