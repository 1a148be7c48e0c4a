"""Text towers of open_clip's over sequences of vectors: what a context in front of a class name runs through.

open_clip's towers read token ids. These do the same from token embeddings on, so that some of them can be tuned: CLIP's
transformer with all that its configs vary (order, pooling, CoCa's class token), and Hugging Face's encoders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zar_ray.models.parts import following_head, text_frame_of


class ClipTextTower:
    """A transformer of open_clip's: a `CLIP` itself, or the ``text`` of a `CustomTextCLIP`.

    Args:
        tower: Where its parts are.

    Attributes:
        context_length: Tokens that it reads.
        width: W, of a token's embedding.
        causal: Whether no token's state depends on a later one's.
    """

    def __init__(self, tower: Any) -> None:
        self._tower = tower
        self._pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", "argmax"))
        self._class_token: torch.Tensor | None = getattr(tower, "cls_emb", None)
        positions, self.width = tower.positional_embedding.shape
        self.context_length = positions - (self._class_token is not None)
        self.causal = tower.attn_mask is not None

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings (K, n, W), without positions, of ids (K, n)."""
        frame = text_frame_of(self._tower)
        return self._tower.token_embedding(ids) if frame is None else frame.embedded(self._tower, ids)

    def ends(self, ids: torch.Tensor) -> torch.Tensor | None:
        """int64 (K,), the position whose state a text (K, context_length) ends up in; None if a class token has it."""
        if self._class_token is not None:
            return None
        if self._pool == "argmax":
            return ids.argmax(dim=1)
        if self._pool == "eos":
            eos = getattr(self._tower, "text_eos_id", getattr(self._tower, "eos_id", None))
            return (ids == eos).int().argmax(dim=1)
        return torch.full((len(ids),), 0 if self._pool == "first" else self.context_length - 1, device=ids.device)

    def needed(self, ids: torch.Tensor) -> int:
        """How many positions of texts (K, context_length) must be run; what is behind changes nothing."""
        ends = self.ends(ids)
        return int(ends.max()) + 1 if self.causal and ends is not None else self.context_length

    def __call__(self, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Embeds (K, D) texts that are already vectors (K, n, W), `needed` of them; `ids` say where they end.

        Where a head goes on with them they are its `unfinished_texts`, see `zar_ray.models.parts.following_head`.
        """
        tower, ends = self._tower, self.ends(ids)
        mask = tower.attn_mask
        if self._class_token is not None:
            own = self._class_token.to(embeddings).expand(len(embeddings), 1, -1)
            embeddings = torch.cat([embeddings, own], dim=1)
        length = embeddings.shape[1]
        mask = None if mask is None else mask[:length, :length].to(embeddings.dtype)
        if self._class_token is not None:
            mask = self._without_padding(ids, mask, embeddings.dtype)
        states = tower.transformer(embeddings + tower.positional_embedding[:length], attn_mask=mask)
        unfinished = getattr(following_head(tower), "unfinished_texts", None)
        if unfinished is not None:
            return unfinished(states, ends)
        rows = torch.arange(len(states), device=states.device)
        states = states[:, -1] if ends is None else states[rows, ends.to(states.device)]
        return _projected(tower.ln_final(states), tower.text_projection)

    def _without_padding(self, ids: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """The mask (K·heads, n + 1, n + 1) of CoCa, as its weights were trained: shifted by one, the class token's."""
        valid = ids.to(self._tower.positional_embedding.device) != self._tower.pad_id
        valid = torch.cat([valid.new_ones(len(valid), 1), valid], dim=1)
        hidden = torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill_(~valid, float("-inf"))
        heads, count = self._tower.transformer.resblocks[0].attn.num_heads, valid.shape[1]
        whole = hidden[:, None].expand(-1, count, -1).repeat_interleave(heads, 0)
        return whole if mask is None else mask + whole


class HuggingFaceTextTower:
    """An encoder of Hugging Face's transformers in open_clip's `HFTextEncoder`; see `ClipTextTower`."""

    causal = False

    def __init__(self, tower: Any, context_length: int) -> None:
        self._tower, self.context_length = tower, context_length
        self.width = tower.transformer.get_input_embeddings().weight.shape[1]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings (K, n, W), without positions, of ids (K, n)."""
        return self._tower.transformer.get_input_embeddings()(ids)

    def ends(self, _ids: torch.Tensor) -> None:
        """No position has a text's state alone."""

    def needed(self, ids: torch.Tensor) -> int:
        """How many positions of texts (K, context_length) must be run: padding is not looked at."""
        return int(self._shown(ids).any(dim=0).nonzero().max()) + 1

    def __call__(self, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Embeds (K, D) texts that are already vectors (K, n, W), `needed` of them; `ids` say which fill up."""
        shown = self._shown(ids).long().to(embeddings.device)
        out = self._tower.transformer(inputs_embeds=embeddings, attention_mask=shown)
        return self._tower.proj(self._tower.pooler(out, shown))

    def _shown(self, ids: torch.Tensor) -> torch.Tensor:
        return ids != self._tower.config.pad_token_id


TextTower = ClipTextTower | HuggingFaceTextTower


def tower_of(tower: Any, context_length: int) -> TextTower:
    """How a text tower is run; `context_length` counts where the tower itself does not tell."""
    if hasattr(tower, "token_embedding"):
        return ClipTextTower(tower)
    return HuggingFaceTextTower(tower, context_length)


def _projected(states: torch.Tensor, projection: Any) -> torch.Tensor:
    if projection is None:
        return states
    return projection(states) if isinstance(projection, nn.Module) else states @ projection
