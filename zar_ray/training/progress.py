"""How a training goes: what its processes measure a step, and what they keep to go on from."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from ray.train import Checkpoint
from ray.util.queue import Queue

from zar_ray.training.messages import Progress, Validated

# Columns of a training's history, one row a step.
HISTORY = ("loss", "accuracy", "learning_rate", "gradient_norm")

_FILE = "state.pt"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training between two steps, by default before its first: everything that the next step depends on, in one file.

    The order of samples, their augmentation, the learning rate and the generators of every step are pure functions of
    the options and the step, so that the step's number stands for all of them.

    Attributes:
        network: What training has changed, see `VideoTextModel.trained_state`.
        optimiser: AdamW's state.
        history: float64 (step, len(HISTORY)), one row a step.
        averaged: The mean of weights at the ends of epochs, where it is asked for, see `running_mean`.
    """

    step: int = 0
    network: Mapping[str, torch.Tensor] = field(default_factory=dict)
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    history: torch.Tensor = field(default_factory=lambda: torch.empty(0, len(HISTORY), dtype=torch.float64))
    averaged: Mapping[str, torch.Tensor] = field(default_factory=dict)
    averaged_epochs: int = 0
    validations: tuple[Validated, ...] = ()

    def save(self, folder: str | Path) -> None:
        """Writes it into a checkpoint's folder."""
        torch.save(self, Path(folder) / _FILE)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> TrainingState:
        """Reads it from a checkpoint, on the CPU; besides these two, tensors and plain values alone are unpickled."""
        with checkpoint.as_directory() as folder, torch.serialization.safe_globals([cls, Validated]):
            return torch.load(Path(folder) / _FILE, map_location="cpu", weights_only=True)


def running_mean(
    mean: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], count: int
) -> dict[str, torch.Tensor]:
    """The mean of weights at the ends of so many epochs, the new ones included (SWA: Izmailov et al., UAI 2018).

    Returns:
        float32 on the CPU, and never a view.
    """
    new = {name: value.detach().float().cpu() for name, value in weights.items()}
    return {name: torch.lerp(mean.get(name, value), value, 1 / count) for name, value in new.items()}


class Meter:
    """Takes in every step of all processes; now and then the first process sends the means to whoever listens.

    The history, float64 (steps done, len(HISTORY)), is that of earlier sessions; the batch size is that of a step, over
    all workers; the listener gets `Progress`, and is None in all processes but the first.

    Attributes:
        waited: Seconds in which this process has waited for pixels since the means were sent; to be added to.
    """

    _SECONDS = 2.0

    def __init__(self, history: torch.Tensor, batch_size: int, workers: int, listener: Queue | None) -> None:
        self._earlier = history
        self._steps: list[torch.Tensor] = []
        self._batch_size = batch_size
        self._workers = workers
        self._listener = listener
        self._since, self._sent, self.waited = time.monotonic(), 0, 0.0

    def add(self, means: torch.Tensor, rate: float, norm: torch.Tensor) -> None:
        """Takes in one step; all processes must, in step.

        Args:
            means: float32 (2,), this process's part of the batch's mean loss, and of the share that was right.
            rate: The learning rate.
            norm: float32 (), the gradient's norm, equal in all processes.
        """
        if self._workers > 1:
            torch.distributed.all_reduce(means)
        self._steps.append(torch.stack([*means, means.new_full((), rate), norm.to(means)]))
        if len(self._steps) == 1 or time.monotonic() - self._since >= self._SECONDS:
            self.send()

    def history(self) -> torch.Tensor:
        """float64 (steps done, len(HISTORY)), on the CPU."""
        if not self._steps:
            return self._earlier
        # On the CPU first: Apple's GPUs have no float64.
        return torch.cat([self._earlier, torch.stack(self._steps).cpu().double()])

    def send(self) -> None:
        """Sends the means over the steps since the last time, if there were any."""
        new = self._steps[self._sent :]
        if self._listener is None or not new:
            return
        loss, accuracy, _, norm = torch.stack(new).cpu().double().mean(dim=0).tolist()
        seconds = max(time.monotonic() - self._since, 1e-9)
        device = new[-1].device
        self._listener.put(
            Progress(
                step=len(self._earlier) + len(self._steps),
                loss=loss,
                accuracy=accuracy,
                learning_rate=float(new[-1][2]),
                gradient_norm=norm,
                videos_per_second=len(new) * self._batch_size / seconds,
                data_wait_share=min(1.0, self.waited / seconds),
                gpu_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
                gpu_utilisation=_gpu_utilisation(device),
            )
        )
        self._since, self._sent, self.waited = time.monotonic(), len(self._steps), 0.0


def _gpu_utilisation(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    # What PyTorch asks: NVIDIA's package or AMD's.
    own = (("pynvml", "NVMLError"), ("amdsmi", "AmdSmiException"))
    refusals = tuple(getattr(sys.modules[package], name) for package, name in own if package in sys.modules)
    try:
        return torch.cuda.utilization(device) / 100
    # The package is not there, no driver answers, or it is a part of a GPU, which has no figure.
    except (ModuleNotFoundError, RuntimeError, *refusals):
        return None
