"""Transformer blocks of CLIP's towers, with the same arithmetic as open_clip's and fewer passes over memory.

QuickGELU, u·sigmoid(1.702·u), is written as three operations on the widest tensor of the block, 15 % of a ViT-B/32's
time on a CPU. It equals silu(1.702·u) / 1.702, one fused operation, once the factor is drawn into the layer norm in
front of it and into the residual sum behind it, where it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, ResidualAttentionBlock
from torch import nn
from torch.nn import functional as F

_QUICK_GELU = 1.702


class AdaptedBlock(ResidualAttentionBlock):
    """A block of open_clip's with an adapter after the attention; takes over the block's own parts.

    Args:
        block: The block.
        adapter: What the residual stream (..., W) passes between the attention and the MLP.
    """

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
        if not _is_known_activation(parts.mlp.gelu):
            return f"its activation is {type(parts.mlp.gelu).__name__}"
        if parts.attn.in_proj_weight is None or parts.attn.bias_k is not None or parts.attn.add_zero_attn:
            return "its attention is not CLIP's"
    return None


def _is_known_activation(activation: nn.Module) -> bool:
    return type(activation) is QuickGELU or (type(activation) is nn.GELU and activation.approximate == "none")


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm's weights, computed in the residual stream's own precision."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any, factor: float = 1.0) -> Norm:
        """Takes over a module's weights; the outputs are `factor` times its own."""
        if factor == 1.0:
            return cls(norm.weight, norm.bias, norm.eps)
        return cls(norm.weight * factor, norm.bias * factor, norm.eps)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises over the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm block: x + attention(norm(x)), an adapter where there is one, then x + MLP(norm(x)).

    The matrices are held in the precision that products are computed in; the residual stream and the norms keep
    their own. How tokens attend to each other is the tower's affair, between `project` and `attended`.

    Attributes:
        heads: Attention heads.
        project_weight: (3W, W), of queries, keys and values in this order.
        project_bias: (3W,).
        adapter: What the stream passes after the attention, in its own precision; None in most models.
    """

    heads: int
    norm_1: Norm
    project_weight: torch.Tensor
    project_bias: torch.Tensor
    out_weight: torch.Tensor
    out_bias: torch.Tensor
    norm_2: Norm
    widen_weight: torch.Tensor
    widen_bias: torch.Tensor
    narrow_weight: torch.Tensor
    narrow_bias: torch.Tensor
    quick: bool
    adapter: nn.Module | None = None

    @classmethod
    def of(cls, block: Any, dtype: torch.dtype) -> Block:
        """Takes over a block that `unfit_block` has nothing against; matrices of another type are converted."""
        quick = type(block.mlp.gelu) is QuickGELU
        factor = _QUICK_GELU if quick else 1.0
        attention, widen, narrow = block.attn, block.mlp.c_fc, block.mlp.c_proj
        return cls(
            heads=attention.num_heads,
            norm_1=Norm.of(block.ln_1),
            project_weight=attention.in_proj_weight.to(dtype),
            project_bias=attention.in_proj_bias.to(dtype),
            out_weight=attention.out_proj.weight.to(dtype),
            out_bias=attention.out_proj.bias.to(dtype),
            norm_2=Norm.of(block.ln_2, factor),
            widen_weight=widen.weight.to(dtype),
            widen_bias=(widen.bias * factor).to(dtype),
            narrow_weight=narrow.weight.to(dtype),
            narrow_bias=(narrow.bias * factor).to(dtype),
            quick=quick,
            adapter=block.Adapter if isinstance(block, AdaptedBlock) else None,
        )

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """What the attention's projections read."""
        return self.norm_1(x).to(self.project_weight.dtype)

    def project(self, normed: torch.Tensor, first: int = 0, last: int = 3) -> tuple[torch.Tensor, ...]:
        """Some of the queries, keys and values.

        Args:
            normed: (..., W), see `normed`.
            first: 0 for queries, 1 for keys, 2 for values: the first wanted.
            last: The one after the last wanted.

        Returns:
            `last` - `first` tensors (..., heads, W / heads), views of one.
        """
        width = normed.shape[-1]
        rows = slice(first * width, last * width)
        projected = F.linear(normed, self.project_weight[rows], self.project_bias[rows])
        return projected.unflatten(-1, (last - first, self.heads, width // self.heads)).unbind(-3)

    def attended(self, x: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """The residual stream after the attention, and after the adapter.

        Args:
            x: (..., W), the stream before it.
            heads: (..., W), the heads' outputs side by side.
        """
        x = x + F.linear(heads, self.out_weight, self.out_bias)
        return x if self.adapter is None else self.adapter(x)

    def transformed(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream (..., W) after the MLP."""
        wide = F.linear(self.norm_2(x).to(self.widen_weight.dtype), self.widen_weight, self.widen_bias)
        if not self.quick:
            return x + F.linear(F.gelu(wide), self.narrow_weight, self.narrow_bias)
        # in place is safe without a graph only: silu's backward pass reads its input
        narrowed = F.linear(F.silu(wide, inplace=not wide.requires_grad), self.narrow_weight, self.narrow_bias)
        return torch.add(x, narrowed, alpha=1 / _QUICK_GELU)
