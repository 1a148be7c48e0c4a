"""Training from its options to its checkpoint file: what `zar train` and jobs/pretrain.py call."""

from __future__ import annotations

import time
from dataclasses import replace

from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.util.queue import Queue
from rich.console import Console

from zar_ray.cluster import connected, total_gpus
from zar_ray.data.class_texts import prompts_of
from zar_ray.models.architecture import load_architecture
from zar_ray.options.base import fingerprint
from zar_ray.options.layers import zar_home
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.training.fitting import cpus_per_worker, fit
from zar_ray.training.inputs import (
    accumulation,
    settled,
    training_identity,
    training_videos,
)
from zar_ray.training.listening import log_end, shown, tracked
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import TrainResult, finished
from zar_ray.training.schedule import Schedule
from zar_ray.training.validation import validation_set
from zar_ray.training.worker import TrainingJob


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
        gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(bool(total_gpus()))
        cpus = cpus_per_worker(config.num_workers, config.decode_workers, spare=int(config.validation_async))
        queue = Queue(actor_options={"num_cpus": 0})
        job = TrainingJob(config, tuple(videos.rows()), prompts, architecture, cpus, validation, queue)
        scaling = ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        )
        run = RunConfig(
            name=name,
            storage_path=storage.location,
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="validation_top1"),
        )
        with tracked(job, folder.storage, console, parent) as tracker:
            with shown(job, tracker, console) as raised:
                result = fit(job, scaling, run, folder.storage, console)
            trained = finished(result, job, folder, time.monotonic() - started, raised[0].reason if raised else None)
            run_id = log_end(tracker, trained, config, console)
    trained = replace(trained, run_id=run_id)
    console.print(
        f"trained {trained.steps} steps in {trained.seconds:.0f} s: loss {trained.loss:.3f}, "
        f"{trained.accuracy:.1%} of the training videos right; {trained.checkpoint}",
        markup=False,
    )
    return trained
