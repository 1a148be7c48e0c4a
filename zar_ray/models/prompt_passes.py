"""Two ways through the text tower for K prompts that differ in their class name only.

    start  context …  name … .  end          L context vectors, tuned; everything else stays

`SharedPrefixPass` computes start and context once for all classes, which a causal tower allows, and each class's own
tokens against their keys and values. `FullPass` runs whole prompts, for towers and prompts of another shape. They
give equal features and gradients, and both take several contexts, one a video, at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from zar_ray.models.blocks import Block, Norm, unfit_block
from zar_ray.models.clip import ClipModel
from zar_ray.models.deep_prompts import has_other_hooks, with_layer_prompts
from zar_ray.models.parts import DEEP_PROMPTS
from zar_ray.models.precision import full_precision


class FullPass:
    """Runs each prompt from its start to the longest end of text, or all of the tower's positions if it sees ahead.

    Args:
        model: Whose text tower it is.
        embeddings: (K, n, W), token embeddings of the prompts without positions, n the tower's positions; what
            stands in the context's places does not matter.
        places: int64 (K, L), where each prompt's context vectors stand.
        ends: int64 (K,), where each prompt's end of text is.

    Attributes:
        tokens: Tokens that one context runs through the tower.
        batches_gradients: Whether one graph gives the gradients of several videos in one backward pass.
    """

    batches_gradients = False

    def __init__(self, model: ClipModel, embeddings: torch.Tensor, places: torch.Tensor, ends: torch.Tensor) -> None:
        length = int(ends.max()) + 1 if model.sees_backwards_only else embeddings.shape[1]
        self._encode = model.encode_embedded_text
        self._embeddings = embeddings[:, :length]
        self._rows = torch.arange(len(embeddings), device=embeddings.device)[:, None]
        self._places, self._ends = places.to(embeddings.device), ends.to(embeddings.device)
        self.tokens = len(embeddings) * length

    def __call__(self, contexts: torch.Tensor) -> torch.Tensor:
        """Text embeddings (B, K, D) under contexts (B, L, W), not normalised, differentiable in these."""
        count, classes = len(contexts), len(self._embeddings)
        prompts = self._embeddings.expand(count, -1, -1, -1).clone()
        prompts[:, self._rows, self._places] = contexts[:, None].expand(-1, classes, -1, -1)
        return self._encode(prompts.flatten(0, 1), self._ends.repeat(count)).unflatten(0, (count, classes))


def unfit_text(tower: Any) -> str | None:
    """Why `SharedPrefixPass` cannot stand for a text tower; None where it can."""
    if tower.attn_mask is None:
        return "its text tower is not causal"
    if not isinstance(tower.text_projection, torch.Tensor):
        return "its text tower ends in no plain projection"
    if has_other_hooks(tower.transformer.modules()):
        return "something hooks into its text tower"
    reason = unfit_block(tower.transformer.resblocks)
    return None if reason is None else f"in its text tower, {reason}"


class SharedPrefixPass:
    """Runs the start token and the context once, and of each class its own tokens only, up to its end of text.

    Classes of equally many tokens lie together, so nothing is padded, and all tokens pass the norms and the MLPs as
    one matrix. In the last block only what the ends of text need is computed. Where the tower has prompt vectors in
    its layers (`zar_ray.models.deep_prompts`), they take the context's places there.

    Args:
        tower: open_clip's text tower, a `CLIP` or the ``text`` of a `CustomTextCLIP`, which `unfit_text` has nothing
            against.
        embeddings: (K, n, W), token embeddings of the prompts without positions; the context stands in the places
            1 to L.
        context_length: L.
        ends: int64 (K,), where each prompt's end of text is; after the context.
    """

    batches_gradients = True

    def __init__(self, tower: Any, embeddings: torch.Tensor, context_length: int, ends: torch.Tensor) -> None:
        positions, device = tower.positional_embedding, embeddings.device
        self._prefix = prefix = 1 + context_length
        self._start = embeddings[0, :1] + positions[:1]
        self._context_positions = positions[1:prefix]
        self._blocks = [Block(block, embeddings.dtype) for block in tower.transformer.resblocks]
        self._norm, self._projection = Norm(tower.ln_final), tower.text_projection
        self._layer_prompts: torch.Tensor | None = getattr(tower, DEEP_PROMPTS, None)

        # Where the ends are, on the CPU as a rule: no wait for a GPU, and sizes are known where weights are not.
        lengths = ends - prefix + 1
        rows: list[torch.Tensor] = []
        names: list[torch.Tensor] = []
        last_tokens: list[torch.Tensor] = []
        self._groups: list[_Group] = []
        first = prefix
        for length in lengths.unique().tolist():
            members = (lengths == length).nonzero().flatten().to(device)
            group = _Group(first, len(members), length, _causal_mask(prefix, length, embeddings))
            self._groups.append(group)
            rows.append(members)
            names.append(
                (embeddings[members, prefix : prefix + length] + positions[prefix : prefix + length]).flatten(0, 1)
            )
            last_tokens.append(first + torch.arange(1, len(members) + 1, device=device) * length - 1)
            first = group.end
        self._names = torch.cat(names)
        self._ends = torch.cat(last_tokens)
        self._rank = torch.cat(rows).argsort()
        self._prefix_mask = _causal_mask(0, prefix, embeddings)
        self.tokens = first

    def __call__(self, contexts: torch.Tensor) -> torch.Tensor:
        """See `FullPass`."""
        count = len(contexts)
        with full_precision(contexts.device):
            tokens = [self._start, contexts + self._context_positions, self._names]
            x = torch.cat([part.expand(count, *part.shape[-2:]) for part in tokens], dim=1)
            for layer, block in enumerate(self._blocks[:-1]):
                x = block(with_layer_prompts(x, self._layer_prompts, layer, 1), self._attention)
            x = with_layer_prompts(x, self._layer_prompts, len(self._blocks) - 1, 1)
            x = self._blocks[-1](x, self._attention_of_ends, read=self._ends)
            return (self._norm(x) @ self._projection)[:, self._rank]

    def _attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """All tokens: three (B, tokens, heads, W / heads) to (B, tokens, W)."""
        query_0, key_0, value_0 = (tensor[:, None, : self._prefix] for tensor in (query, key, value))
        heads = [_attend(query_0, key_0, value_0, self._prefix_mask)]
        for group in self._groups:
            keys, values = self._seen_by(group, key, value)
            heads.append(_attend(group.of(query), keys, values, group.mask))
        return torch.cat(heads, dim=1)

    def _attention_of_ends(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The ends of text, in the groups' order: (B, K, heads, W / heads) and two of all tokens to (B, K, W)."""
        heads = []
        queries = query[:, :, None].split([group.classes for group in self._groups], dim=1)
        for group, of_group in zip(self._groups, queries, strict=True):
            keys, values = self._seen_by(group, key, value)
            heads.append(_attend(of_group, keys, values, group.mask[-1:]))
        return torch.cat(heads, dim=1)

    def _seen_by(self, group: _Group, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """For each class of a group the prefix and its own tokens: (B, classes, prefix + length, heads, W / heads)."""
        prefix = self._prefix
        return [
            torch.cat([tensor[:, None, :prefix].expand(-1, group.classes, -1, -1, -1), group.of(tensor)], dim=2)
            for tensor in tensors
        ]


@dataclass(frozen=True, eq=False)
class _Group:
    """Classes of equally many own tokens.

    Attributes:
        first: Place of the first of these tokens among all.
        classes: How many classes.
        length: Own tokens of each.
        mask: (length, prefix + length), what they see.
    """

    first: int
    classes: int
    length: int
    mask: torch.Tensor

    @property
    def end(self) -> int:
        """The place after the last of these tokens."""
        return self.first + self.classes * self.length

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B, tokens, heads, W / heads) to the group's (B, classes, length, heads, W / heads)."""
        return tensor[:, self.first : self.end].unflatten(1, (self.classes, self.length))


def _causal_mask(before: int, length: int, like: torch.Tensor) -> torch.Tensor:
    """(length, before + length): `length` tokens see all those before them and themselves."""
    return torch.full((length, before + length), float("-inf"), dtype=like.dtype, device=like.device).triu(before + 1)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention within each class, written out: sequences of a few tokens are too short for fused kernels.

    Queries (B, C, q, heads, d), keys and values (B, C, k, heads, d), and a mask (q, k) that is added to the scores,
    give (B, C·q, heads·d).
    """
    scores = torch.einsum("bcqhd,bckhd->bchqk", query, key) * query.shape[-1] ** -0.5 + mask
    heads = torch.einsum("bchqk,bckhd->bcqhd", scores.softmax(dim=-1), value)
    return heads.flatten(3).flatten(1, 2)
