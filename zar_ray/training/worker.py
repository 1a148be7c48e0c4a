"""What every process of the Ray Train job runs."""

from __future__ import annotations

import math
import tempfile
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.util.queue import Queue
from torch.nn.functional import cross_entropy

from zar_ray.config import TrainConfig
from zar_ray.data.manifest import VideoRow
from zar_ray.models.architecture import Architecture, build_clip
from zar_ray.models.checkpoints import load_weights
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model
from zar_ray.training.recipe import VideoTextModel, learning_rate, optimiser
from zar_ray.training.samples import TrainingVideos
from zar_ray.video.transforms import Preprocessing

STATE = "state.pt"
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainingJob:
    """What every process is told.

    Attributes:
        config: The options.
        videos: The labelled videos that can be read.
        class_names: The class texts, in label-id order.
        architecture: What to build from scratch; None starts from the options' weights.
        threads: CPU threads a process.
        progress: Where the first process says how far it is, if anyone listens.
    """

    config: TrainConfig
    videos: tuple[VideoRow, ...]
    class_names: tuple[str, ...]
    architecture: Architecture | None
    threads: int
    progress: Queue | None


@dataclass(frozen=True)
class Progress:
    """How far training is.

    Attributes:
        step: Steps done.
        loss: Mean loss over the last steps.
        accuracy: Share of training videos that were right in the last steps.
        learning_rate: Of the last step.
        videos_per_second: Over the last steps, all processes together.
    """

    step: int
    loss: float
    accuracy: float
    learning_rate: float
    videos_per_second: float


def initial_model(job: TrainingJob) -> ClipModel:
    """The model that training starts from; from scratch, the same weights in every process."""
    if job.architecture is None:
        return load_model(job.config, "cpu")
    torch.manual_seed(job.config.seed)
    size = job.architecture["vision_cfg"]["image_size"]
    clip = build_clip(job.architecture)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(job.config.initial_logit_scale))
    return ClipModel(clip, str(job.config.architecture), Preprocessing(input_size=size), job.architecture)


def train_worker(arguments: dict[str, Any]) -> None:
    """Trains to the last step, from the last checkpoint of the same run where there is one."""
    job: TrainingJob = arguments["job"]
    config = job.config
    torch.set_num_threads(job.threads)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()

    model = initial_model(job)
    token_ids = model.tokenize([f"{config.context} {name.replace('_', ' ')}." for name in job.class_names])
    plain = VideoTextModel(model)
    started = _resume(plain)
    network = ray.train.torch.prepare_model(plain)
    device = next(network.parameters()).device
    steps = optimiser(network, config)
    if started is not None:
        steps.load_state_dict(started["optimiser"])
    first = started["step"] if started else 0

    videos = TrainingVideos(
        job.videos,
        model.preprocessing,
        config.frames,
        config.seed,
        config.decoder,
        config.cache_frames,
        config.decode_threads,
        config.decode_timeout,
    )
    dtype = _AUTOCAST[config.precision]
    meter = _Meter(config.batch_size, workers, job.progress if rank == 0 else None)
    try:
        batches = videos.batches(range(first, config.steps), config.batch_size, rank, workers)
        for step, batch in enumerate(batches, first):
            rate = learning_rate(step, config)
            for group in steps.param_groups:
                group["lr"] = rate
            labels = batch.labels.to(device)
            with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
                logits = network(batch.pixels.to(device), token_ids.to(device))
            loss = cross_entropy(logits.float(), labels)
            steps.zero_grad(set_to_none=True)
            loss.backward()
            steps.step()
            plain.bound_logit_scale()
            meter.add(step + 1, loss, (logits.argmax(dim=1) == labels).float().mean(), rate)
            done = step + 1
            if done % config.checkpoint_steps == 0 or done == config.steps:
                _report(plain, steps, done, meter.means(), rank)
    finally:
        videos.close()


def _resume(network: VideoTextModel) -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)
    load_weights(network.clip, state["model"], f"checkpoint of step {state['step']}")
    return state


def _report(
    network: VideoTextModel, steps: torch.optim.Optimizer, step: int, means: tuple[float, float], rank: int
) -> None:
    """Every process reports; the first one brings the checkpoint, as they are all equal."""
    metrics = {"step": step, "loss": means[0], "accuracy": means[1]}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": network.clip.state_dict(), "optimiser": steps.state_dict(), "step": step}
        torch.save(state, Path(folder) / STATE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


class _Meter:
    """Means over the last steps, of all processes together; every few seconds they are sent to whoever listens."""

    _STEPS = 25
    _SECONDS = 2.0

    def __init__(self, batch_size: int, workers: int, queue: Queue | None) -> None:
        self._batch_size = batch_size
        self._workers = workers
        self._queue = queue
        self._recent: deque[torch.Tensor] = deque(maxlen=self._STEPS)
        self._since, self._steps = time.monotonic(), 0

    def add(self, step: int, loss: torch.Tensor, right: torch.Tensor, rate: float) -> None:
        """Takes in one step of this process; all processes must, in step."""
        values = torch.stack([loss.detach(), right])
        if self._workers > 1:
            torch.distributed.all_reduce(values)
        self._recent.append(values / self._workers)
        self._steps += 1
        seconds = time.monotonic() - self._since
        if self._queue is None or (step > 1 and seconds < self._SECONDS):
            return
        loss_now, right_now = self.means()
        self._queue.put(Progress(step, loss_now, right_now, rate, self._steps * self._batch_size / max(seconds, 1e-9)))
        self._since, self._steps = time.monotonic(), 0

    def means(self) -> tuple[float, float]:
        """Loss, and share of videos that were right, over the last steps."""
        loss, right = torch.stack(list(self._recent)).mean(dim=0).tolist()
        return loss, right
