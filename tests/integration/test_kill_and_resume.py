"""SIGKILL of the driver or of a worker, again and again at random points, costs at most the videos in flight.

By hand, with ``pytest -m stress``; `test_study_job` kills a driver once, `test_eval_job` a worker.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zar_ray.data.datasets import list_dataset
from zar_ray.data.manifest import write_manifest
from zar_ray.data.probing import probe_listing
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.stress]

# Videos, and how many workers are killed in each session before its driver is.
TWICE = pytest.param(24, (1,), id="twice")
TEN_TIMES = pytest.param(72, (3, 2, 2), id="ten times")


def wait_for(condition, process, seconds=120.0):
    """Waits until the condition holds; False once the process has ended."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    raise TimeoutError("the evaluation made no progress")


@pytest.fixture
def long_manifest(make_video, tmp_path, videos):
    root = tmp_path / "videos"
    for number in range(videos):
        make_video(root / ("left", "right", "up")[number % 3] / f"{number:02}.mp4", frames=12, seed=number)
    write_manifest(probe_listing(list_dataset(root)), tmp_path / "videos.parquet")
    return tmp_path / "videos.parquet"


@pytest.mark.parametrize(("videos", "workers_killed_in_sessions"), [TWICE, TEN_TIMES])
def test_killed_at_random_points_gives_the_table_of_an_undisturbed_run(
    evaluate,
    long_manifest,
    videos,
    workers_killed_in_sessions,
    tiny_checkpoint,
    tmp_path,
    same_results,
    processes_below,
):
    reference = evaluate(long_manifest, here=True, name="undisturbed")
    folder = RunFolder(Storage(str(tmp_path / "runs" / "killed")))
    command = [
        *(sys.executable, "-m", "zar_ray.commands.main", "eval", "--dataset", str(long_manifest)),
        *("--checkpoint", str(tiny_checkpoint), "--output", str(tmp_path / "runs"), "--name", "killed"),
        *("--views.frames", "4", "--views.eval-frames", "4", "--batch-size", "1", "--no-mlflow"),
        *("--address", "local"),
    ]
    rng = random.Random(20)
    kills = {"worker": 0, "driver": 0}
    left_behind: set[int] = set()

    def finished() -> int:
        return len(folder.storage.names("parts"))

    for session, workers_killed in enumerate(workers_killed_in_sessions):
        before = finished()
        with (tmp_path / f"session{session}.log").open("wb") as log:
            # For how long Ray's agents try to tell its server, which is gone as well, that their node is.
            environment = {**os.environ, "RAY_gcs_server_request_timeout_seconds": "10"}
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                for _ in range(workers_killed):
                    at = finished() + rng.randint(1, 4)
                    if wait_for(lambda at=at: finished() >= at, process):
                        below = processes_below(process.pid)
                        left_behind |= below.keys()
                        workers = sorted(pid for pid, line in below.items() if line.startswith("ray::MapWorker"))
                        os.kill(rng.choice(workers), signal.SIGKILL)
                        kills["worker"] += 1
                time.sleep(rng.uniform(0, 1.5))
                left_behind |= processes_below(process.pid).keys()
                kills["driver"] += process.poll() is None
                process.kill()
            finally:
                process.kill()
                process.wait()
        done = {row.as_py() for row in folder.results()["video_id"]}
        assert len(done) >= before, "a finished video was lost"
    expected = {"worker": sum(workers_killed_in_sessions), "driver": len(workers_killed_in_sessions)}
    assert kills == expected, (tmp_path / "session0.log").read_text()

    resumed = evaluate(long_manifest, name="killed", resume=True, batch_size=1)
    assert 0 < resumed.summary.resumed < videos
    same_results(resumed.table, reference.table)
    assert resumed.summary.cases[0].headline == reference.summary.cases[0].headline

    limit = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in left_behind) and time.monotonic() < limit:
        time.sleep(0.2)
    assert not [pid for pid in left_behind if Path(f"/proc/{pid}").exists()], "a killed driver left processes behind"
