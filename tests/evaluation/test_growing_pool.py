"""A job on real raylets whose GPU nodes come one after the other, and whose first one is lost for good.

Their GPUs are numbers that Ray counts; what is placed by them computes on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

from zar_ray.results.folder import RunFolder
from zar_ray.results.rows import to_rows
from zar_ray.storage import Storage

# Nodes are added by the main thread, as Ray asks; the evaluation runs beside it.
JOB = """
import json, os, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from zar_ray.evaluation import capacity, pipeline
from zar_ray.study.options import EvalConfig
from zar_ray.study.run import run_study

BEGUN = sys.argv[2]
ENOUGH = BEGUN + ".enough"

# There is work until it is said that there was enough of it, however long a node takes to come.
class WaitingAdapt(pipeline.AdaptStage):
    def __call__(self, block):
        with open(BEGUN, "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not os.path.exists(ENOUGH):
            time.sleep(0.1)
        return super().__call__(block)

def wait_until(met, seconds=120):
    limit = time.monotonic() + seconds
    while not met():
        assert evaluation.is_alive() and time.monotonic() < limit, "what was waited for did not come"
        time.sleep(0.1)

def workers():
    return len(set(open(BEGUN).read().split())) if os.path.exists(BEGUN) else 0

class Console(Console):
    def print(self, *said, **how):
        lines.append(" ".join(map(str, said)))
        super().print(*said, **how)

lines = []
node = {"object_store_memory": 100 * 2**20, "temp_dir": sys.argv[3]}
head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node | head)
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
capacity.worker_device = lambda device, gpus: "cpu"
pipeline.AdaptStage = WaitingAdapt

def evaluate():
    run_study(EvalConfig.model_validate(json.loads(sys.argv[1])), Console(width=200))

evaluation = threading.Thread(target=evaluate, daemon=True)
evaluation.start()
try:
    wait_until(lambda: any("waiting for 1 GPU (0 of the cluster's 0 free)" in line for line in lines))
    first = cluster.add_node(num_cpus=1, num_gpus=1, **node)
    wait_until(lambda: workers() == 1)
    cluster.add_node(num_cpus=1, num_gpus=1, **node)
    began = time.monotonic()
    wait_until(lambda: workers() == 2, 60)
    print(f"computed after {time.monotonic() - began:.0f} s", flush=True)
    cluster.remove_node(first, allow_graceful=False)
    open(ENOUGH, "w").close()
    evaluation.join(120)
    print("hangs" if evaluation.is_alive() else "ended", flush=True)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.stress
@pytest.mark.slow
def test_a_node_that_joins_computes_and_one_that_is_lost_is_not_waited_for(video_folder, tiny_checkpoint, tmp_path):
    options = {
        "dataset": str(video_folder),
        "checkpoint": str(tiny_checkpoint),
        "output": str(tmp_path),
        "name": "grown",
        "mlflow": False,
        "views": {"frames": 4, "eval_frames": 4},
        "batch_size": 1,
        "wait_for_gpus": 90,
    }
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PYTHONUNBUFFERED": "1"
    }
    # A socket's path may have 107 characters, which pytest's own folders use up.
    with tempfile.TemporaryDirectory(prefix="zar-pool-", dir="/tmp") as folder:
        command = [sys.executable, "-c", JOB, json.dumps(options), str(tmp_path / "blocks.txt"), folder]
        with (tmp_path / "said.txt").open("w") as said:
            ran = subprocess.run(command, env=environment, stdout=said, stderr=subprocess.STDOUT, timeout=300)
    assert (ran.returncode, "ended\n" in (tmp_path / "said.txt").read_text()) == (0, True)
    rows = to_rows(RunFolder(Storage(str(tmp_path / "grown"))).results())
    assert len({row.video_id for row in rows}) == 12
    assert [row.error for row in rows if row.error] == []
