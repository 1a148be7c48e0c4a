"""What a training goes on from: everything that the next step depends on, in one file.

The order of samples, their augmentation, the learning rate and the generators of every step are pure functions of the
options and the step, so that the step's number stands for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zar_ray.training.progress import HISTORY, Validated

_FILE = "state.pt"


def no_history() -> torch.Tensor:
    """The history of a training that has not begun."""
    return torch.empty(0, len(HISTORY), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class AveragedWeights:
    """The running mean of weights at the ends of epochs (SWA: Izmailov et al., UAI 2018).

    Attributes:
        count: Epochs averaged.
        tensors: Their mean, float32 on the CPU; empty before the first.
    """

    count: int = 0
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def with_(self, weights: Mapping[str, torch.Tensor]) -> AveragedWeights:
        """The mean with one epoch more."""
        new = {name: value.detach().float().cpu().clone() for name, value in weights.items()}
        if self.count:
            new = {name: torch.lerp(self.tensors[name], value, 1 / (self.count + 1)) for name, value in new.items()}
        return AveragedWeights(self.count + 1, new)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training between two steps; by default before its first.

    Attributes:
        step: Steps done.
        network: What training has changed, see `VideoTextModel.trained_state`.
        optimiser: AdamW's state.
        history: float64 (step, len(HISTORY)), one row a step.
        averaged: The mean over epochs, where it is asked for.
        validations: The evaluations so far.
        config: The options, as JSON values; for whoever looks at the file.
    """

    step: int = 0
    network: Mapping[str, torch.Tensor] = field(default_factory=dict)
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    history: torch.Tensor = field(default_factory=no_history)
    averaged: AveragedWeights = field(default_factory=AveragedWeights)
    validations: tuple[Validated, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Writes it into a checkpoint's folder."""
        content = {
            **vars(self),
            "averaged": vars(self.averaged),
            "validations": [vars(one) for one in self.validations],
        }
        torch.save(content, Path(folder) / _FILE)

    @classmethod
    def load(cls, folder: str | Path) -> TrainingState:
        """Reads it from a checkpoint's folder, on the CPU; nothing but tensors and plain values is unpickled."""
        content = torch.load(Path(folder) / _FILE, map_location="cpu", weights_only=True)
        averaged = AveragedWeights(**content.pop("averaged"))
        validations = tuple(Validated(**one) for one in content.pop("validations"))
        return cls(**content, averaged=averaged, validations=validations)
