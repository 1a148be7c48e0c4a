"""Training from its options to its checkpoint file: what `zar train` and jobs/pretrain.py call."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import replace
from functools import partial

import ray.train
from ray.exceptions import RayError
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from rich.console import Console

from zar_ray.cluster import connected, gpus_per_worker, inside_job, total_gpus, worker_device
from zar_ray.data.class_texts import is_context_file, prompts_of
from zar_ray.data.datasets import open_dataset, resolve_dataset
from zar_ray.data.manifest import Manifest
from zar_ray.errors import ConfigError, DeviceLostError, ManifestError, RunError, ZarError
from zar_ray.evaluation.preflight import check_devices
from zar_ray.models.architecture import load_architecture
from zar_ray.models.systems.registry import find_system
from zar_ray.options.base import fingerprint, meaning
from zar_ray.options.layers import zar_home
from zar_ray.options.places import AnyFile
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.training.listening import log_end, shown, tracked
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import TrainResult, evaluate_checkpoint, finished
from zar_ray.training.schedule import Schedule
from zar_ray.training.validation import validation_set
from zar_ray.training.worker import TrainingJob, train_worker

# Where a process dies, training goes on from the last checkpoint so many times.
_MAX_RESTARTS = 3

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
        cpus = cpus_per_worker(config.num_workers, config.decode_workers, spare=int(config.validation_async))
        gpus = gpus_per_process(config)
        config = config.model_copy(update={"device": worker_device(config.device, gpus)})
        check_devices(gpus, config.device)
        queue = Queue(actor_options={"num_cpus": 0})
        job = TrainingJob(config, tuple(videos.rows()), prompts, architecture, cpus, validation, queue)
        with tracked(job, folder.storage, console, parent) as tracker:
            with shown(job, tracker, console) as raised:
                result = _fit(job, gpus, name, storage, console)
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


def accumulation(config: TrainConfig) -> str:
    """How a step's batch is shared and added up."""
    turns = config.batch_size // config.micro_batch // config.num_workers
    workers = f"{config.num_workers} workers" if config.num_workers > 1 else "1 worker"
    return f"{config.batch_size} = {workers} x {turns} accumulated x {config.micro_batch} at once"


def _file_hash(path: AnyFile) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise ConfigError(f"--checkpoint {path}: cannot be read ({error.strerror or error})") from error


def cpus_per_worker(workers: int, decoders: int = 0, spare: int = 0) -> int:
    """The most CPUs that each worker process can have besides its decoders' one each, none spread over two nodes.

    So many CPUs as are spare are left to others, on the last node.

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


def gpus_per_process(config: TrainConfig) -> float:
    """GPUs that each process of a training reserves.

    Raises:
        RunError: The joined cluster has too few, or processes would share one: NCCL, by which they exchange
            gradients, refuses that.
    """
    gpus = gpus_per_worker(config.device, config.gpus_per_worker)
    asked = f"--num-workers {config.num_workers} of {gpus:g} GPUs each"
    if config.num_workers > 1 and 0 < gpus <= 0.5:
        raise RunError(
            f"{asked}: several processes would share a GPU, which NCCL refuses; give each a whole one, or train in one"
            " process"
        )
    if gpus * config.num_workers > (there := total_gpus()):
        raise RunError(f"{asked}: the cluster has {there:g} GPUs")
    return gpus


def _fit(job: TrainingJob, gpus: float, name: str, storage: Storage, console: Console) -> ray.train.Result:
    """Runs a training; where a process died, it goes on from the last checkpoint in the storage.

    Ray Train's own restarts would repeat a mistake, a video that cannot be decoded say, as often as a death.
    """
    config, restarts = job.config, 0
    evaluation = ray.train.ValidationConfig(
        partial(evaluate_checkpoint, job, storage.child(name).child("validation")), ray_remote_kwargs={"num_cpus": 0}
    )
    # A URI as it stands Ray Train would read otherwise.
    files, place = (None, storage.location) if storage.is_local else storage.arrow
    kept = ray.train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="validation_top1")
    scaling = ScalingConfig(
        num_workers=config.num_workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": job.threads, **({"GPU": gpus} if gpus else {})},
    )
    while True:
        trainer = TorchTrainer(
            train_worker,
            # By reference: Ray Train's controller would load PyTorch and the models to read it.
            train_loop_config={"job": ray.put(job)},
            scaling_config=scaling,
            run_config=ray.train.RunConfig(
                name=name, storage_path=place, storage_filesystem=files, checkpoint_config=kept
            ),
            validation_config=evaluation if job.validation is not None and config.validation_async else None,
        )
        try:
            return trainer.fit()
        except (ray.train.TrainingFailedError, RayError) as error:
            causes = list(error.worker_failures.values()) if isinstance(error, ray.train.WorkerGroupError) else [error]
            mistakes = [cause for cause in causes if _is_mistake(cause)]
            if mistakes or restarts == _MAX_RESTARTS or not isinstance(error, ray.train.WorkerGroupError):
                reason = _one_line((mistakes or causes)[0])
                raise RunError(f"training stopped: {reason}; the same command continues it") from error
            restarts += 1
            # The others raise, as they cannot reach a process that died; which is noticed first is chance.
            reason = _one_line(causes[0])
            console.print(f"a training process failed ({reason}); going on from the last checkpoint", markup=False)


def _is_mistake(error: BaseException) -> bool:
    return isinstance(error, ZarError) or bool(set(_OURS.findall(str(error))) - {DeviceLostError.__name__})


def _one_line(error: BaseException) -> str:
    """A traceback's last line, which is the message; else the first line, as Ray writes a death."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return _OURS.sub("", lines[-1 if _TRACEBACK in str(error) else 0])
