"""What drops parts of a network while it trains: stochastic depth, and dropout of attention, prompts and a head.

The published trainings' own, as their official code computes them:

- EZ-CLIP's stochastic depth (Huang et al., ECCV 2016) drops what the attention or the MLP of a block adds to the
  residual stream, and its attention loses weights at the same rate. The rate grows linearly over the layers of both
  towers, from 0 in the first to its whole in the image tower's last. The official code has the tokens in the first
  dimension where its function takes samples, so a draw falls on a position: of all images or texts of the pass, and in
  the attention between frames of all views' frames of one number.
- EZ-CLIP's dropout of temporal prompts falls on their numbers, before they meet the frames; a pass's views share it.
- Dropout within ActionCLIP's head ``Transf_cls`` is that of PyTorch's encoder layer: of attention weights, within the
  feed-forward part, and of what both add.

All of it acts where a module is in training mode alone, so never in an evaluation. It draws from PyTorch's generator of
the device; whoever trains seeds that before every pass. Recomputed activations (gradient checkpointing) draw the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.ops import stochastic_depth

from zar_ray.errors import ConfigError
from zar_ray.models.blocks import unfit_block
from zar_ray.models.clip import ClipModel
from zar_ray.models.parts import FUSION, PROMPT_DROPOUT
from zar_ray.models.systems.registry import rule_of
from zar_ray.training.options import TrainConfig


def attach_regularisation(model: ClipModel, config: TrainConfig) -> tuple[nn.Module, ...]:
    """Sets what is dropped in training, by `drop_path`, `attention_dropout`, `prompt_dropout` and `head_dropout`.

    Stochastic depth and dropout of attention act in each tower whose layers hold a parameter that takes gradients.

    Returns:
        The modules that drop while they are in training mode; none where all rates are 0, and nothing is changed then.

    Raises:
        ConfigError: The model has nothing that a rate could be of, or it is not trained.
    """
    dropping: list[nn.Module] = []
    for option, rate in (("--drop-path", config.drop_path), ("--attention-dropout", config.attention_dropout)):
        if not rate:
            continue
        if not model.frame_independent and not rule_of(model.architecture).drops_layers:
            # What passes between frames beside the branches would be dropped as nothing published does it.
            raise ConfigError(f"{option}: not for {model.name}, whose frames see each other; leave it away")
        for stack in _trained_stacks(model, option, config.trains):
            # A text tower's layers have the rates of the image tower's of the same number.
            image = getattr(model.clip.visual, "transformer", None)
            last = max(1, len((image or stack).resblocks) - 1)
            for layer, block in enumerate(stack.resblocks):
                own = rate * min(layer / last, 1.0)
                if option == "--attention-dropout":
                    block.attn.dropout = own
                    dropping.append(block.attn)
                    continue
                # open_clip's blocks put out each branch through a module, an identity in CLIP's.
                for branch in (block.ls_1, block.ls_2):
                    branch.register_forward_hook(partial(_drop_positions, own))
                    dropping.append(branch)
    if config.prompt_dropout:
        dropout = getattr(getattr(model.clip.visual, "transformer", None), PROMPT_DROPOUT, None)
        if dropout is None:
            raise ConfigError(f"--prompt-dropout: {model.name} has no prompts that could drop numbers; leave it away")
        dropout.p = config.prompt_dropout
        dropping.append(dropout)
    if config.head_dropout:
        dropping.append(_head_with_dropout(model, config.head_dropout, config.trains))
    return tuple(dropping)


def _trained_stacks(model: ClipModel, option: str, trains: str) -> list[Any]:
    """The transformers of the towers that have a trained parameter in them."""
    towers = {"image": model.clip.visual, "text": model.text_tower}
    stacks = []
    for name, tower in towers.items():
        stack = getattr(tower, "transformer", None)
        if not any(parameter.requires_grad for parameter in (tower if stack is None else stack).parameters()):
            continue
        blocks = getattr(stack, "resblocks", None)
        reason = "it has no transformer blocks of open_clip's" if blocks is None else unfit_block(blocks)
        if reason is not None:
            raise ConfigError(f"{option}: not for the {name} tower of {model.name}: {reason}; leave it away")
        stacks.append(stack)
    if not stacks:
        raise ConfigError(f"{option}: --trains {trains} trains no layers of {model.name}'s towers; leave it away")
    return stacks


def _drop_positions(rate: float, branch: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    """(n, tokens, W) to the same, without the positions drawn, and the others scaled up for them."""
    return stochastic_depth(output.transpose(0, 1), rate, "row", branch.training).transpose(0, 1)


def _head_with_dropout(model: ClipModel, rate: float, trains: str) -> nn.Module:
    head = getattr(model.clip, FUSION, None)
    if head is None or not any(isinstance(module, nn.Dropout) for module in head.modules()):
        raise ConfigError(f"--head-dropout: {model.name} has no head with dropout; leave it away")
    if not any(parameter.requires_grad for parameter in head.parameters()):
        raise ConfigError(f"--head-dropout: --trains {trains} does not train {model.name}'s head; leave it away")
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = rate
    return head
