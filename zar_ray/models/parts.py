"""What a system adds to CLIP, and the names under which the rest of zar-ray finds it there.

A part works inside open_clip's own towers, by modules and hooks. Where more than the towers must know of it, it leaves
something under one of the names here: a head over frames, a number of frames that belong together, a context, or how
texts are framed. docs/extending.md has what follows from each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zar_ray.errors import ModelError
from zar_ray.models.openclip import VisionTransformer

FUSION = "fusion"  # the CLIP's module that makes a view's embedding of its frames', in the place of their mean
VIEW_FRAMES = "view_frames"  # where an image tower whose frames see each other says how many a view has
OWN_CONTEXT = "own_context"  # the text tower's parameter (L, W) that stands where a context's words would
OWN_POSITION = "own_position"  # where a class name stands among the vectors of that, unless behind them
DEEP_PROMPTS = "deep_prompts"  # each tower's parameter (d, n, W) of vectors, see `zar_ray.models.deep_prompts`
TEXT_FRAME = "text_frame"  # where a text tower has the `TextFrame` that its texts stand in
PROMPT_DROPOUT = "prompt_dropout"  # in an image tower's transformer, whose rate ``--prompt-dropout`` sets in training

VECTOR = -1  # stands for a learnt vector among token ids

_TOKENS = "_tokens_of_this_pass"


@dataclass(frozen=True)
class TextFrame:
    """Learnt vectors around the tokens of every text, each the one of the position that it stands at.

    Attributes:
        table: The text tower's parameter (context_length, W) of vectors.
        prefix: Vectors between the start of text and the name.
        postfix: Vectors between the name and the end of text.
    """

    table: str
    prefix: int
    postfix: int

    def around(self, start: Sequence[int], tokens: Sequence[int], end: Sequence[int]) -> list[int]:
        """Token ids of a text from its start to its end, with `VECTOR` where a learnt vector stands."""
        return [*start, *[VECTOR] * self.prefix, *tokens, *[VECTOR] * self.postfix, *end]

    def embedded(self, tower: Any, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings (K, n, W) of ids (K, n), with the text tower's learnt vectors in their places."""
        embeddings = tower.token_embedding(ids.clamp(min=0))
        vectors = getattr(tower, self.table)[: ids.shape[1]].to(embeddings.dtype)
        return torch.where((ids == VECTOR)[..., None], vectors, embeddings)


def following_head(clip: Any) -> Any:
    """The head of a CLIP under which texts follow the video; None where they do not.

    It has a `width`, D, beyond which it gives what texts follow, and `text_embeddings`: of texts (K, D) and that of n
    videos (n, …) it makes the texts as these have them, (n, K, D), not normalised.

    With `framed` it says what is read for a class name or for any text. With `unfinished_texts` it takes from the text
    tower, in the place of an embedding, what `text_embeddings` goes on with: (K, …), of the states (K, n, W) that the
    transformer gives, and of the positions (K,) of the texts' ends.
    """
    head = getattr(clip, FUSION, None)
    return head if hasattr(head, "text_embeddings") else None


def averages_cosines(clip: Any) -> bool:
    """Whether a view's cosines are the mean of its frames', as the head says by ``averages_cosines``.

    The view's embedding is the mean of L2-normalised ones then, and not normalised itself.
    """
    return getattr(getattr(clip, FUSION, None), "averages_cosines", False)


def frames_of(visual: Any) -> int | None:
    """T, the frames that an image tower reads together; None where each is by itself."""
    return getattr(visual, VIEW_FRAMES, None)


def text_frame_of(tower: Any) -> TextFrame | None:
    """What a text tower puts around its texts; None where that is their start and end alone."""
    return getattr(tower, TEXT_FRAME, None)


def own_context_of(tower: Any) -> torch.Tensor | None:
    """The context (L, W) that a text tower holds, its first layer's prompt vectors or one; None where it has none."""
    deep = getattr(tower, DEEP_PROMPTS, None)
    return getattr(tower, OWN_CONTEXT, None) if deep is None else deep[0]


def own_position_of(tower: Any) -> str:
    """Where class names stand among the vectors of a text tower's own context: ``end``, ``middle`` or ``front``."""
    return getattr(tower, OWN_POSITION, "end")


def embedding_width(clip: Any) -> int:
    """D, the width of an open_clip CLIP's embeddings."""
    tower = getattr(clip, "text", clip)
    projection = getattr(tower, "text_projection", None)
    if projection is None:  # of its text tower's own width, or Hugging Face's
        return getattr(tower, "output_dim", None) or tower.ln_final.weight.shape[0]
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def is_of_head(name: str) -> bool:
    """Whether a parameter of a CLIP is one of its head over frames."""
    return name.startswith(f"{FUSION}.")


def require_class_token(clip: Any, what: str) -> None:
    """Refuses an image tower that is no vision transformer with a class token, which `what` needs.

    Raises:
        ModelError: It is none.
    """
    visual = clip.visual
    if type(visual) is not VisionTransformer or visual.attn_pool is not None or visual.pool_type != "tok":
        raise ModelError(f"{what} need a vision transformer with a class token, such as ViT-B-16")


def add_times(visual: Any, name: str) -> None:
    """Has an image tower add to each frame's tokens the embedding of its time, before the first norm.

    The tower's parameter of that name holds them, (..., T, W). The tower reads the tokens of whole views, (n·T, …).
    """
    visual.ln_pre.register_forward_pre_hook(partial(_in_time, visual, name))


def _in_time(visual: Any, name: str, _norm: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    times = getattr(visual, name).flatten(0, -2)
    views = inputs[0].unflatten(0, (-1, len(times)))
    return ((views + times[:, None].to(views.dtype)).flatten(0, 1),)


def keep_tokens(visual: Any) -> None:
    """Has an image tower, whose output has the class token alone, keep all tokens until `kept_tokens` takes them."""
    visual.transformer.register_forward_hook(partial(_keep, visual))


def _keep(visual: Any, _transformer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
    visual.__dict__[_TOKENS] = output


def kept_tokens(visual: Any) -> torch.Tensor:
    """The tokens (n, L, W) of the pass that ends, which the tower lets go of."""
    return visual.__dict__.pop(_TOKENS)


def require_sizes(what: str, least: int = 1, **sizes: int) -> None:
    """Refuses sizes below the `least`.

    Raises:
        ModelError: One is; the message names it, and `what` it is of.
    """
    for name, size in sizes.items():
        if size < least:
            raise ModelError(f"{what}: {name}={size}, and it takes {least} or more")


def require_heads(what: str, width: int, heads: int) -> None:
    """Refuses a number of attention heads that does not divide the width.

    Raises:
        ModelError: It does not; the message names `what` they are of.
    """
    if heads < 1 or width % heads:
        raise ModelError(f"{what}: {heads} heads do not share a width of {width}; give a divisor of it")


def projected_heads(attention: Any, x: torch.Tensor, which: str) -> list[torch.Tensor]:
    """Queries, keys or values (n, heads, t, W / heads) of tokens (n, t, W), as `which` names them, of "qkv".

    They are those of PyTorch's own attention module.
    """
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    found = (F.linear(x, weights[place], biases[place]) for place in map("qkv".index, which))
    return [one.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for one in found]


class ApartAttention(nn.Module):
    """Attention of several heads, with projections of their own for queries, keys and values, and one of the outcome.

    The last one's name differs between systems.
    """

    def __init__(self, width: int, heads: int, bias: bool, outcome: str) -> None:
        super().__init__()
        self.heads, self._outcome = heads, outcome
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.add_module(outcome, nn.Linear(width, width))

    def forward(self, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(n, q, W) to the same, by what it finds in the `others` (n, k, W)."""
        projected = self.q_proj(x), self.k_proj(others), self.v_proj(others)
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in projected)
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.get_submodule(self._outcome)(found)


class StandIn(nn.Module):
    """A block of an image tower with the parts, and so the weights, of the one of open_clip's that it stands for."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = block.ln_1, block.attn, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def attended(self, x: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """The residual stream (n, t, W) after attention that has found (n, heads, t, W / heads)."""
        return x + self.ls_1(self.attn.out_proj(heads.transpose(1, 2).flatten(2)))

    def transformed(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream (n, t, W) after the MLP."""
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def drop_last(_block: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    """A forward hook: a block's output without the token that was put behind the others."""
    return output[:, :-1]
