"""What every process of the Ray Train job runs."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.util.queue import Queue
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from zar_ray.data.class_texts import ClassPrompts, read_context_file
from zar_ray.errors import RunError
from zar_ray.models.architecture import Architecture, build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.device_faults import is_out_of_memory
from zar_ray.models.fitting import Fitting
from zar_ray.models.loading import load_model
from zar_ray.training import samples
from zar_ray.training.augmentation import mix
from zar_ray.training.messages import Validated
from zar_ray.training.network import VideoTextModel, matching_loss, save_trained
from zar_ray.training.options import TrainConfig
from zar_ray.training.progress import Meter, TrainingState, running_mean
from zar_ray.training.schedule import MULTIPLE, Schedule, learning_rate, optimiser
from zar_ray.training.validation import ValidationSet, validate
from zar_ray.training.videos import VideoTable
from zar_ray.training.workers import Growth, WorkerNeeds
from zar_ray.video.pixels import normalise, send, to_device
from zar_ray.video.transforms import Preprocessing, imagenet_preprocessing

NOT_VALIDATED = -1.0
"""What a checkpoint without an evaluation reports as its top-1, so that one with any is better."""

_LESS_MEMORY = "--grad-checkpointing takes less and changes no number; or leave the process more"

_Decoded = tuple[samples.MicroBatch, torch.Tensor]


@dataclass(frozen=True)
class TrainingJob:
    """What every process is told.

    Attributes:
        videos: The videos that can be read, each with a label.
        prompts: The class texts, in label-id order.
        architecture: What to build from scratch; None starts from the options' weights.
        needs: What every process has to itself.
        validation: What to evaluate on during training, if anything.
        progress: Where the first process says how far it is, and any what ended it.
    """

    config: TrainConfig
    videos: VideoTable
    prompts: ClassPrompts
    architecture: Architecture | None
    needs: WorkerNeeds
    validation: ValidationSet | None
    progress: Queue

    @property
    def schedule(self) -> Schedule:
        """Its steps and warm-up."""
        return Schedule.of(self.config, len(self.videos))

    def epochs(self, step: int) -> float:
        """Epochs done after so many steps."""
        return step * self.config.batch_size / len(self.videos)

    def ends_epoch(self, step: int, every: float = 1.0) -> bool:
        """Whether the last of so many steps crossed the end of an epoch, or of every so-manieth."""
        return math.floor(self.epochs(step) / every) > math.floor(self.epochs(step - 1) / every)


def initial_network(job: TrainingJob) -> VideoTextModel:
    """The network before its first step; from scratch too, the same in every process."""
    config = job.config
    torch.manual_seed(config.seed)
    if job.architecture is None:
        model = load_model(config, "cpu")
    else:
        size = job.architecture["vision_cfg"]["image_size"]
        clip = build_clip(job.architecture)
        with torch.no_grad():
            clip.logit_scale.fill_(math.log(config.initial_logit_scale))
        model = ClipModel(clip, str(config.architecture), Preprocessing(input_size=size), job.architecture)
    if config.pixels == "imagenet":
        model.preprocessing = imagenet_preprocessing(model.preprocessing.input_size)
    return VideoTextModel(model, job.prompts, config)


def whole_micro_batches(config: TrainConfig) -> str | None:
    """Why a micro-batch cannot pass in parts that add up to the same numbers; None where it can."""
    if config.loss == "matching":
        return "whose videos --loss matching compares with each other"
    if config.attention_dropout or config.head_dropout:
        return "for all of which --attention-dropout and --head-dropout draw together"
    return None


def weightings(step: int, config: TrainConfig) -> list[tuple[float | None, float]]:
    """The weights of the network that a step's losses are of, by the start's share in them, with each loss's weight.

    The first are its own, None.
    """
    own: list[tuple[float | None, float]] = [(None, 1.0)]
    if not config.interpolated_loss:
        return own
    share = samples.generator(config.seed, "interpolation", step).uniform(*config.interpolated_share)
    return [*own, (float(share), config.interpolated_loss)]


def train_worker(arguments: dict[str, Any]) -> None:
    """Trains to the last step, from the last checkpoint of the same run where there is one.

    Before it where there is room for more processes and some are lacking: then the last checkpoint says ``grows``.
    """
    job: TrainingJob = ray.get(arguments["job"])
    torch.set_num_threads(job.needs.threads)
    checkpoint = ray.train.get_checkpoint()
    try:
        state = TrainingState() if checkpoint is None else TrainingState.of(checkpoint)
        _Worker(job, state, arguments["lacking"]).train()
    except Exception as error:
        # Ray Train takes a process for finished that ends between two of its looks at it, whatever it ended with.
        job.progress.put(" ".join(str(error).split()) or type(error).__name__)
        raise


def _next(batches: Iterator[_Decoded]) -> _Decoded:
    """The next micro-batch; where there was no memory to decode it, no smaller pass of the model would help."""
    with _memory_suffices(
        "out of memory while videos were decoded; decode fewer ahead with --decode-threads or --decode-workers, or"
        " leave the process more"
    ):
        return next(batches)


@contextmanager
def _memory_suffices(otherwise: str) -> Iterator[None]:
    """Ends a training with a message where there is no memory for something that cannot be done in smaller pieces."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(otherwise) from error


class _Worker:
    """One process's part of a training, which goes on from a state; so many processes are lacking."""

    def __init__(self, job: TrainingJob, state: TrainingState, lacking: int) -> None:
        group = ray.train.get_context()
        self.job, self.config = job, job.config
        self.rank, self.workers = group.get_world_rank(), group.get_world_size()
        self.network = initial_network(job)
        if state.step:
            self.network.load_trained_state(state.network, f"checkpoint of step {state.step}")
        # In place; see `_exchange_gradients` for what it would do to them besides.
        ray.train.torch.prepare_model(self.network, parallel_strategy=None)
        self.device = next(self.network.parameters()).device
        self.optimiser = optimiser(self.network.trained(), self.network.rule, self.config)
        if state.step:
            self.optimiser.load_state_dict(dict(state.optimiser))
        self.schedule = job.schedule
        self.passes = Fitting("videos of a micro-batch at once")
        self.state = replace(state, network={}, optimiser={})  # which are loaded, and not to be kept twice
        listener = job.progress if self.rank == 0 else None
        self.meter = Meter(state.history, self.config.batch_size, self.workers, listener)
        self.growth = Growth(lacking, job.needs, self.rank, self.workers, self.device)

    def train(self) -> None:
        """Takes all steps that are left, unless there is room for more processes before."""
        config, steps = self.config, range(self.state.step, self.schedule.steps)
        own = samples.micro_batches(steps, len(self.job.videos), config, self.rank, self.workers)
        reader = samples.SampleReader(self.job.videos, self.network.model.preprocessing, config)
        if config.decode_workers:
            decoders = samples.decoder_processes(reader, config.decode_workers)
        else:
            decoders = samples.decoder_threads(reader, samples.threads_ahead(config, self.device))
        with decoders as submit, closing(self.growth):
            batches = samples.decoded_batches(own, submit, samples.patience(config))
            for step in steps:
                self._step(step, batches)
                grows = self.growth.due()
                self._after(step + 1, grows)
                if grows:
                    return

    def _step(self, step: int, batches: Iterator[_Decoded]) -> None:
        config = self.config
        rate = learning_rate(step, self.schedule, config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group[MULTIPLE]
        taken: list[_Decoded] = []
        whole = whole_micro_batches(config)
        least = config.micro_batch if whole else 1
        means = self.passes.once(config.micro_batch, partial(self._accumulate, batches, taken), least)
        if means is None:
            what = f"a micro-batch of {least}, {whole}" if whole else "one video at a time"
            raise RunError(f"out of memory with {what}; {_LESS_MEMORY}")
        with _memory_suffices(
            "out of memory updating the weights, with an optimiser's state twice their size; leave the process more, or"
            " train less with --trains"
        ):
            self._update(means, rate)

    def _update(self, means: torch.Tensor, rate: float) -> None:
        """Moves the weights by the gradient of all processes."""
        config = self.config
        self._exchange_gradients()
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if config.clip_grad is not None:
            clip_grads_with_norm_(parameters, config.clip_grad, norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.network.bound_logit_scale()
        self.meter.add(means, rate, norm)

    def _accumulate(self, batches: Iterator[_Decoded], taken: list[_Decoded], at_once: int) -> torch.Tensor:
        """Adds up this process's share of a step's gradient, from the start; returns what `_backward` does, (2,).

        Micro-batches are taken as they are decoded, and those `taken` before memory ran out once more.
        """
        self.optimiser.zero_grad(set_to_none=True)
        whole, means = self.config.batch_size // self.config.micro_batch, []
        # Some take one more than others where a step's micro-batches cannot be shared evenly.
        for turn in range(len(range(self.rank, whole, self.workers))):
            if turn == len(taken):
                waiting = time.monotonic()
                taken.append(_next(batches))
                self.meter.waited += time.monotonic() - waiting
            means.append(self._backward(*taken[turn], whole, at_once))
        return torch.stack(means).sum(dim=0) / whole

    def _backward(self, which: samples.MicroBatch, decoded: torch.Tensor, whole: int, at_once: int) -> torch.Tensor:
        """Adds one of a step's `whole` micro-batches to its gradient; returns its loss and the share right, (2,)."""
        config = self.config
        frames = send(decoded, self.device).flatten(0, 1)
        pixels = normalise(frames, self.network.model.preprocessing).unflatten(0, decoded.shape[:2])
        classes = [cast(int, self.job.videos[sample.video].label_id) for sample in which.samples]
        (labels,) = to_device([np.array(classes)], self.device)
        # Whatever draws within the model draws the same after a resumption, and whoever takes the micro-batch.
        key = which.step, which.number
        draws = int(samples.generator(config.seed, "model", *key).integers(2**62))
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        if config.loss == "matching":
            texts = self.network.draw_texts(classes, samples.generator(config.seed, "texts", *key))
            torch.manual_seed(draws)
            with mixed:
                similarities, frames = self.network(pixels, texts)
            loss = matching_loss(similarities, frames, labels, config.motion_loss)
            (loss / whole).backward()
            return torch.stack([loss.detach(), (labels[similarities.argmax(dim=1)] == labels).float().mean()])
        rng = samples.generator(config.seed, "mix", *key)
        pixels, targets = mix(pixels, labels, len(self.job.prompts.names), config.augment, rng)
        means = torch.zeros(2, device=self.device)
        for of_start, weight in weightings(which.step, config):
            with self.network.towards_start(of_start):
                for part, wanted in zip(pixels.split(at_once), targets.split(at_once), strict=True):
                    torch.manual_seed(draws)
                    with mixed:
                        logits = self.network(part)
                    share = len(part) / len(pixels)
                    loss = share * cross_entropy(logits.float(), wanted)
                    (weight * loss / whole).backward()
                    if of_start is None:
                        right = logits.argmax(dim=1) == wanted.argmax(dim=1)
                        means += torch.stack([loss.detach(), share * right.float().mean()])
        return means

    def _exchange_gradients(self) -> None:
        """Adds up the gradients of all processes, once a step and after each has its own.

        Not while they are computed, as DistributedDataParallel does: a process that runs out of memory begins anew,
        and the others must be able to wait for it.
        """
        if self.workers == 1:
            return
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        whole = torch.cat([one.flatten() for one in gradients])
        torch.distributed.all_reduce(whole)
        for one, summed in zip(gradients, whole.split([one.numel() for one in gradients]), strict=True):
            one.copy_(summed.view_as(one))

    def _after(self, step: int, grows: bool) -> None:
        """What may follow a step: averaging, evaluation, a checkpoint."""
        job, config = self.job, self.config
        over, epoch_over = step == self.schedule.steps, job.ends_epoch(step)
        if config.average_from is not None and epoch_over and job.epochs(step) > config.average_from:
            epochs = self.state.averaged_epochs + 1
            averaged = running_mean(self.state.averaged, self.network.trained_state(), epochs)
            self.state = replace(self.state, averaged=averaged, averaged_epochs=epochs)
        due = job.validation is not None and (over or job.ends_epoch(step, config.validation_epochs))
        top1 = self._validate(step) if due and not config.validation_async else NOT_VALIDATED
        if due or over or epoch_over or grows or step % config.checkpoint_steps == 0:
            metrics = {"step": step, "validation_top1": top1, "grows": grows and not over}
            self._report(metrics, evaluate=due and config.validation_async)

    def _validate(self, step: int) -> float:
        assert self.job.validation is not None
        prompts = self.job.validation.prompts
        if self.network.context is not None:  # as it is now
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "context.safetensors"
                save_trained(self.network, file, {})
                prompts = replace(prompts, context=read_context_file(file))
        self.network.eval()  # which drops nothing
        counts = validate(self.network.model, prompts, self.job.validation, self.config, self.rank, self.workers)
        self.network.train()
        found = Validated(step, self.job.epochs(step), *counts)
        self.state = replace(self.state, validations=(*self.state.validations, found))
        if self.rank == 0:
            self.job.progress.put(found)
        return found.top1

    def _report(self, metrics: dict[str, Any], evaluate: bool) -> None:
        """Every process reports; the first one brings the checkpoint, as they are all equal."""
        self.meter.send()
        if self.rank != 0:
            ray.train.report(metrics)
            return
        made = {"network": self.network.trained_state(), "optimiser": self.optimiser.state_dict()}
        state = replace(self.state, step=metrics["step"], history=self.meter.history(), **made)
        with tempfile.TemporaryDirectory() as folder:
            state.save(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder), validation=evaluate)
