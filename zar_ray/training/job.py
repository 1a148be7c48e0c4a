"""Training from its options to its checkpoint file: what `zar train` and jobs/pretrain.py call."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import partial

import ray
from ray.exceptions import RayError
from ray.train import (
    CheckpointConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    ValidationConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from rich.console import Console

from zar_ray.cluster import connected, total_gpus
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import RunError
from zar_ray.models.architecture import load_architecture
from zar_ray.options.base import fingerprint
from zar_ray.options.layers import zar_home
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.training.inputs import (
    accumulation,
    settled,
    training_identity,
    training_videos,
)
from zar_ray.training.listening import log_end, shown, tracked
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import TrainResult, evaluate_checkpoint, finished
from zar_ray.training.schedule import Schedule
from zar_ray.training.validation import validation_set
from zar_ray.training.worker import TrainingJob, train_worker

# Where a process dies, training goes on from the last checkpoint so many times.
_MAX_RESTARTS = 3

# How Ray shows an exception: by its traceback. One of ours is a mistake that another start would only repeat.
_TRACEBACK = "Traceback (most recent call last)"
_OURS = re.compile(r"^zar_ray\.errors\.\w+: ", re.MULTILINE)


def run_training(config: TrainConfig, console: Console, parent: str | None = None) -> TrainResult:
    """Trains, or continues a training of the same options that was stopped, and writes the checkpoint file.

    Args:
        config: The options.
        console: Where it shows how it goes.
        parent: MLflow run that this training's is shown below.

    Raises:
        ZarError: An option or the dataset cannot be used.
        RunError: Training failed; the same command continues it.
    """
    asked, config = config, settled(config)
    assert config.output is not None
    videos = training_videos(config, console)
    validation = validation_set(config, console)
    architecture = load_architecture(config.architecture) if config.architecture else None
    (prompts,) = prompts_of([videos.class_names], config)
    what = training_identity(config, videos, prompts, architecture)
    name = config.name or f"train-{fingerprint(what)}"
    storage = Storage(config.storage or str(zar_home() / "training"))
    folder = RunFolder(storage.child(name))
    # Ray Train goes on with a run of the same name, whatever its options.
    folder.open(what, resume=False, overwrite=config.overwrite)
    started = time.monotonic()
    console.print(f"training in {folder.storage.path()}", markup=False)
    console.print(f"each step: {accumulation(config)}")
    if config.context is not None and asked.context is None:
        console.print(f'prompts start with "{config.context}", the words of {config.model}\'s own training')
    schedule = Schedule.of(config, len(videos))
    if schedule.warmup >= schedule.steps:
        console.print(
            f"the warm-up's {schedule.warmup} steps are all of the training's {schedule.steps}: the learning rate never"
            " reaches its peak; --warmup-steps or --warmup-epochs shorten it"
        )
    with connected(config.address):
        cpus = cpus_per_worker(config.num_workers, config.decode_workers, spare=int(config.validation_async))
        queue = Queue(actor_options={"num_cpus": 0})
        job = TrainingJob(config, tuple(videos.rows()), prompts, architecture, cpus, validation, queue)
        with tracked(job, folder.storage, console, parent) as tracker:
            with shown(job, tracker, console) as raised:
                result = _fit(job, name, storage, console)
            trained = finished(result, job, folder, time.monotonic() - started, raised[0] if raised else None)
            run_id = log_end(tracker, trained, config, console)
    trained = replace(trained, run_id=run_id)
    console.print(
        f"trained {trained.steps} steps in {trained.seconds:.0f} s: loss {trained.loss:.3f}, "
        f"{trained.accuracy:.1%} of the training videos right; {trained.checkpoint}",
        markup=False,
    )
    return trained


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


def _fit(job: TrainingJob, name: str, storage: Storage, console: Console) -> Result:
    """Runs a training; where a process died, it goes on from the last checkpoint in the storage.

    Ray Train's own restarts would repeat a mistake, a video that cannot be decoded say, as often as a death.
    """
    config, restarts = job.config, 0
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(bool(total_gpus()))
    evaluation = ValidationConfig(
        partial(evaluate_checkpoint, job, storage.child(name).child("validation")), ray_remote_kwargs={"num_cpus": 0}
    )
    while True:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": job.threads, **({"GPU": gpus} if gpus else {})},
            ),
            run_config=RunConfig(
                name=name,
                storage_path=storage.location,
                checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="validation_top1"),
            ),
            validation_config=evaluation if job.validation is not None and config.validation_async else None,
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
