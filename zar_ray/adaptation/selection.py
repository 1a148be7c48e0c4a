"""Which of a video's views are confident."""

from __future__ import annotations

from typing import Literal

import torch

from zar_ray.adaptation.base import entropy

Selection = Literal["entropy", "margin"]
"""What makes a view confident: low entropy, or a wide margin between its two likeliest classes."""


def count_confident(views: int, fraction: float) -> int:
    """How many views are selected: floor(fraction·views), at least one.

    The product is floored as the floating-point number it is, as in the reference implementation of TPT: 0.29 of
    100 is 28.999999999999996 there, so 28.
    """
    return max(1, int(views * fraction))


def doubt(logits: torch.Tensor, selection: Selection) -> torch.Tensor:
    """How little confident views are: their entropy in nats, or their negative `margin`.

    Args:
        logits: float32 (..., V, K).
        selection: Which.

    Returns:
        float32 (..., V).
    """
    return entropy(logits) if selection == "entropy" else -margin(logits)


def margin(logits: torch.Tensor) -> torch.Tensor:
    """How much more probable the likeliest class is than the next (Scheffer et al., IDA 2001, on active learning).

    Args:
        logits: (..., K).

    Returns:
        (...), in [0, 1]; of a single class its probability, 1.
    """
    best = logits.softmax(dim=-1).topk(min(2, logits.shape[-1]), dim=-1).values
    return best[..., 0] if best.shape[-1] == 1 else best[..., 0] - best[..., 1]


def select_confident(doubts: torch.Tensor, fraction: float) -> torch.Tensor:
    """The views of least `doubt`, `count_confident` of them; equal ones in the views' order.

    Args:
        doubts: float32 (V,).
        fraction: The confidence fraction, in (0, 1].

    Returns:
        int64 (S,), rows of `doubts`, the most confident first.
    """
    return doubts.argsort(stable=True)[: count_confident(len(doubts), fraction)]
