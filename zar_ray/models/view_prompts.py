"""Vita-CLIP's additions to a frozen CLIP: prompts that carry a view's frames to each other, and a learnt context.

The design is Vita-CLIP's (Wasim et al., "Vita-CLIP: Video and text adaptive CLIP via Multimodal Prompting", CVPR 2023,
section 3.2), as its official code computes it. In front of each block of the image tower, behind each frame's tokens:

- a summary token: the frame's class token, projected, plus attention of the view's projected class tokens;
- T local prompts, one a frame of the view, each plus its frame's projected class token;
- some global prompts of the layer's own.

They take part in the block and go with it. Each frame's tokens bear an embedding of its time from the start. The
projection of class tokens is never trained: it stays as it was drawn, so it is part of the weights.

On the text side there is a context (Zhou et al., IJCV 2022) in the place of words; the model holds it, as none but this
image tower was trained with it. The towers bear the published names of what is added. The architecture has the sizes
under ``view_prompts``. Frames come view by view: T images after one another are a view.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from zar_ray.errors import ModelError
from zar_ray.models.parts import VIEW_FRAMES, Part

VIEW_PROMPTS = "view_prompts"
OWN_CONTEXT = "own_context"

_TRAINED = ("time_embed", "global_prompts", "local_prompts", "summary_ln", "summary_attn_layer", OWN_CONTEXT)
_DEVIATION = 0.02  # of new vectors


class SummaryAttention(nn.Module):
    """Attention of a view's class tokens, with projections of their own for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, T, W) to the same."""
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def attach_view_prompts(clip: Any, frames: int, global_prompts: int = 8, context: int | None = 8) -> None:
    """Gives the image tower of an open_clip CLIP new prompts between frames, and the text tower a new context.

    Args:
        clip: A CLIP with a vision transformer, which has none yet.
        frames: T, frames of every view.
        global_prompts: Of each layer.
        context: Vectors of the context; None for none, so that words stand there.

    Raises:
        ModelError: The image tower is not such a transformer.
    """
    visual, text = clip.visual, getattr(clip, "text", clip)
    if type(visual) is not VisionTransformer or visual.attn_pool is not None or visual.pool_type != "tok":
        raise ModelError("prompts between frames need a vision transformer with a class token, such as ViT-B-16")
    blocks, width = visual.transformer.resblocks, visual.positional_embedding.shape[1]
    setattr(visual, VIEW_FRAMES, frames)
    visual.register_parameter("time_embed", nn.Parameter(torch.zeros(frames, width)))
    visual.register_parameter("global_prompts", _drawn(len(blocks), global_prompts, width))
    visual.ln_pre.register_forward_pre_hook(partial(_in_time, visual))
    block: Any  # its attributes bear no types
    for layer, block in enumerate(blocks):
        block.register_parameter("local_prompts", _drawn(1, frames, width))
        block.add_module("cls_proj", nn.Linear(width, width))
        block.add_module("summary_ln", nn.LayerNorm(width))
        block.add_module("summary_attn_layer", SummaryAttention(width, block.attn.num_heads))
        block.register_forward_pre_hook(partial(_append, visual, layer))
        block.register_forward_hook(partial(_drop, visual))
    if context is not None:
        text.register_parameter(OWN_CONTEXT, _drawn(context, text.positional_embedding.shape[1]))


def has_view_prompts(visual: Any) -> bool:
    """Whether an image tower has prompts between frames."""
    return hasattr(visual, "global_prompts")


def own_context_of(tower: Any) -> torch.Tensor | None:
    """The context (L, W) that a text tower holds; None where it has none."""
    return getattr(tower, OWN_CONTEXT, None)


def is_view_prompt(name: str) -> bool:
    """Whether Vita-CLIP trains a parameter that it adds; the projection of class tokens is not."""
    return any(part in _TRAINED for part in name.split("."))


PART = Part(VIEW_PROMPTS, attach_view_prompts, is_view_prompt)


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * _DEVIATION)


def _in_time(visual: Any, _norm: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    times = visual.time_embed
    views = inputs[0].unflatten(0, (-1, len(times)))
    return ((views + times[:, None].to(views.dtype)).flatten(0, 1),)


def _append(visual: Any, layer: int, block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    frames = block.local_prompts.shape[1]
    classes = block.cls_proj(x[:, 0].unflatten(0, (-1, frames)))  # (n, T, W)
    summary = classes + block.summary_attn_layer(block.summary_ln(classes))
    local = (block.local_prompts + classes)[:, None].expand(-1, frames, -1, -1)
    own = visual.global_prompts[layer].expand(len(x), -1, -1)
    extra = torch.cat([summary.flatten(0, 1)[:, None], local.flatten(0, 1), own], dim=1)
    return (torch.cat([x, extra.to(x.dtype)], dim=1), *inputs[1:])


def _drop(visual: Any, block: Any, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output[:, : -(1 + block.local_prompts.shape[1] + visual.global_prompts.shape[1])]
