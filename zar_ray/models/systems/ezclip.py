"""EZ-CLIP's additions to a frozen CLIP: adapters in both towers, and prompts that let a view's frames see each other.

The design is EZ-CLIP's (Ahmad et al., "EZ-CLIP: Efficient Zeroshot Video Action Recognition", 2023, section 3), as its
official code computes it:

- in every block of both towers, the residual stream passes an adapter (down to a quarter of the width, GELU, up again,
  added to what came in) between the attention and the MLP;
- in every block of the image tower, each frame's prompt vector plus the mean of the frame's tokens passes the block's
  own first norm and its attention over the view's T frames, without a residual and without the adapter; the outcome
  stands behind the frame's tokens, as one more, while the block runs, and goes with it;
- a time embedding, which the official training leaves at zero, is added in front of the first norm.

Everything bears the names of the published checkpoints. open_clip's own towers run, with blocks that have an adapter
in the place of its blocks, made of the same parts, and hooks for what goes between frames.

The architecture of such a model has the number of frames under ``temporal_adapters``. Frames come view by view: T
images after one another are a view.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zar_ray.models.blocks import AdaptedBlock
from zar_ray.models.formats import Converted, SavedWeights
from zar_ray.models.parts import PROMPT_DROPOUT, VIEW_FRAMES, add_times, drop_last, require_class_token, require_sizes
from zar_ray.models.systems.base import EVALUATION_SCALE, System, TrainingRule
from zar_ray.video.transforms import enlarged_preprocessing

ADAPTERS = "temporal_adapters"
PROMPTS = "T_prompt_embeddings"

_PUBLISHED_SCALE = 100  # of cosines in the official evaluation, whatever was learnt
_PATCH = 16  # side of the patches that the bound of new prompts is made for, whatever the tower has
_REDUCTION = 4  # from a tower's width to its adapters'
_FIRST = "visual.transformer.resblocks.0.Adapter.D_fc1.weight"


class Adapter(nn.Module):
    """x + up(GELU(down(x))); a new one leaves x as it is."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(width, inner)
        self.D_fc2 = nn.Linear(inner, width)
        nn.init.zeros_(self.D_fc2.weight)
        nn.init.zeros_(self.D_fc2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., W) to the same."""
        return x + self.D_fc2(F.gelu(self.D_fc1(x)))


def attach_temporal_adapters(clip: Any, frames: int, reduction: int = _REDUCTION) -> None:
    """Gives both towers of an open_clip CLIP new adapters, which narrow the width by `reduction`.

    The image tower, a vision transformer, also gets temporal prompts for views of T frames.

    Raises:
        ModelError: The image tower is not such a transformer, or a number is below 1.
    """
    visual, text = clip.visual, getattr(clip, "text", clip)
    require_class_token(clip, "temporal prompts")
    require_sizes("temporal prompts", frames=frames, reduction=reduction)
    for tower in (visual, text):
        width, blocks = tower.positional_embedding.shape[1], tower.transformer.resblocks
        tower.transformer.resblocks = nn.ModuleList(
            AdaptedBlock(block, Adapter(width, width // reduction)) for block in blocks
        )
    setattr(visual, VIEW_FRAMES, frames)
    width, stack = visual.positional_embedding.shape[1], visual.transformer
    bound = math.sqrt(6 / (3 * _PATCH**2 + width))
    prompts = torch.empty(len(stack.resblocks), frames, width).uniform_(-bound, bound)
    stack.register_parameter(PROMPTS, nn.Parameter(prompts))
    stack.add_module(PROMPT_DROPOUT, nn.Dropout(0.0))  # training's to set, see zar_ray.training.regularisation
    visual.register_parameter("temporal_embedding", nn.Parameter(torch.zeros(1, frames, width)))
    add_times(visual, "temporal_embedding")
    for layer, block in enumerate(stack.resblocks):
        block.register_forward_pre_hook(partial(_see_frames, stack, layer))
        block.register_forward_hook(drop_last)


def is_trained(name: str) -> bool:
    """Whether EZ-CLIP trains a parameter: the temporal prompts and the adapters; the rest of the model is frozen."""
    return PROMPTS in name or ".Adapter." in name


def _see_frames(stack: Any, layer: int, block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    prompts = getattr(stack, PROMPT_DROPOUT)(getattr(stack, PROMPTS)[layer]).to(x.dtype)
    normed = block.ln_1(x.mean(dim=1).unflatten(0, (-1, len(prompts))) + prompts)
    seen = block.ls_1(block.attention(normed)).flatten(0, 1)
    return (torch.cat([x, seen[:, None].to(x.dtype)], dim=1), *inputs[1:])


def recognise(saved: SavedWeights) -> Converted | None:
    """EZ-CLIP's own files bear OpenAI's names and the prompts; the number of frames is the prompts', and how much
    adapters narrow the width theirs.
    """
    prompts = saved.tensors.get(f"visual.transformer.{PROMPTS}")
    if prompts is None:
        return None
    sizes = {"frames": prompts.shape[1]}
    narrow = saved.tensors.get(_FIRST)
    if narrow is not None and (reduction := narrow.shape[1] // narrow.shape[0]) != _REDUCTION:
        sizes["reduction"] = reduction
    return Converted(saved.tensors, {ADAPTERS: sizes, EVALUATION_SCALE: _PUBLISHED_SCALE})


SYSTEM = System(
    name="ezclip",
    title="EZ-CLIP",
    parts={ADAPTERS: attach_temporal_adapters},
    additions={ADAPTERS: {"frames": 8}, EVALUATION_SCALE: _PUBLISHED_SCALE},
    recognise=recognise,
    preprocessing=enlarged_preprocessing,
    training=TrainingRule(added=is_trained, drops_layers=True),
    reference="ahmad2023ezclip",
)
