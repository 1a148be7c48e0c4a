"""Transformer blocks of CLIP's towers, with the same arithmetic as open_clip's and fewer passes over memory.

QuickGELU, u·sigmoid(1.702·u), is written as three operations on the widest tensor of the block, 15 % of a ViT-B/32's
time on a CPU. It equals silu(1.702·u) / 1.702, one fused operation, once the factor is drawn into the layer norm in
front of it and into the residual sum behind it, where it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zar_ray.models.openclip import LayerNorm, LayerNormFp32, QuickGELU, ResidualAttentionBlock

_QUICK_GELU = 1.702


class AdaptedBlock(ResidualAttentionBlock):
    """A block of open_clip's whose residual stream (..., W) passes an adapter between the attention and the MLP."""

    def __init__(self, block: nn.Module, adapter: nn.Module) -> None:
        nn.Module.__init__(self)  # the parent's own would make parts that the block has already
        for name, part in block.named_children():
            self.add_module(name, part)
        self.Adapter = adapter  # as EZ-CLIP's checkpoints call it

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


def unfit_block(blocks: Sequence[nn.Module]) -> str | None:
    """Why `Block` cannot stand for some of these blocks; None where it can."""
    for block in blocks:
        if type(block) not in (ResidualAttentionBlock, AdaptedBlock):
            return f"its blocks are of type {type(block).__name__}"
        parts: Any = block
        if not isinstance(parts.ls_1, nn.Identity) or not isinstance(parts.ls_2, nn.Identity):
            return "its blocks scale their outputs"
        if not all(type(norm) in (LayerNorm, LayerNormFp32, nn.LayerNorm) for norm in (parts.ln_1, parts.ln_2)):
            return f"its blocks normalise by {type(parts.ln_1).__name__}"
        gelu = parts.mlp.gelu
        if type(gelu) is not QuickGELU and (type(gelu) is not nn.GELU or gelu.approximate != "none"):
            return f"its activation is {type(gelu).__name__}"
        if parts.attn.in_proj_weight is None or parts.attn.bias_k is not None or parts.attn.add_zero_attn:
            return "its attention is not CLIP's"
    return None


class Norm:
    """A layer norm with a module's weights, `factor` times its outputs; in the residual stream's own precision."""

    def __init__(self, norm: Any, factor: float = 1.0) -> None:
        self._own_weight = norm.weight
        self.weight = norm.weight if factor == 1.0 else norm.weight * factor
        self.bias = norm.bias if factor == 1.0 else norm.bias * factor
        self.eps = norm.eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises over the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def with_statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, with the means of `x` and the reciprocals of its deviations."""
        return torch.native_layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def pull(
        self, gradients: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor
    ) -> torch.Tensor:
        """Takes gradients of what was normalised to those of `x`, all (B, tokens, W) in one piece, without `factor`.

        The factor is left out: what follows this norm divides by it.
        """
        return torch.ops.aten.native_layer_norm_backward(
            gradients, x, self.weight.shape, mean, deviation, self._own_weight, self.bias, [True, False, False]
        )[0]


class Block:
    """One pre-norm block: x + attention(norm(x)), an adapter where there is one, then x + MLP(norm(x)).

    The matrices are held in the precision that products are computed in; the residual stream and the norms keep
    their own.

    Args:
        block: A block that `unfit_block` has nothing against; matrices of another type are converted.
        dtype: What products are computed in.
    """

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self.quick = type(block.mlp.gelu) is QuickGELU
        factor = _QUICK_GELU if self.quick else 1.0
        attention, widen, narrow = block.attn, block.mlp.c_fc, block.mlp.c_proj
        self.heads = attention.num_heads
        self.norm_1, self.norm_2 = Norm(block.ln_1), Norm(block.ln_2, factor)
        # (3W, W) and (3W,), of queries, keys and values in this order.
        self.project_weight, self.project_bias = attention.in_proj_weight.to(dtype), attention.in_proj_bias.to(dtype)
        self.out_weight, self.out_bias = attention.out_proj.weight.to(dtype), attention.out_proj.bias.to(dtype)
        self.widen_weight, self.widen_bias = widen.weight.to(dtype), (widen.bias * factor).to(dtype)
        self.narrow_weight, self.narrow_bias = narrow.weight.to(dtype), (narrow.bias * factor).to(dtype)
        # What the stream passes after the attention, in its own precision.
        self.adapter = block.Adapter if isinstance(block, AdaptedBlock) else None

    def __call__(self, x: torch.Tensor, read: slice | None = None) -> torch.Tensor:
        """The residual stream (n, tokens, W) after the block; in a last one, only of the tokens that are `read`.

        Every token attends to every one of its sequence.
        """
        normed = self.norm_1(x).to(self.project_weight.dtype)
        if read is None:
            query, key, value = self._project(normed)
        else:
            key, value = self._project(normed, first=1)
            (query,) = self._project(normed[:, read], last=1)
            x = x[:, read]
        heads = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        x = x + F.linear(heads.transpose(1, 2).flatten(2), self.out_weight, self.out_bias)
        return self.transformed(x if self.adapter is None else self.adapter(x))

    def _project(self, normed: torch.Tensor, first: int = 0, last: int = 3) -> tuple[torch.Tensor, ...]:
        """Some of the queries, 0, keys, 1, and values, 2, of (..., W): from `first` to the one before `last`.

        Returns:
            `last` - `first` tensors (..., heads, W / heads), views of one.
        """
        width = normed.shape[-1]
        rows = slice(first * width, last * width)
        projected = F.linear(normed, self.project_weight[rows], self.project_bias[rows])
        return projected.unflatten(-1, (last - first, self.heads, width // self.heads)).unbind(-3)

    def transformed(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream (..., W) after the MLP."""
        wide = F.linear(self.norm_2(x).to(self.widen_weight.dtype), self.widen_weight, self.widen_bias)
        # in place is safe without a graph only: silu's backward pass reads its input
        return self.narrowed(x, wide, inplace=not wide.requires_grad)

    def narrowed(self, x: torch.Tensor, wide: torch.Tensor, inplace: bool = False) -> torch.Tensor:
        """The residual stream with what the MLP makes of its wide tensor (..., 4·W), which it may write to."""
        if not self.quick:
            return x + F.linear(F.gelu(wide), self.narrow_weight, self.narrow_bias)
        narrowed = F.linear(F.silu(wide, inplace=inplace), self.narrow_weight, self.narrow_bias)
        return torch.add(x, narrowed, alpha=1 / _QUICK_GELU)

    def pull_activation(self, gradients: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
        """Takes B gradients (B, tokens, 4·W) of the activation to those of one wide tensor (1, tokens, 4·W).

        QuickGELU's factor and its reciprocal cancel each other with that of the norm in front, see `Norm.pull`.
        """
        if self.quick:
            return torch.ops.aten.silu_backward(gradients, wide.expand_as(gradients))
        return torch.ops.aten.gelu_backward(gradients, wide.expand_as(gradients))
