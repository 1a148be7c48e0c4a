"""A5's learnt vectors around class names, and the texts that a text tower with them reads.

Efficient prompting (Ju et al., "Prompting Visual-Language Models for Efficient Video Understanding", ECCV 2022, called
A5 after its best row) trains a table of vectors, one a position of the text tower. A text is then

    start  vector …  name …  vector …  end  vector …

with as many vectors in front of the name and behind it as the settings say; each is the one of the position that it
stands at, also where nothing reads it, after the end of text. Positions are added as to any token.

The text tower holds the table as the parameter ``learned_texts`` (context_length, W), and the architecture bears both
numbers under the same word. No tensor tells them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zar_ray.models.parts import Part

LEARNED_TEXTS = "learned_texts"
VECTOR = -1
"""Stands for a learnt vector among token ids."""

_DEVIATION = 0.01  # of new vectors, as in the official code
_SIZES = "learned_texts_around"


def attach_learned_texts(clip: Any, prefix: int = 16, postfix: int = 16) -> None:
    """Gives the text tower of an open_clip CLIP new vectors.

    Args:
        clip: A CLIP that has none yet.
        prefix: Vectors between the start of text and the name.
        postfix: Vectors between the name and the end of text.
    """
    tower = getattr(clip, "text", clip)
    vectors = torch.randn_like(tower.positional_embedding) * _DEVIATION
    tower.register_parameter(LEARNED_TEXTS, nn.Parameter(vectors.detach()))
    setattr(tower, _SIZES, (prefix, postfix))


PART = Part(LEARNED_TEXTS, attach_learned_texts, lambda name: name == LEARNED_TEXTS)


def has_learned_texts(tower: Any) -> bool:
    """Whether a text tower reads names between learnt vectors."""
    return hasattr(tower, LEARNED_TEXTS)


def framed(tower: Any, start: int, tokens: Sequence[int], end: int) -> list[int]:
    """Token ids of a text from its start to its end, with `VECTOR` where a learnt one stands.

    Args:
        tower: A text tower, with learnt vectors or without.
        start: The start-of-text token.
        tokens: The text's own.
        end: The end-of-text token.
    """
    prefix, postfix = getattr(tower, _SIZES, (0, 0))
    return [start, *[VECTOR] * prefix, *tokens, *[VECTOR] * postfix, end]


def embedded(tower: Any, ids: torch.Tensor) -> torch.Tensor:
    """Token embeddings (K, n, W) of ids (K, n), with the learnt vectors in their places."""
    embeddings = tower.token_embedding(ids.clamp(min=0))
    if not has_learned_texts(tower):
        return embeddings
    vectors = getattr(tower, LEARNED_TEXTS)[: ids.shape[1]].to(embeddings.dtype)
    return torch.where((ids == VECTOR)[..., None], vectors, embeddings)
