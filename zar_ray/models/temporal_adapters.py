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
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn
from torch.nn import functional as F

from zar_ray.errors import ModelError
from zar_ray.models.parts import VIEW_FRAMES, Part

ADAPTERS = "temporal_adapters"
PROMPTS = "T_prompt_embeddings"
PROMPT_DROPOUT = "prompt_dropout"
"""Where the stack of blocks has the dropout of its prompts."""

_REDUCTION = 4  # from a tower's width to its adapters'


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


class AdaptedBlock(ResidualAttentionBlock):
    """A block of open_clip's with an adapter after the attention; takes over the block's own parts."""

    def __init__(self, block: nn.Module, inner: int) -> None:
        nn.Module.__init__(self)  # the parent's own would make parts that the block has already
        for name, part in block.named_children():
            self.add_module(name, part)
        self.Adapter = Adapter(self.ln_1.normalized_shape[0], inner)

    def forward(
        self,
        q_x: torch.Tensor,
        k_x: torch.Tensor | None = None,
        v_x: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(n, tokens, W) to the same; keys and values are the queries'."""
        x = self.Adapter(q_x + self.ls_1(self.attention(self.ln_1(q_x), attn_mask=attn_mask)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def attach_temporal_adapters(clip: Any, frames: int, reduction: int = _REDUCTION) -> None:
    """Gives both towers of an open_clip CLIP new adapters, and the image tower temporal prompts.

    Args:
        clip: A CLIP with a vision transformer, which has none yet.
        frames: T, frames of every view.
        reduction: By how much an adapter narrows its tower's width.

    Raises:
        ModelError: The image tower is not such a transformer.
    """
    visual, text = clip.visual, getattr(clip, "text", clip)
    if type(visual) is not VisionTransformer or visual.attn_pool is not None or visual.pool_type != "tok":
        raise ModelError("temporal prompts need a vision transformer with a class token, such as ViT-B-16")
    for tower in (visual, text):
        width, blocks = tower.positional_embedding.shape[1], tower.transformer.resblocks
        tower.transformer.resblocks = nn.ModuleList(AdaptedBlock(block, width // reduction) for block in blocks)
    setattr(visual, VIEW_FRAMES, frames)
    width, stack = visual.positional_embedding.shape[1], visual.transformer
    bound = math.sqrt(6 / (3 * math.prod(visual.conv1.kernel_size) + width))
    prompts = torch.empty(len(stack.resblocks), frames, width).uniform_(-bound, bound)
    stack.register_parameter(PROMPTS, nn.Parameter(prompts))
    stack.add_module(PROMPT_DROPOUT, nn.Dropout(0.0))  # training's to set, see zar_ray.models.regularisation
    visual.register_parameter("temporal_embedding", nn.Parameter(torch.zeros(1, frames, width)))
    visual.ln_pre.register_forward_pre_hook(partial(_in_time, visual))
    for layer, block in enumerate(stack.resblocks):
        block.register_forward_pre_hook(partial(_see_frames, stack, layer))
        block.register_forward_hook(_drop_last)


def is_trained(name: str) -> bool:
    """Whether EZ-CLIP trains a parameter: the temporal prompts and the adapters; the rest of the model is frozen."""
    return PROMPTS in name or ".Adapter." in name


PART = Part(ADAPTERS, attach_temporal_adapters, is_trained)


def _in_time(visual: Any, _norm: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    times = visual.temporal_embedding
    views = inputs[0].unflatten(0, (-1, times.shape[1]))
    return ((views + times[:, :, None].to(views.dtype)).flatten(0, 1),)


def _see_frames(stack: Any, layer: int, block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    prompts = getattr(stack, PROMPT_DROPOUT)(getattr(stack, PROMPTS)[layer]).to(x.dtype)
    normed = block.ln_1(x.mean(dim=1).unflatten(0, (-1, len(prompts))) + prompts)
    seen = block.ls_1(block.attention(normed)).flatten(0, 1)
    return (torch.cat([x, seen[:, None].to(x.dtype)], dim=1), *inputs[1:])


def _drop_last(_block: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output[:, :-1]
