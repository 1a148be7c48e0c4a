"""A training of two processes, one of whose nodes is lost, goes on with one to the weights of an undisturbed one.

Its checkpoints are in an object store, so that it goes on from there, and takes over a name, and deletes the old ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
import yaml
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSelector, FileSystem
from safetensors.torch import load_file

from zar_ray.storage import Storage

pytestmark = pytest.mark.slow

LOSING_CLUSTER = Path(__file__).parents[1] / "losing_cluster.py"
STEPS = 24


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket of a server in this process, which this one's children find by their environment."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="trainings")
        yield "s3://trainings"
    server.stop()


@pytest.fixture(scope="module")
def config(bucket, tiny_training):
    return tiny_training(
        # Three micro-batches, which two processes cannot share evenly.
        batch_size=6,
        micro_batch=2,
        steps=STEPS,
        lr=1e-4,
        checkpoint_steps=4,
        augment={"mixup": 0.8, "label_smoothing": 0.1, "flip": 0.5},
        cache_frames=0,
        num_workers=(1, 2),
        storage=f"{bucket}/here",
        name="it",
        overwrite=True,
    )


@pytest.fixture(scope="module")
def disturbed(config, tmp_path_factory):
    """What a training said that lost one of its two nodes; its name was another's before."""
    folder, file = Storage(config.storage).child("it"), tmp_path_factory.mktemp("options") / "train.yaml"
    folder.write("identity.json", b'{"another": 1}')
    folder.write("checkpoint_manager_snapshot.json", b"from which nobody could go on")
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with tempfile.TemporaryDirectory(prefix="zar-ray-", dir="/tmp") as temporary:
        environment = {
            **os.environ,
            "RAY_TMPDIR": temporary,
            # How soon Ray takes a node for lost that does not answer.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000",
        }
        done = subprocess.run(
            [sys.executable, str(LOSING_CLUSTER), str(file), "4"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_lost_node_is_told_and_costs_no_step(disturbed):
    assert "each step: 6 = 2 workers x 1 or 2 accumulated x 2 at once" in disturbed
    for line in ("lost a node after step", "a training process failed (", "lost since the last start: node "):
        assert disturbed.count(line) == 1, disturbed
    assert "going on from the last checkpoint: 6 = 1 worker x 3 accumulated x 2 at once" in disturbed
    assert disturbed.count(f"step 1/{STEPS}") == 1, "it went on from its checkpoint"


def test_it_ends_as_one_that_lost_none(ray_cluster, disturbed, config, train, in_this_process, tmp_path):
    alone = {"num_workers": 1, "storage": str(tmp_path), "output": tmp_path / "alone.safetensors"}
    with in_this_process():
        undisturbed, _ = train(config.model_copy(update=alone))
    (tmp_path / "it.csv").write_bytes(Storage(config.storage).child("it").read("history.csv"))
    curves = [
        np.genfromtxt(file, delimiter=",", names=True)
        for file in (Path(undisturbed.folder, "history.csv"), tmp_path / "it.csv")
    ]
    assert len(curves[0]) == len(curves[1]) == STEPS
    np.testing.assert_allclose(curves[0]["loss"], curves[1]["loss"], atol=1e-5)
    mine, other = load_file(config.output), load_file(undisturbed.checkpoint)
    # The key's bias has no gradient but rounding, which AdamW magnifies; everything else agrees.
    for name in mine:
        if not name.endswith("in_proj_bias"):
            assert torch.allclose(mine[name], other[name], atol=1e-5), name


def test_old_checkpoints_are_deleted_from_an_object_store(disturbed, config):
    files, root = FileSystem.from_uri(f"{config.storage}/it")
    left = {
        info.path.removeprefix(root).split("/")[1] for info in files.get_file_info(FileSelector(root, recursive=True))
    }
    assert 1 <= sum(name.startswith("checkpoint_2") for name in left) <= 3, left
