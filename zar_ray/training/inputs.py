"""A training's options and dataset, looked at before anything starts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rich.console import Console

from zar_ray.cluster import inside_job
from zar_ray.data.class_texts import ClassPrompts, is_context_file
from zar_ray.data.datasets import open_dataset, resolve_dataset
from zar_ray.data.manifest import Manifest
from zar_ray.errors import ConfigError, ManifestError
from zar_ray.models.architecture import Architecture
from zar_ray.models.systems.registry import find_system
from zar_ray.options.base import fingerprint, meaning
from zar_ray.training.options import TrainConfig
from zar_ray.training.schedule import Schedule
from zar_ray.training.validation import validation_set


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
    if config.precision == "fp16":
        raise ConfigError("--precision fp16: gradients overflow in it; train in bf16 or fp32")
    micro_batch = min(config.micro_batch, config.batch_size)
    shares, rest = divmod(config.batch_size, micro_batch)
    if rest or shares % config.num_workers:
        raise ConfigError(
            f"--batch-size {config.batch_size} cannot be shared by --num-workers {config.num_workers} in micro-batches"
            f" of {micro_batch}; choose a --batch-size that is a multiple of both together, or another --micro-batch"
        )
    if config.register_as is not None and not config.mlflow:
        raise ConfigError("--register-as: a model is registered in MLflow; leave out --no-mlflow")
    paths: dict[str, object] = {
        name: path.expanduser().absolute()
        for name in ("output", "checkpoint", "class_texts")
        if (path := getattr(config, name)) is not None
    }
    system = find_system(config.model)
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
    config = settled(config)
    videos = training_videos(config)
    schedule = Schedule.of(config, len(videos))
    start = f"architecture {config.architecture}, from scratch" if config.architecture else _weights(config)
    lines = [
        f"dataset     {config.dataset}: {len(videos)} videos, {len(videos.class_names)} classes",
        f"model       {start}; trains {config.trains}",
        f"steps       {schedule.steps} of {config.batch_size} videos x {config.frames} frames: "
        f"{schedule.steps * config.batch_size / len(videos):.1f} epochs, {schedule.warmup} steps of warm-up",
        f"batch       {accumulation(config)}",
        f"checkpoint  {config.output}",
    ]
    validation = validation_set(config)
    if validation is not None:
        lines.insert(1, f"validation  {config.validation}: {len(validation.videos)} videos, zero-shot")
    return "\n".join(lines)


def _weights(config: TrainConfig) -> str:
    return str(config.checkpoint or f"{config.model} ({config.pretrained})")


def accumulation(config: TrainConfig) -> str:
    """How a step's batch is shared and added up."""
    turns = config.batch_size // config.micro_batch // config.num_workers
    workers = f"{config.num_workers} workers" if config.num_workers > 1 else "1 worker"
    return f"{config.batch_size} = {workers} x {turns} accumulated x {config.micro_batch} at once"


def training_identity(
    config: TrainConfig, videos: Manifest, prompts: ClassPrompts, architecture: Architecture | None
) -> dict[str, object]:
    """What a training's weights depend on, as JSON values; files by their content.

    Raises:
        ConfigError: The checkpoint cannot be read.
    """
    places = {"checkpoint", "class_texts", *(["context"] if is_context_file(config.context) else [])}
    return {
        "options": {name: value for name, value in meaning(config).items() if name not in places},
        "videos": videos.fingerprint(),
        "prompts": fingerprint(prompts.identity),
        "architecture": architecture,
        "weights": _file_hash(config.checkpoint) if config.checkpoint else None,
    }


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise ConfigError(f"--checkpoint {path}: cannot be read ({error.strerror or error})") from error
