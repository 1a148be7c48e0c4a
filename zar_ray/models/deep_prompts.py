"""Learnt prompt vectors in the layers of both towers, as ViFi-CLIP trains them with both towers frozen.

The design is the vision-language prompting of ViFi-CLIP's official code (Rasheed et al., CVPR 2023), with n vectors
and a depth d for both towers:

- image tower: n vectors stand behind the patches when they enter, without positions and before the first norm; what
  has become of them is replaced by n others in front of each of the layers 1 to d - 1, counted from 0;
- text tower: n vectors stand between the start of text and the class name, with the positions there, as a learned
  context does; in front of the layers 1 to d - 1 they too are replaced by others.

Each tower holds its vectors as a parameter ``deep_prompts`` (d, n, W), so that state dicts, checkpoints and
fingerprints have them; open_clip's own modules run, and hooks put the vectors into their inputs. The architecture of
a model with them bears their sizes under ``deep_prompts``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from zar_ray.errors import ModelError
from zar_ray.models.parts import DEEP_PROMPTS, require_class_token

DEVIATION = 0.02  # of new vectors, as in the official code


def attach_deep_prompts(clip: Any, vectors: int, depth: int, generator: torch.Generator | None = None) -> None:
    """Gives both towers of an open_clip CLIP new prompt vectors, n a layer in d layers, from a normal distribution.

    Raises:
        ModelError: The towers are not transformers of so many layers.
    """
    require_class_token(clip, "prompt vectors in layers")
    visual, text = clip.visual, getattr(clip, "text", clip)
    layers = min(len(tower.transformer.resblocks) for tower in (visual, text))
    if depth > layers:
        raise ModelError(f"--prompt-depth {depth}: a tower of this model has {layers} layers; choose a smaller depth")
    for tower in (visual, text):
        blocks, width = tower.transformer.resblocks, tower.positional_embedding.shape[1]
        drawn = torch.randn(depth, vectors, width, generator=generator) * DEVIATION
        tower.register_parameter(DEEP_PROMPTS, nn.Parameter(drawn.to(tower.positional_embedding)))
        first = -vectors if tower is visual else 1
        for layer in range(1, depth):
            blocks[layer].register_forward_pre_hook(partial(_replace, tower, layer, first))
    visual.ln_pre.register_forward_pre_hook(partial(_append, visual))


def with_layer_prompts(x: torch.Tensor, prompts: torch.Tensor | None, layer: int, first: int) -> torch.Tensor:
    """What a layer, from 0, reads of (B, tokens, W): with its own prompt vectors of (d, n, W), if it has any.

    They take n places from the `first` on, which counts from the end where it is negative.
    """
    if prompts is None or not 0 < layer < len(prompts):
        return x
    first = first % x.shape[1]
    own = prompts[layer].to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x[:, :first], own, x[:, first + own.shape[1] :]], dim=1)


def with_first_prompts(x: torch.Tensor, prompts: torch.Tensor | None) -> torch.Tensor:
    """An image's tokens (B, tokens, W) before the first norm, with a tower's vectors behind them if it has any."""
    return x if prompts is None else torch.cat([x, prompts[0].to(x.dtype).expand(len(x), -1, -1)], dim=1)


def has_other_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether something hooks into modules of a tower besides what puts prompt vectors there."""
    hooks = (hook for one in modules for hook in (*one._forward_pre_hooks.values(), *one._forward_hooks.values()))
    return any(getattr(hook, "func", None) not in (_append, _replace) for hook in hooks)


def _append(tower: Any, _norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (with_first_prompts(inputs[0], tower.deep_prompts), *inputs[1:])


def _replace(tower: Any, layer: int, first: int, _block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (with_layer_prompts(inputs[0], tower.deep_prompts, layer, first), *inputs[1:])
