"""MEMO: moves the image tower for each video by the marginal entropy over its views, then forgets that.

Zhang et al., "MEMO: Test Time Robustness via Adaptation and Augmentation", NeurIPS 2022, section 3 and Algorithm 1.
The views are the run's own, segments and crops of the video, where the paper has AugMix copies of a picture.
"""

from __future__ import annotations

from typing import Literal

import torch

from zar_ray.adaptation.base import Shared
from zar_ray.adaptation.weights import MovingStream, MovingTower, moving_method, unfit_for_steps
from zar_ray.adaptation.zar import marginal_entropy
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class MemoConfig(Options):
    """Marginal entropy minimisation (Zhang et al., NeurIPS 2022): the image tower moves for each video."""

    stream: bool = option(
        False,
        "Keep the optimiser's state for the next video, as the authors' code does; weights begin anew. See --order.",
    )
    parameters: tuple[str, ...] = option(
        (), "Beginnings of the names of the image tower's parameters that move; by default all."
    )
    optimiser: Literal["adamw", "sgd"] = option("adamw", "The optimiser.")
    lr: float = option(1e-5, "Learning rate.", gt=0)
    weight_decay: float = option(0.01, "Weight decay.", ge=0)
    momentum: float = option(0.0, "Momentum of sgd; adamw has none.", ge=0, lt=1)
    steps: int = option(1, "Steps a video.", ge=1)


def unfit_for_memo(model: ClipModel, options: MemoConfig) -> str | None:
    """Why MEMO cannot serve a model; None where it can."""
    reason = unfit_for_steps(model)
    if reason is None and not moving_names(model, options):
        return f"no parameter of its image tower begins with {' or '.join(options.parameters)}"
    return reason


def moving_names(model: ClipModel, options: MemoConfig) -> list[str]:
    """The names of the image tower's parameters that move: all, or those that begin as the options say."""
    names = [name for name, _ in model.clip.visual.named_parameters()]
    return [name for name in names if name.startswith(options.parameters)] if options.parameters else names


def open_memo(classes: PromptedClasses, options: MemoConfig, shared: Shared) -> MovingStream:
    """MEMO with one optimiser for all videos; each moves a copy of the image tower's weights, which is then dropped."""
    tower = MovingTower(classes.model, moving_names(classes.model, options), shared.encoder_batch)
    weights, lr, decay = list(tower.weights.values()), options.lr, options.weight_decay
    if options.optimiser == "adamw":
        optimiser: torch.optim.Optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=decay)
    else:
        optimiser = torch.optim.SGD(weights, lr=lr, weight_decay=decay, momentum=options.momentum)
    return MovingStream(classes, tower, optimiser, marginal_entropy, options.steps, keeps_weights=False)


METHOD = moving_method(
    "memo",
    "the image tower moved by the marginal entropy",
    open_memo,
    MemoConfig,
    unfit=unfit_for_memo,
    changes="the image tower",
    source="Zhang et al., NeurIPS 2022",
    reference="zhang2022memo",
)
