"""How many steps a training takes, how fast it learns at each of them, and what its optimiser does to which weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn

from zar_ray.models.systems.base import TrainingRule
from zar_ray.training.options import TrainConfig

MULTIPLE = "lr_multiple"
"""What an optimiser's group says of its learning rate, as a multiple of the schedule's."""


@dataclass(frozen=True)
class Schedule:
    """A training's optimiser steps, and those of linear warm-up: if these are more, the peak is never reached.

    The cosine falls as if there were `falling` steps in all; by default those that there are.
    """

    steps: int
    warmup: int
    falling: int | None = None

    @classmethod
    def of(cls, config: TrainConfig, videos: int) -> Schedule:
        """The length that the options give a training on so many videos; of a part of a step, the whole is taken."""

        def steps(epochs: float) -> int:
            # Exact: in floating point, 0.07 epochs of 100 steps are a little more than 7.
            return math.ceil(Fraction(str(epochs)) * videos / config.batch_size)

        return cls(
            steps=steps(config.epochs) if config.steps is None else config.steps,
            warmup=steps(config.warmup_epochs) if config.warmup_steps is None else config.warmup_steps,
            falling=config.cosine_steps,
        )


def learning_rate(step: int, schedule: Schedule, config: TrainConfig) -> float:
    """The learning rate of a step: linear warm-up, then a cosine towards the share `final_lr` of the peak.

    With the cosine from the warm-up's end, step k of a warm-up of W has (k + 1)/W of the peak, and the step after it
    the peak itself.

    With the cosine from the start it is the rate that timm's `CosineLRScheduler` (warm-up from 0, one cycle, no
    prefix) has set by then when it is updated after every step with that step's number, as ViFi-CLIP does.  So step k
    has the rate of update k - 1: none in the first two steps, (k - 1)/W of the peak in the warm-up, and then what a
    cosine over the whole training has fallen to in the meantime.  (Where ViFi-CLIP adds up the gradients of n
    micro-batches it counts those, and is 1 - 1/n of a step ahead of this.)
    """
    falling = schedule.falling or schedule.steps
    if config.cosine_from == "start":
        update = max(0, step - 1)
        if update < schedule.warmup:
            return config.lr * update / schedule.warmup
        return config.lr * _cosine(min(1, update / falling), config.final_lr)
    if step < schedule.warmup:
        return config.lr * (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, falling - schedule.warmup)
    return config.lr * _cosine(min(1, progress), config.final_lr)


def _cosine(progress: float, last: float) -> float:
    """Falls from 1 to `last` while the progress grows from 0 to 1."""
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress))


def optimiser(
    trained: Iterable[tuple[str, nn.Parameter]], rule: TrainingRule, config: TrainConfig
) -> torch.optim.AdamW:
    """AdamW over what is trained.

    Under ``matrices`` weights and embeddings decay, and gains, biases and the logit scale do not, as in CLIP (Radford
    et al., ICML 2021, section 2.5); under ``all`` everything decays, as in ViFi-CLIP. The rule says what never does.
    Parameters whose learning rate is a multiple of the schedule's are groups of their own, with it under `MULTIPLE`:
    ``fusion_lr`` of what the rule calls new, and the rule's own. Names are those in the CLIP's state dict.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trained:
        decays = (config.decays == "all" or parameter.ndim > 1) and not rule.undecayed(name)
        multiple = rule.lr_multiple(name) * (config.fusion_lr if rule.new(name) else 1.0)
        groups[multiple, config.weight_decay if decays else 0.0].append(parameter)
    made = [{"params": one, "weight_decay": decay, MULTIPLE: multiple} for (multiple, decay), one in groups.items()]
    return torch.optim.AdamW(made, lr=config.lr, betas=config.betas)
