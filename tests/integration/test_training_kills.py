"""A training of two processes: its steps are those of one process, and SIGKILL of one of them, or of the driver, loses,
repeats or changes none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

VIDEOS, STEPS = 24, 24


# Mixing and smoothing lie within micro-batches: on the wrong shares, or without an exchange, one and two would part.
AUGMENT = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "flip": 0.5, "colour_jitter": 0.8, "grey": 0.2}


@pytest.fixture(scope="module")
def config(make_video, tiny_training, tmp_path_factory):
    """Options of a training that nothing disturbs, by two processes."""
    root = tmp_path_factory.mktemp("two")
    for number in range(VIDEOS):
        make_video(root / "videos" / ("left", "right", "up")[number % 3] / f"{number}.mp4", frames=12, seed=number)
    return tiny_training(
        dataset=str(root / "videos"),
        batch_size=8,
        micro_batch=2,
        steps=STEPS,
        lr=1e-3,
        warmup_steps=10,
        checkpoint_steps=4,
        augment=AUGMENT,
        average_from=1.0,
        num_workers=2,
        output=root / "undisturbed.safetensors",
        storage=str(root / "undisturbed"),
        name="it",
        address="local",
    )


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, config, train):
    return train(config)


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


def history(result):
    """The columns of a training's history, one row a step."""
    return np.genfromtxt(Path(result.folder) / "history.csv", delimiter=",", names=True)


def test_two_processes_take_the_steps_of_one_that_accumulates(undisturbed, config, train, in_this_process, tmp_path):
    together, said = undisturbed
    assert "8 = 2 workers x 2 accumulated x 2 at once" in said
    own = {"num_workers": 1, "output": tmp_path / "alone.safetensors", "storage": str(tmp_path / "alone")}
    with in_this_process():
        alone, said = train(config.model_copy(update=own))
    assert "8 = 1 worker x 4 accumulated x 2 at once" in said
    one, two = history(alone), history(together)
    assert len(one) == STEPS
    np.testing.assert_allclose(one["loss"], two["loss"], atol=1e-5)
    np.testing.assert_allclose(one["gradient_norm"], two["gradient_norm"], rtol=1e-4)
    mine, other = load_file(alone.checkpoint), load_file(together.checkpoint)
    # The key's bias has no gradient but rounding, which AdamW magnifies; everything else agrees.
    for name in mine:
        if not name.endswith("in_proj_bias"):
            assert torch.allclose(mine[name], other[name], atol=1e-4), name


def test_killed_twice_it_ends_as_if_it_had_not_been(undisturbed, config, tmp_path, processes_below, train):
    reference, _ = undisturbed
    config = config.model_copy(update={"output": tmp_path / "killed.safetensors", "storage": str(tmp_path / "killed")})
    file, log = tmp_path / "train.yaml", tmp_path / "session.log"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "zar_ray.commands.main", "train", "--config", str(file)]
    environment = {
        **os.environ,
        # The pause that it has between checkpoints outside tests, in which it is killed.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2",
        # For how long Ray's agents try to tell its server, which is gone as well, that their node is.
        "RAY_gcs_server_request_timeout_seconds": "10",
    }
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
