"""TENT: moves the image tower's layer norms by the mean entropy of a video's views, for it alone or as a stream.

Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021, section 3. A batch there is so many
pictures; here it is the views of one video. The decision is made after the step: with layer norms, which have no
statistics of a batch, the decision before it would be the model's own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from zar_ray.adaptation.base import Shared
from zar_ray.adaptation.weights import MovingStream, MovingTower, moving_method, unfit_for_steps
from zar_ray.adaptation.zar import mean_entropy
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class TentConfig(Options):
    """Test entropy minimisation (Wang et al., ICLR 2021): the image tower's layer norms move."""

    stream: bool = option(False, "Keep what was learnt for the next video (TENT online); see --order.")
    optimiser: Literal["adam", "sgd"] = option("sgd", "The optimiser; adam for small images there.")
    lr: float = option(0.00025, "Learning rate.", gt=0)
    momentum: float = option(0.9, "Momentum of sgd; adam has none.", ge=0, lt=1)
    nesterov: bool = option(True, "Nesterov's momentum, where sgd has any.")
    steps: int = option(1, "Steps a video.", ge=1)


def unfit_for_tent(model: ClipModel, options: TentConfig) -> str | None:
    """Why TENT cannot serve a model; None where it can."""
    visual = model.clip.visual
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in visual.modules()):
        return "its image tower has batch norms, whose statistics TENT takes from batches of pictures"
    if not norm_names(model):
        return "its image tower has no layer norm with a gain and a bias"
    return unfit_for_steps(model)


def norm_names(model: ClipModel) -> list[str]:
    """The gains and biases of the image tower's layer and group norms, as it names them."""
    return [
        f"{place}.{name}"
        for place, module in model.clip.visual.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for name, _ in module.named_parameters(recurse=False)
    ]


def open_tent(classes: PromptedClasses, options: TentConfig, shared: Shared) -> MovingStream:
    """TENT online: the norms, and the optimiser's momentum, go on from video to video."""
    tower = MovingTower(classes.model, norm_names(classes.model), shared.encoder_batch)
    weights = list(tower.weights.values())
    if options.optimiser == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(weights, lr=options.lr)
    else:
        nesterov = options.nesterov and options.momentum > 0
        optimiser = torch.optim.SGD(weights, lr=options.lr, momentum=options.momentum, nesterov=nesterov)
    return MovingStream(classes, tower, optimiser, mean_entropy, options.steps, keeps_weights=True)


METHOD = moving_method(
    "tent",
    "layer norms moved by the mean entropy",
    open_tent,
    TentConfig,
    unfit=unfit_for_tent,
    changes="the image tower's layer norms",
    source="Wang et al., ICLR 2021",
    reference="wang2021tent",
)
