"""TENT: moves the image tower's layer norms by the mean entropy of a video's views, for it alone or as a stream.

Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021, section 3. A batch there is so many
pictures; here it is the views of one video. The decision is made after the step: with layer norms, which have no
statistics of a batch, the decision before it would be the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from zar_ray.adaptation.base import Decision, Method, Shared, VideoFeatures, one_by_one
from zar_ray.adaptation.weights import MovingTower, decide_by_moving, unfit_for_steps
from zar_ray.adaptation.zar import mean_entropy
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class TentConfig(Options):
    """Test entropy minimisation (Wang et al., ICLR 2021): the image tower's layer norms move."""

    stream: bool = option(False, "Keep what was learnt for the next video (TENT online), in the manifest's order.")
    optimiser: Literal["adam", "sgd"] = option("sgd", "The optimiser; adam for small images there.")
    lr: float = option(0.00025, "Learning rate.", gt=0)
    momentum: float = option(0.9, "Momentum of sgd; adam has none.", ge=0, lt=1)
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


def adapt_tent(video: VideoFeatures, classes: PromptedClasses, options: TentConfig, shared: Shared) -> Decision:
    """Moves the norms for one video alone (TENT's episodic setting); the model stays as it is, see `TentStream`."""
    return TentStream(classes, options, shared).decide(video)


class TentStream:
    """TENT online: the norms, and the optimiser's momentum, go on from video to video."""

    def __init__(self, classes: PromptedClasses, options: TentConfig, shared: Shared) -> None:
        self._classes = classes
        self._steps = options.steps
        self._tower = MovingTower(classes.model, norm_names(classes.model), shared.encoder_batch)
        weights = list(self._tower.weights.values())
        if options.optimiser == "adam":
            self._optimiser: torch.optim.Optimizer = torch.optim.Adam(weights, lr=options.lr)
        else:
            self._optimiser = torch.optim.SGD(weights, lr=options.lr, momentum=options.momentum)
        self._moved = False

    def decide(self, video: VideoFeatures) -> Decision:
        """Moves the norms by a video's views, and classifies it under them.

        Raises:
            VideoError: See `decide_by_moving`; the norms are as they were before.
        """
        before = {name: value.clone() for name, value in self.state().items()}
        try:
            decision = decide_by_moving(
                video, self._classes, self._tower, self._optimiser, mean_entropy, self._steps, moved=self._moved
            )
        except Exception:
            self.restore(before)
            raise
        self._moved = True
        return decision

    def state(self) -> dict[str, torch.Tensor]:
        """The norms, the optimiser's own tensors, and whether any video has been seen."""
        norms = {f"weights/{name}": value.detach() for name, value in self._tower.weights.items()}
        momenta = {
            f"optimiser/{number}/{name}": value
            for number, held in self._optimiser.state_dict()["state"].items()
            for name, value in held.items()
            if isinstance(value, torch.Tensor)
        }
        return {**norms, **momenta, "moved": torch.tensor(self._moved)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        with torch.no_grad():
            for name, weight in self._tower.weights.items():
                weight.copy_(state[f"weights/{name}"])
        held: dict[int, dict[str, Any]] = {}
        for name, value in state.items():
            if name.startswith("optimiser/"):
                _, number, key = name.split("/")
                held.setdefault(int(number), {})[key] = value.clone()
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": held, "param_groups": groups})
        self._moved = bool(state["moved"])


METHOD = Method(
    "tent",
    "layer norms moved by the mean entropy",
    one_by_one(adapt_tent),
    options=TentConfig,
    needs_views=True,
    needs_pixels=True,
    updates="weights",
    unfit=unfit_for_tent,
    is_stream=lambda options: options.stream,
    open_stream=TentStream,
    reference="wang2021tent",
)
