"""How sure a decision is, by four scores; of the least sure ones it is said that none of the classes is shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from zar_ray.errors import VideoError

if TYPE_CHECKING:
    import torch

CertaintyScore = Literal["max_probability", "margin", "energy", "entropy"]
"""What a decision is accepted or rejected by; the higher, the surer, so that entropy counts with a minus sign."""

SCORES: tuple[CertaintyScore, ...] = get_args(CertaintyScore)


def certainties(logits: torch.Tensor) -> dict[CertaintyScore, float]:
    """All scores of one decision.

    Args:
        logits: float (K,), of all classes.

    Returns:
        The largest softmax probability; how far it is above the next (of one class itself); the logarithm of the
        logits' summed exponentials, which is minus the energy of Liu et al. (NeurIPS 2020) at temperature 1; and minus
        the entropy in nats.
    """
    values = logits.detach().cpu().double()
    log_probabilities = values.log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    best = probabilities.topk(min(2, len(values))).values.tolist()
    return {
        "max_probability": best[0],
        "margin": best[0] - sum(best[1:]),
        "energy": values.logsumexp(dim=-1).item(),
        "entropy": (probabilities * log_probabilities).sum().item(),
    }


def is_rejected(certainty: float, below: float) -> bool:
    """Whether a decision is so unsure that none of the classes is to be taken for shown.

    Raises:
        VideoError: The certainty is no finite number, of which neither could be said (stage ``adapt``).
    """
    if not math.isfinite(certainty):
        raise VideoError(f"how sure the decision is cannot be told: its score is {certainty}", stage="adapt")
    return certainty < below
