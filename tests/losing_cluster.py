"""A program of its own: trains on a cluster of two nodes on this machine, the second of which is lost amid the steps.

Arguments: the training's options as YAML, and the step whose checkpoint the loss waits for.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from forked_workers import forking
from ray.cluster_utils import Cluster
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.storage import Storage
from zar_ray.training import workers
from zar_ray.training.job import run_training
from zar_ray.training.options import TrainConfig


def newest_step(folder: Storage) -> int:
    """The step of the checkpoint that training would go on from; 0 without any."""
    try:
        latest = json.loads(folder.read("checkpoint_manager_snapshot.json"))["latest_checkpoint_result"]
    except (RunError, ValueError):  # there is none yet, or it is being written
        return 0
    return latest["metrics"]["step"] if latest else 0


def main() -> None:
    """Trains, and says what the training says."""
    config = TrainConfig.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
    folder = Storage(str(config.storage)).child(str(config.name))
    with forking(Path(os.environ["RAY_TMPDIR"])) as as_python:
        with as_python():
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            node = cluster.add_node(num_cpus=1)
        train_on(cluster, node, config, folder)


def train_on(cluster: Cluster, node: Any, config: TrainConfig, folder: Storage) -> None:
    """Trains while the node is lost."""
    # On a busy machine a node's first process takes longer than the seconds after which fewer of them begin.
    as_usual, workers._SETTLED_SECONDS = workers._SETTLED_SECONDS, 60.0

    def lose() -> None:
        while (step := newest_step(folder)) < int(sys.argv[2]):
            time.sleep(0.02)
        workers._SETTLED_SECONDS = as_usual
        cluster.remove_node(node, allow_graceful=False)
        print(f"lost a node after step {step}", flush=True)

    threading.Thread(target=lose, daemon=True).start()
    try:
        run_training(config.model_copy(update={"address": cluster.address}), Console(width=200))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
