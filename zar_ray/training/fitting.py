"""Ray Train over a training's processes: what each gets of the cluster, and what happens where one dies."""

from __future__ import annotations

import re

import ray
from ray.exceptions import RayError
from ray.train import Result, RunConfig, ScalingConfig, TrainingFailedError, ValidationConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.storage import Storage
from zar_ray.training.outputs import CheckpointEvaluation
from zar_ray.training.worker import TrainingJob, train_worker

# Where a process dies, training goes on from the last checkpoint so many times.
_MAX_RESTARTS = 3

# How Ray shows an exception: by its traceback. One of ours is a mistake that another start would only repeat.
_TRACEBACK = "Traceback (most recent call last)"
_OURS = re.compile(r"^zar_ray\.errors\.\w+: ", re.MULTILINE)


def cpus_per_worker(workers: int, decoders: int = 0, spare: int = 0) -> int:
    """The most CPUs that each of so many processes can have, none of them spread over two nodes.

    Args:
        workers: The processes.
        decoders: CPUs that each of them needs besides, for its decode workers.
        spare: CPUs of the cluster to leave to others, of its last node.

    Raises:
        RunError: The joined cluster has too few CPUs.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    nodes[-1] -= spare
    fitting = [cpus for cpus in range(1, max(nodes) + 1) if sum(node // (cpus + decoders) for node in nodes) >= workers]
    if not fitting:
        needed = f", besides {decoders} for its decode workers" if decoders else ""
        raise RunError(
            f"--num-workers {workers}: the cluster has {sum(nodes)} CPUs to spare, and each needs one at least{needed}"
        )
    return fitting[-1]


def fit(job: TrainingJob, scaling: ScalingConfig, run: RunConfig, folder: Storage, console: Console) -> Result:
    """Runs a training; where a process died, it goes on from the last checkpoint.

    Ray Train's own restarts would repeat a mistake, a video that cannot be decoded say, as often as a death.

    Args:
        job: What is trained.
        scaling: The processes and what each of them gets.
        run: Where the training's checkpoints lie.
        folder: The training's folder.
        console: Where a death is shown.

    Raises:
        RunError: An exception ended it, or one death too many.
    """
    restarts = 0
    evaluates = job.validation is not None and job.config.validation_async
    evaluation = CheckpointEvaluation(job, folder.path("validation"))
    while True:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job},
            scaling_config=scaling,
            run_config=run,
            validation_config=ValidationConfig(evaluation, ray_remote_kwargs={"num_cpus": 0}) if evaluates else None,
        )
        try:
            return trainer.fit()
        except (TrainingFailedError, RayError) as error:
            causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
            mistakes = [cause for cause in causes if _OURS.search(str(cause))]
            if mistakes or restarts == _MAX_RESTARTS or not isinstance(error, WorkerGroupError):
                reason = _one_line((mistakes or causes)[0])
                raise RunError(f"training stopped: {reason}; the same command continues it") from error
            restarts += 1
            # The others raise, as they cannot reach a process that died; which is noticed first is chance.
            reason = _one_line(causes[0])
            console.print(f"a training process failed ({reason}); going on from the last checkpoint", markup=False)


def _one_line(error: BaseException) -> str:
    """A traceback's last line, which is the message; else the first line, as Ray writes a death."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return _OURS.sub("", lines[-1 if _TRACEBACK in str(error) else 0])
