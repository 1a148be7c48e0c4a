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

import math
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zar_ray.errors import ModelError
from zar_ray.models.formats import Converted, SavedWeights, with_joined_projections
from zar_ray.models.options import ClassPosition
from zar_ray.models.parts import (
    OWN_CONTEXT,
    OWN_POSITION,
    VIEW_FRAMES,
    ApartAttention,
    add_times,
    require_class_token,
    require_sizes,
)
from zar_ray.models.systems.base import System, TrainingRule
from zar_ray.video.transforms import plain_preprocessing

if TYPE_CHECKING:
    from zar_ray.training.options import TrainConfig

VIEW_PROMPTS = "view_prompts"

_SCALE = "logit_scale"
_TRAINED = ("time_embed", "global_prompts", "local_prompts", "summary_ln", "summary_attn_layer", OWN_CONTEXT)
_DEVIATION = 0.02  # of new vectors of context and time
# The published names of an image tower's parts, besides queries, keys and values, which are apart there.
_VISUAL = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj.weight": "conv1.weight",
}
_BLOCK = {"norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_PATCHES, _POSITIONS = "visual.patch_embed.proj.bias", "visual.positional_embedding"
_CONTEXT, _TIMES, _PROMPTS = "prompt_learner.ctx", "visual.time_embed", "visual.global_prompts"
_A_CONTEXT_EACH = "holds a context for each class that it was trained with, and is made for no others"


def attach_view_prompts(
    clip: Any, frames: int, global_prompts: int = 8, context: int | None = 8, class_position: ClassPosition = "end"
) -> None:
    """Gives the image tower of an open_clip CLIP new prompts between frames, and the text tower a new context.

    New weights are drawn as the official code draws them: prompts within ±sqrt(6 / (3·P² + W)) of patches of P pixels a
    side, attention of summaries as Xavier's.

    Args:
        clip: A CLIP with a vision transformer.
        frames: T, of a view.
        global_prompts: Of each layer.
        context: Vectors of the context; with None, words stand there.
        class_position: Where a class name stands among these: behind all, in front of them, or in their middle.

    Raises:
        ModelError: The image tower is not such a transformer, or a number is below 1.
    """
    visual, text = clip.visual, getattr(clip, "text", clip)
    require_class_token(clip, "prompts between frames")
    vectors = {} if context is None else {"context": context}
    require_sizes("prompts between frames", frames=frames, global_prompts=global_prompts, **vectors)
    blocks, width = visual.transformer.resblocks, visual.positional_embedding.shape[1]
    setattr(visual, VIEW_FRAMES, frames)
    bound = math.sqrt(6 / (3 * math.prod(visual.conv1.kernel_size) + width))
    visual.register_parameter("time_embed", _drawn(frames, width))
    visual.register_parameter("global_prompts", _spread(bound, len(blocks), global_prompts, width))
    add_times(visual, "time_embed")
    block: Any  # its attributes bear no types
    projection: Any
    for layer, block in enumerate(blocks):
        block.register_parameter("local_prompts", _spread(bound, 1, frames, width))
        block.add_module("cls_proj", nn.Linear(width, width))
        block.add_module("summary_ln", nn.LayerNorm(width))
        attention = ApartAttention(width, block.attn.num_heads, bias=True, outcome="out_proj")
        for projection in attention.children():
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        block.add_module("summary_attn_layer", attention)
        block.register_forward_pre_hook(partial(_append, visual, layer))
        block.register_forward_hook(partial(_drop, visual))
    if context is not None:
        text.register_parameter(OWN_CONTEXT, _drawn(context, text.positional_embedding.shape[1]))
        setattr(text, OWN_POSITION, class_position)


def is_trained(name: str) -> bool:
    """Whether Vita-CLIP trains a parameter: what it adds but the projection of class tokens, and the logit scale."""
    return name == _SCALE or any(part in _TRAINED for part in name.split("."))


def _why_untrained(config: TrainConfig) -> str | None:
    fits = config.trains == "added" and config.loss == "classes"
    return None if fits else "has prompts of its own; train them with --trains added --loss classes"


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * _DEVIATION)


def _spread(bound: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def _append(visual: Any, layer: int, block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    frames = block.local_prompts.shape[1]
    classes = block.cls_proj(x[:, 0].unflatten(0, (-1, frames)))  # (n, T, W)
    normed = block.summary_ln(classes)
    summary = classes + block.summary_attn_layer(normed, normed)
    local = (block.local_prompts + classes)[:, None].expand(-1, frames, -1, -1)
    own = visual.global_prompts[layer].expand(len(x), -1, -1)
    extra = torch.cat([summary.flatten(0, 1)[:, None], local.flatten(0, 1), own], dim=1)
    return (torch.cat([x, extra.to(x.dtype)], dim=1), *inputs[1:])


def _drop(visual: Any, block: Any, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output[:, : -(1 + block.local_prompts.shape[1] + visual.global_prompts.shape[1])]


def recognise(saved: SavedWeights) -> Converted | None:
    """Vita-CLIP's own files keep queries, keys and values apart and have a bias of the patches.

    A context for each of the training's classes is left out, and words stand in its place.

    Raises:
        ModelError: The file is not whole.
    """
    tensors = saved.tensors
    if _PROMPTS not in tensors or not any(name.startswith("textual.") for name in tensors):
        return None
    if _TIMES not in tensors:
        raise ModelError(f"{saved.place}: a Vita-CLIP checkpoint without {_TIMES}")
    left_out = saved.class_buffers()
    if _CONTEXT in tensors and tensors[_CONTEXT].ndim == 3:
        left_out[_CONTEXT] = _A_CONTEXT_EACH
    named = {_our_name(name): one for name, one in tensors.items() if name not in left_out and name != _PATCHES}
    weights = with_joined_projections(named, saved.place)
    if _PATCHES in tensors and _POSITIONS in weights:
        # CLIP's patches have no bias; added to each patch's position it does the same.
        weights[_POSITIONS] = weights[_POSITIONS].clone()
        weights[_POSITIONS][1:] += tensors[_PATCHES]
    sizes = {
        "frames": len(tensors[_TIMES]),
        "global_prompts": tensors[_PROMPTS].shape[1],
        "context": len(weights[OWN_CONTEXT]) if OWN_CONTEXT in weights else None,
    }
    assumed = ("class_position",) if sizes["context"] else ()
    return Converted(weights, {VIEW_PROMPTS: sizes}, left_out, assumed)


def _our_name(name: str) -> str:
    """A published name, as it is here; queries, keys and values are still apart."""
    if name == _CONTEXT:
        return OWN_CONTEXT
    if name.startswith("textual."):
        return name.removeprefix("textual.")
    block = re.fullmatch(r"visual\.blocks\.(\d+)\.(.+)", name)
    if block is None:
        tower, _, short = name.partition(".")
        return f"visual.{_VISUAL[short]}" if tower == "visual" and short in _VISUAL else name
    part = next((old for old in _BLOCK if block[2].startswith(f"{old}.")), "")
    return f"visual.transformer.resblocks.{block[1]}.{_BLOCK.get(part, '')}{block[2].removeprefix(part)}"


SYSTEM = System(
    name="vitaclip",
    title="Vita-CLIP",
    parts={VIEW_PROMPTS: attach_view_prompts},
    additions={VIEW_PROMPTS: {"frames": 8, "global_prompts": 8, "context": 8}},
    recognise=recognise,
    preprocessing=plain_preprocessing,
    training=TrainingRule(added=is_trained, refuses=_why_untrained),
    reference="wasim2023vitaclip",
)
