"""CLIP's vision transformer, computed with `Block`: equal to open_clip's forward pass, and faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zar_ray.models.blocks import Block, Norm, unfit_block
from zar_ray.models.deep_prompts import has_other_hooks, with_first_prompts, with_layer_prompts
from zar_ray.models.openclip import LayerNorm, LayerNormFp32, VisionTransformer
from zar_ray.models.parts import DEEP_PROMPTS, frames_of


def unfit_pooling(visual: nn.Module) -> str | None:
    """Why an image tower is none whose class token gathers an image by itself; None where it is."""
    if type(visual) is not VisionTransformer:
        return f"its image tower is a {type(visual).__name__}, not a vision transformer of open_clip"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.output_tokens:
        return "its image tower pools otherwise than by the class token"
    if frames_of(visual) is not None:
        return "its image tower reads the frames of a view together"
    return None


def unfit_vision(visual: nn.Module) -> str | None:
    """Why `VisionTower` cannot stand for an image tower, which then runs as open_clip wrote it; None where it can."""
    tower: Any = visual
    if (reason := unfit_pooling(visual)) is not None:
        return reason
    if tower.proj is None:
        return "its image tower ends in no projection"
    if has_other_hooks(tower.modules()):
        return "something hooks into its image tower"
    if not isinstance(tower.patch_dropout, nn.Identity):
        return "its image tower drops patches"
    if type(tower.ln_pre) not in (LayerNorm, LayerNormFp32, nn.LayerNorm, nn.Identity):
        return f"its image tower normalises by {type(tower.ln_pre).__name__}"
    return unfit_block(tower.transformer.resblocks)


class VisionTower:
    """A vision transformer's forward pass without gradients.

    In the last block only the class token is computed: nothing reads the others. A tower's prompt vectors
    (`zar_ray.models.deep_prompts`) stand behind the patches.

    Args:
        visual: A tower that `unfit_vision` has nothing against. Its weights are shared where their type is `dtype`.
        dtype: What products are computed in; the residual stream and the norms keep the weights' own type.
    """

    def __init__(self, visual: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.patches = visual.conv1.weight.to(dtype)
        self.stride = visual.conv1.stride
        self.class_token = visual.class_embedding + visual.positional_embedding[0]
        self.positions = visual.positional_embedding[1:]
        self.norm_before = None if isinstance(visual.ln_pre, nn.Identity) else Norm(visual.ln_pre)
        self.blocks = [Block(block, dtype) for block in visual.transformer.resblocks]
        self.prompts: torch.Tensor | None = getattr(visual, DEEP_PROMPTS, None)
        self.first_prompt = 0 if self.prompts is None else -self.prompts.shape[1]
        self.norm_after = Norm(visual.ln_post)
        self.projection = visual.proj.to(dtype)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds normalised images, float32 (n, 3, R, R) in any memory format, as (n, D) of `dtype`."""
        patches = F.conv2d(pixels.to(self.dtype), self.patches, stride=self.stride).flatten(2).transpose(1, 2)
        images, _, width = patches.shape
        x = torch.cat([self.class_token.expand(images, 1, width), patches + self.positions], dim=1)
        x = with_first_prompts(x, self.prompts)
        x = x if self.norm_before is None else self.norm_before(x)
        for layer, block in enumerate(self.blocks, 1):
            x = with_layer_prompts(x, self.prompts, layer - 1, self.first_prompt)
            x = block(x, read=slice(0, 1) if layer == len(self.blocks) else None)
        return self.norm_after(x[:, 0]).to(self.dtype) @ self.projection
