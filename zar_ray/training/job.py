"""Training from its options to its checkpoint file: what `zar train` and jobs/pretrain.py call."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from rich.console import Console

from zar_ray.cluster import connected, inside_job, total_gpus
from zar_ray.config import TrainConfig, conf_dir, fingerprint, identity, read_yaml, zar_home
from zar_ray.data.datasets import open_dataset, resolve_dataset
from zar_ray.data.manifest import Manifest
from zar_ray.errors import ConfigError, ManifestError, RunError, suggestion
from zar_ray.models.architecture import Architecture
from zar_ray.models.checkpoints import load_weights, save_checkpoint
from zar_ray.storage import Storage
from zar_ray.training.worker import STATE, Progress, TrainingJob, initial_model, train_worker

# A process that dies is replaced, and training goes on from the last checkpoint, so many times.
_MAX_FAILURES = 3


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        checkpoint: The file written, in zar-ray's format.
        steps: Steps of the whole training, earlier sessions included.
        seconds: Wall seconds of this session.
        loss: Mean loss of the last 25 steps.
        accuracy: Share of training videos that were right in the last 25 steps.
    """

    checkpoint: Path
    steps: int
    seconds: float
    loss: float
    accuracy: float


def load_architecture(name: str) -> Architecture:
    """An architecture by its name in conf/models or by its file.

    Raises:
        ConfigError: There is none, or it is not in the form of open_clip's model configs.
    """
    known = {path.stem: path for path in (conf_dir() / "models").glob("*.yaml")}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise ConfigError(f"--architecture {name}: no such name or file{suggestion(name, known)}")
    return read_yaml(path)


def check(config: TrainConfig) -> Path:
    """The file to write, after a look at the options that can be wrong.

    Raises:
        ConfigError: An option is missing, or two do not fit together.
    """
    if config.dataset is None:
        raise ConfigError("zar train: say what to train on with --dataset")
    if config.output is None or config.output.suffix != ".safetensors":
        raise ConfigError("zar train: name the checkpoint to write with --output FILE.safetensors")
    if inside_job() and not config.output.is_absolute():
        raise ConfigError(f"--output {config.output}: a Ray job's folder is temporary; give an absolute path")
    if config.precision == "fp16":
        raise ConfigError("--precision fp16: gradients overflow in it; train in bf16 or fp32")
    if config.batch_size % config.num_workers:
        raise ConfigError(
            f"--batch-size {config.batch_size} cannot be shared by --num-workers {config.num_workers}; "
            "choose a multiple of it"
        )
    return config.output.expanduser().absolute()


def training_videos(config: TrainConfig, console: Console | None = None) -> Manifest:
    """The labelled videos to train on; those that cannot be read are left out and counted.

    Raises:
        ManifestError: The dataset cannot be opened, or holds no labelled video.
    """
    manifest = open_dataset(resolve_dataset(str(config.dataset), config.data_root), console, config.decoder)
    manifest = manifest.select(config.split)
    usable = [row for row in manifest.rows() if row.error is None and row.label_id is not None]
    if not usable:
        raise ManifestError(f"{config.dataset}: has no labelled video that can be read")
    if console is not None and len(usable) < len(manifest):
        console.print(f"{len(manifest) - len(usable)} of {len(manifest)} videos are broken or unlabelled: left out")
    return Manifest.of(usable, manifest.class_names, manifest.root, manifest.name)


def describe(config: TrainConfig) -> str:
    """What would be trained, in a few lines.

    Raises:
        ZarError: An option or the dataset cannot be used.
    """
    output = check(config)
    videos = training_videos(config)
    start = f"architecture {config.architecture}, from scratch" if config.architecture else _weights(config)
    return "\n".join(
        (
            f"dataset     {config.dataset}: {len(videos)} videos, {len(videos.class_names)} classes",
            f"model       {start}",
            f"steps       {config.steps} of {config.batch_size} videos x {config.frames} frames: "
            f"{config.steps * config.batch_size / len(videos):.1f} epochs, {config.num_workers} workers",
            f"checkpoint  {output}",
        )
    )


def _weights(config: TrainConfig) -> str:
    return str(config.checkpoint or f"{config.model} ({config.pretrained})")


def run_training(config: TrainConfig, console: Console) -> TrainResult:
    """Trains, or continues a training of the same options that was stopped, and writes the checkpoint file.

    Raises:
        ZarError: An option or the dataset cannot be used.
        RunError: Training failed; the same command continues it.
    """
    output = check(config)
    if config.checkpoint is not None:
        # Workers have working folders of their own.
        config = config.model_copy(update={"checkpoint": config.checkpoint.expanduser().absolute()})
    videos = training_videos(config, console)
    architecture = load_architecture(config.architecture) if config.architecture else None
    storage = Storage(config.storage or str(zar_home() / "training")).location
    started = time.monotonic()
    with connected(config.address):
        gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(bool(total_gpus()))
        cpus = cpus_per_worker(config.num_workers)
        name = f"train-{fingerprint([identity(config), videos.fingerprint(), architecture])}"
        with _shown(config, console) as queue:
            job = TrainingJob(config, tuple(videos.rows()), videos.class_names, architecture, cpus, queue)
            trainer = TorchTrainer(
                train_worker,
                train_loop_config={"job": job},
                scaling_config=ScalingConfig(
                    num_workers=config.num_workers,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
                ),
                run_config=RunConfig(
                    # Ray Train goes on with a run of the same name: another setting must have another one.
                    name=name,
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                    checkpoint_config=CheckpointConfig(num_to_keep=2),
                ),
            )
            try:
                result = trainer.fit()
            except (TrainingFailedError, RayError) as error:
                raise RunError(f"training stopped: {_reason(error)}; the same command continues it") from error
        if result.checkpoint is None or result.metrics is None:
            raise RunError(f"training {name} ended without a checkpoint; look into {storage}/{name}")
        _export(result.checkpoint, job, output)
    trained = TrainResult(
        checkpoint=output,
        steps=int(result.metrics["step"]),
        seconds=time.monotonic() - started,
        loss=float(result.metrics["loss"]),
        accuracy=float(result.metrics["accuracy"]),
    )
    console.print(
        f"trained {trained.steps} steps in {trained.seconds:.0f} s: loss {trained.loss:.3f}, "
        f"{trained.accuracy:.1%} of the training videos right; {output}"
    )
    return trained


def cpus_per_worker(workers: int) -> int:
    """The most CPUs that each of so many processes can have, none of them spread over two nodes.

    Raises:
        RunError: The joined cluster has fewer CPUs than processes.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    fitting = [cpus for cpus in range(1, max(nodes) + 1) if sum(node // cpus for node in nodes) >= workers]
    if not fitting:
        raise RunError(f"--num-workers {workers}: the cluster has {sum(nodes)} CPUs, and each needs one at least")
    return fitting[-1]


def _reason(error: BaseException) -> str:
    """The mistake in a worker that ended a training, on one line."""
    causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    lines = [line.strip() for line in str(causes[0] if causes else error).splitlines() if line.strip()]
    # Ray shows an exception of ours as its traceback, whose last line is the message; a dead process, message first.
    traceback = any(line.startswith("Traceback") for line in lines[:2])
    line = lines[-1 if traceback else 0] if lines else type(error).__name__
    return re.sub(r"^zar_ray\.errors\.\w+: ", "", line)


def _export(checkpoint: Any, job: TrainingJob, output: Path) -> None:
    with checkpoint.as_directory() as folder:
        weights = torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)["model"]
    model = initial_model(job)
    load_weights(model.clip, weights, "the last checkpoint")
    save_checkpoint(
        model.clip,
        model.architecture,
        model.preprocessing,
        output,
        notes={"name": output.stem, "training": job.config.model_dump(mode="json")},
    )


@contextlib.contextmanager
def _shown(config: TrainConfig, console: Console) -> Iterator[Queue]:
    """A queue for the first worker's progress, read by a thread that shows it."""
    queue = Queue(actor_options={"num_cpus": 0})
    over = threading.Event()

    def show() -> None:
        while not over.is_set():
            with contextlib.suppress(Empty):
                _show(queue.get(timeout=1), config, console)

    console.print(f"training: {config.steps} steps of {config.batch_size} videos x {config.frames} frames")
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        over.set()
        thread.join()
        queue.shutdown()


def _show(progress: Progress, config: TrainConfig, console: Console) -> None:
    left = (config.steps - progress.step) * config.batch_size / progress.videos_per_second
    console.print(
        f"step {progress.step}/{config.steps}  loss {progress.loss:.3f}  {progress.accuracy:.1%} right"
        f"  lr {progress.learning_rate:.1e}  {progress.videos_per_second:.0f} videos/s  about {left:.0f} s left"
    )
