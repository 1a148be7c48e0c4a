"""MEMO: moves the image tower for each video by the marginal entropy over its views, then forgets that.

Zhang et al., "MEMO: Test Time Robustness via Adaptation and Augmentation", NeurIPS 2022, section 3 and Algorithm 1.
The views are the run's own, segments and crops of the video, where the paper has AugMix copies of a picture.
"""

from __future__ import annotations

import torch

from zar_ray.adaptation.base import Decision, MethodOptions, VideoFeatures
from zar_ray.adaptation.options import MemoConfig
from zar_ray.adaptation.weights import MovingTower, decide_by_moving, unfit_for_steps
from zar_ray.adaptation.zar import marginal_entropy
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses


def unfit_for_memo(model: ClipModel, options: MethodOptions) -> str | None:
    """Why MEMO cannot serve a model; None where it can."""
    reason = unfit_for_steps(model)
    if reason is None and not moving_names(model, options.memo):
        return f"no parameter of its image tower begins with {' or '.join(options.memo.parameters)}"
    return reason


def moving_names(model: ClipModel, options: MemoConfig) -> list[str]:
    """The names of the image tower's parameters that move: all, or those that begin as the options say."""
    names = [name for name, _ in model.clip.visual.named_parameters()]
    return [name for name in names if name.startswith(options.parameters)] if options.parameters else names


def adapt_memo(video: VideoFeatures, classes: PromptedClasses, options: MethodOptions) -> Decision:
    """Moves a copy of the image tower's weights for one video; the model stays as it is, bit for bit.

    Args:
        video: The video, with its pixels and at least one view.
        classes: The candidate classes.
        options: MEMO's update, and the encoder's batch.

    Returns:
        The decision before and after.

    Raises:
        VideoError: See `decide_by_moving`.
    """
    update, model = options.memo, classes.model
    tower = MovingTower(model, moving_names(model, update), options.encoder_batch)
    return decide_by_moving(video, classes, tower, _optimiser(tower, update), marginal_entropy, update.steps)


def _optimiser(tower: MovingTower, update: MemoConfig) -> torch.optim.Optimizer:
    weights = list(tower.weights.values())
    if update.optimiser == "adamw":
        return torch.optim.AdamW(weights, lr=update.lr, weight_decay=update.weight_decay)
    return torch.optim.SGD(weights, lr=update.lr, weight_decay=update.weight_decay, momentum=update.momentum)
