"""Training from its options to its checkpoint file: what `zar train` and jobs/pretrain.py call."""

from __future__ import annotations

import hashlib
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import ray.train
from ray.exceptions import RayError
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from zar_ray.cluster import connected, inside_job, worker_device
from zar_ray.data.class_texts import is_context_file, prompts_of
from zar_ray.data.datasets import open_dataset, resolve_dataset
from zar_ray.data.manifest import Manifest
from zar_ray.errors import ConfigError, DeviceLostError, ManifestError, RunError, ZarError
from zar_ray.evaluation.preflight import check_devices
from zar_ray.models.architecture import load_architecture
from zar_ray.models.settings import parsed, takes, with_settings
from zar_ray.models.systems.registry import find_system
from zar_ray.options.base import fingerprint, meaning
from zar_ray.options.layers import zar_home
from zar_ray.options.places import AnyFile, at_home
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.training.listening import log_end, shown, tracked
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import TrainResult, evaluate_checkpoint, finished
from zar_ray.training.schedule import Schedule
from zar_ray.training.validation import validation_set
from zar_ray.training.videos import VideoTable, usable_videos
from zar_ray.training.worker import TrainingJob, train_worker
from zar_ray.training.workers import WorkerNeeds, alive_nodes, worker_bounds, worker_needs, workers_with_room

# How Ray shows an exception: by its traceback. One of ours is a mistake that another start would only repeat, but for a
# lost device.
_TRACEBACK = "Traceback (most recent call last)"
_OURS = re.compile(r"^zar_ray\.errors\.(\w+): ", re.MULTILINE)


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
    if architecture is not None:
        architecture = with_settings(architecture, parsed(config.settings), str(config.architecture))
    (prompts,) = prompts_of([videos.class_names], config)
    places = {"checkpoint", "class_texts", *(["context"] if is_context_file(config.context) else [])}
    # What the weights depend on; files by their content.
    what = {
        "options": {name: value for name, value in meaning(config).items() if name not in places},
        "videos": videos.fingerprint(),
        "prompts": fingerprint(prompts.identity),
        "architecture": architecture,
        "weights": _file_hash(config.checkpoint) if config.checkpoint else None,
    }
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
        needs = worker_needs(config)
        config = config.model_copy(update={"device": worker_device(config.device, needs.gpus)})
        check_devices(needs.gpus, config.device)
        # Beside the driver, lest it be lost with another node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        shared = VideoTable.of(videos).shared()
        job = TrainingJob(config, shared, prompts, architecture, needs, validation, queue)
        with tracked(job, folder.storage, console, parent) as tracker:
            with shown(job, tracker, console) as raised:
                result = _fit(job, needs, name, storage, console)
            seconds = time.monotonic() - started
            trained = finished(result, job, folder, raised[0] if raised else None)
            run_id = log_end(tracker, trained, config, console)
    console.print(
        f"trained {trained.steps} steps in {seconds:.0f} s: loss {trained.loss:.3f}, "
        f"{trained.accuracy:.1%} of the training videos right; {trained.checkpoint}",
        markup=False,
    )
    return replace(trained, run_id=run_id)


def describe(config: TrainConfig) -> str:
    """What would be trained, in a few lines.

    Raises:
        ZarError: An option or the dataset cannot be used.
    """
    config = settled(config)
    videos = training_videos(config)
    schedule = Schedule.of(config, len(videos))
    validation = validation_set(config)
    start = config.checkpoint or f"{config.model} ({config.pretrained})"
    if config.architecture:
        start = f"architecture {config.architecture}, from scratch"
    lines = [
        f"dataset     {config.dataset}: {len(videos)} videos, {len(videos.class_names)} classes",
        *([f"validation  {config.validation}: {len(validation.videos)} videos, zero-shot"] if validation else []),
        f"model       {start}; trains {config.trains}",
        f"steps       {schedule.steps} of {config.batch_size} videos x {config.frames} frames: "
        f"{schedule.steps * config.batch_size / len(videos):.1f} epochs, {schedule.warmup} steps of warm-up",
        f"batch       {accumulation(config)}",
        f"checkpoint  {config.output}",
    ]
    return "\n".join(lines)


def settled(config: TrainConfig) -> TrainConfig:
    """The options with absolute paths, after a look at those that can be wrong.

    Raises:
        ConfigError: An option is missing, or two do not fit together.
    """
    if config.dataset is None:
        raise ConfigError("zar train: say what to train on with --dataset")
    if config.output is None or config.output.suffix != ".safetensors":
        raise ConfigError("zar train: name the checkpoint to write with --output FILE.safetensors")
    if inside_job() and not config.output.is_absolute():
        raise ConfigError(f"--output {config.output}: a Ray job's folder is temporary; give an absolute path")
    if config.cache_frames and config.sampling in ("stride", "dense"):
        raise ConfigError(
            f"--cache-frames {config.cache_frames}: keeps frames spread over a video, and --sampling {config.sampling}"
            " takes neighbours; leave it away"
        )
    if config.precision == "fp16":
        raise ConfigError("--precision fp16: gradients overflow in it; train in bf16 or fp32")
    micro_batch = min(config.micro_batch, config.batch_size)
    shares, rest = divmod(config.batch_size, micro_batch)
    fewest, most = worker_bounds(config)
    if fewest > most:
        raise ConfigError(f"--num-workers {fewest} {most}: the fewest come first, and then the most")
    if rest or shares < most:
        raise ConfigError(
            f"--batch-size {config.batch_size} cannot be shared by --num-workers {most} in micro-batches of"
            f" {micro_batch}; choose a --batch-size that is a multiple of it, with one a worker at least"
        )
    if config.register_as is not None and not config.mlflow:
        raise ConfigError("--register-as: a model is registered in MLflow; leave out --no-mlflow")
    paths: dict[str, object] = {
        name: at_home(path)
        for name in ("output", "checkpoint", "class_texts")
        if (path := getattr(config, name)) is not None
    }
    system = find_system(config.model)
    own = parsed(config.settings)
    if config.checkpoint is None and not config.architecture and takes(system, "frames") and "frames" not in own:
        # A new model of such a system has the frames that it is trained with.
        paths["settings"] = (*config.settings, f"frames={config.frames}")
    if system is not None and config.context is None and config.template is None and config.trains != "prompts":
        paths["context"] = system.context
    # Workers have working folders of their own.
    return config.model_copy(update={**paths, "micro_batch": micro_batch})


def training_videos(config: TrainConfig, console: Console | None = None) -> Manifest:
    """The labelled videos to train on; those that cannot be read are left out and counted.

    Raises:
        ManifestError: The dataset cannot be opened, or holds no labelled video.
    """
    manifest = open_dataset(resolve_dataset(str(config.dataset), config.data_root), console, config.decoder)
    manifest = manifest.select(config.split)
    usable = usable_videos(manifest)
    if not len(usable):
        raise ManifestError(f"{config.dataset}: has no labelled video that can be read")
    if console is not None and len(usable) < len(manifest):
        console.print(f"{len(manifest) - len(usable)} of {len(manifest)} videos are broken or unlabelled: left out")
    return usable


def accumulation(config: TrainConfig, workers: int | None = None) -> str:
    """How a step's batch is shared and added up, by so many processes or the most that are asked for."""
    workers = workers or worker_bounds(config)[1]
    turns, more = divmod(config.batch_size // config.micro_batch, workers)
    added = f"{turns} or {turns + 1}" if more else str(turns)
    shared = f"{workers} workers" if workers > 1 else "1 worker"
    return f"{config.batch_size} = {shared} x {added} accumulated x {config.micro_batch} at once"


def _file_hash(path: AnyFile) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise ConfigError(f"--checkpoint {path}: cannot be read ({error.strerror or error})") from error


def _fit(job: TrainingJob, needs: WorkerNeeds, name: str, storage: Storage, console: Console) -> ray.train.Result:
    """Runs a training; where a process or a node is lost, it goes on from the last checkpoint in the storage.

    Ray Train's own restarts would repeat a mistake, a video that cannot be decoded say, as often as a death, and would
    wait for as many processes as before without a word.
    """
    config, failures, workers = job.config, 0, 0
    fewest, most = worker_bounds(config)
    evaluation = ray.train.ValidationConfig(
        partial(evaluate_checkpoint, job, storage.child(name).child("validation")), ray_remote_kwargs={"num_cpus": 0}
    )
    # A URI as it stands Ray Train would read otherwise.
    files, place = (None, storage.location) if storage.is_local else storage.arrow
    kept = ray.train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="validation_top1")
    none = ray.train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
    # By reference: Ray Train's controller would load PyTorch and the models to read it.
    told, grew, grown_at, nodes = ray.put(job), False, -1, {}
    while True:
        before, workers = workers, workers_with_room(fewest, most, needs, console)
        there = alive_nodes()
        if lost := [nodes[one] for one in nodes if one not in there]:
            console.print(f"lost since the last start: node {', '.join(lost)}", markup=False)
        if before:
            console.print(f"going on from the last checkpoint: {accumulation(config, workers)}")
        nodes = there
        trainer = TorchTrainer(
            train_worker,
            # Room that proved too little for another process is not looked at again.
            train_loop_config={"job": told, "lacking": 0 if grew and workers <= before else most - workers},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=needs.gpus > 0, resources_per_worker=needs.resources
            ),
            run_config=ray.train.RunConfig(
                name=name, storage_path=place, storage_filesystem=files, checkpoint_config=kept, failure_config=none
            ),
            validation_config=evaluation if job.validation is not None and config.validation_async else None,
        )
        try:
            with _interrupted_as_others():
                result = trainer.fit()
        except (ray.train.TrainingFailedError, RayError) as error:
            failures += not isinstance(error, ray.train.PreemptionError)
            reason, again = _why(error)
            if not again or failures > config.max_failures:
                raise RunError(f"training stopped: {reason}; the same command continues it") from error
            console.print(f"a training process failed ({reason})", markup=False)
            grew = False
        else:
            last = result.metrics or {}
            grew = last.get("grows", False) and last["step"] > grown_at
            if not grew:
                return result
            grown_at = last["step"]
            console.print("there is room for more training processes")


@contextmanager
def _interrupted_as_others() -> Iterator[None]:
    """Has Ctrl-C interrupt what goes on in here; Ray Train's own handler, which it leaves behind, ends the process."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _why(error: Exception) -> tuple[str, bool]:
    """What stopped an attempt, in one line, and whether another one may get further."""
    if isinstance(error, ray.train.ControllerError):
        # Between the look for room and the start, a node was lost or another job took it.
        failure = error.controller_failure
        return _one_line(failure), isinstance(failure, WorkerGroupStartupTimeoutError | WorkerGroupStartupFailedError)
    if isinstance(error, ray.train.PreemptionError):
        return "its node is being taken away", True
    causes = list(error.worker_failures.values()) if isinstance(error, ray.train.WorkerGroupError) else [error]
    if mistakes := [cause for cause in causes if _is_mistake(cause)]:
        return _one_line(mistakes[0]), False
    # The others raise, as they cannot reach a process that died; which is noticed first is chance.
    dead = [cause.health_check_failure for cause in causes if isinstance(cause, WorkerHealthCheckFailedError)]
    return _one_line((dead or causes)[0]), isinstance(error, ray.train.WorkerGroupError)


def _is_mistake(error: BaseException) -> bool:
    return isinstance(error, ZarError) or bool(set(_OURS.findall(str(error))) - {DeviceLostError.__name__})


def _one_line(error: BaseException) -> str:
    """A traceback's last line, which is the message; else the first line, as Ray writes a death."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return _OURS.sub("", lines[-1 if _TRACEBACK in str(error) else 0])
