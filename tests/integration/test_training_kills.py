"""SIGKILL of a training process and of the driver in the middle of an epoch: no step is lost, repeated or changed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

VIDEOS, STEPS = 24, 24


@pytest.fixture
def config(make_video, tiny_training, tmp_path):
    for number in range(VIDEOS):
        make_video(tmp_path / "videos" / ("left", "right", "up")[number % 3] / f"{number}.mp4", frames=12, seed=number)
    return tiny_training(
        dataset=str(tmp_path / "videos"),
        batch_size=8,
        micro_batch=2,
        steps=STEPS,
        lr=1e-3,
        warmup_steps=10,
        checkpoint_steps=4,
        augment={"mixup": 0.8, "flip": 0.5},
        average_from=1.0,
        num_workers=2,
        output=tmp_path / "killed.safetensors",
        storage=str(tmp_path / "killed"),
        name="it",
        address="local",
    )


def newest(config):
    """The checkpoint that training would go on from: one that is being written does not count yet."""
    snapshot = Path(config.storage, "it", "checkpoint_manager_snapshot.json")
    if not snapshot.exists():
        return None
    with contextlib.suppress(ValueError):  # it is being written
        latest = json.loads(snapshot.read_text())["latest_checkpoint_result"]
        return latest and latest["checkpoint_dir_name"]
    return None


def wait_for_checkpoints(config, process, count, log):
    """Waits for so many more checkpoints; the next steps are under way by then."""
    limit, seen, last = time.monotonic() + 400, 0, newest(config)
    while seen < count:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < limit, log.read_text()
        now = newest(config) or last
        seen, last = seen + (now != last), now
        time.sleep(0.005)


def test_killed_twice_it_ends_as_if_it_had_not_been(ray_cluster, config, tmp_path, processes_below, train):
    file, log = tmp_path / "train.yaml", tmp_path / "session.log"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "zar_ray.commands.main", "train", "--config", str(file)]
    # With the pause that it has between checkpoints outside tests, in which it is killed.
    environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        left_behind: set[int] = set()
        try:
            wait_for_checkpoints(config, process, 2, log)
            below = processes_below(process.pid)
            workers = [pid for pid, line in below.items() if line.startswith("ray::RayTrainWorker")]
            assert len(workers) == 2, below
            os.kill(workers[1], signal.SIGKILL)
            wait_for_checkpoints(config, process, 2, log)
            left_behind |= processes_below(process.pid).keys()
            process.kill()
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    assert "a training process failed" in said
    assert said.count("step 1/") == 1
    assert not config.output.exists()

    resumed, said = train(config)
    assert "step 1/" not in said
    undisturbed = {"output": tmp_path / "undisturbed.safetensors", "storage": str(tmp_path / "undisturbed")}
    reference, _ = train(config.model_copy(update=undisturbed))
    assert resumed.steps == reference.steps == STEPS
    curves = [Path(one.folder, "history.csv").read_text() for one in (resumed, reference)]
    assert curves[0] == curves[1]
    assert curves[0].count("\n") == STEPS + 1
    for ours, theirs in ((resumed.checkpoint, reference.checkpoint), (resumed.averaged, reference.averaged)):
        mine, other = load_file(ours), load_file(theirs)
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name].equal(other[name]), name

    limit = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in left_behind) and time.monotonic() < limit:
        time.sleep(0.2)
    assert not [pid for pid in left_behind if Path(f"/proc/{pid}").exists()], "a killed driver left processes behind"
