"""O-TPT: TPT that also makes the classes' text features orthogonal, for its calibration.

Sharifdeen et al., "O-TPT: Orthogonality Constraints for Calibrating Test-time Prompt Tuning in Vision-Language Models",
CVPR 2025, as the authors' code computes it. That reflects each row of the cosine matrix onto its own axis and takes its
distance from the axis' unit vector; reflections keep lengths, so the distance is the row's length less 1. This closed
form has the same value and gradient, and needs none of the K reflections. It is not the squared distance of the cosine
matrix from the identity by which the method is described.
"""

from __future__ import annotations

import torch

from zar_ray.adaptation.prompt_tuning import PromptTuningConfig, prompt_method, tune_prompts
from zar_ray.adaptation.zar import Objective, marginal_entropy
from zar_ray.models.precision import exact_float32
from zar_ray.options.base import option


class OtptConfig(PromptTuningConfig):
    """Test-time prompt tuning with orthogonal classes (Sharifdeen et al., CVPR 2025)."""

    weight: float = option(
        18.0, "lambda, of the orthogonality: the authors' for fine-grained sets, UCF101 among them; else 2.", ge=0
    )


def lengths_of_rows(text: torch.Tensor) -> torch.Tensor:
    """Lengths (..., K) of the rows of the cosine matrix of unit text features (..., K, D)."""
    with exact_float32():
        return (text @ text.mT).norm(dim=-1)


def orthogonality(text: torch.Tensor) -> torch.Tensor:
    """How far unit text features (..., K, D) are from orthogonal: (...,), 0 where they are; see the module."""
    return lengths_of_rows(text).mean(dim=-1) - 1


def objective_of(options: OtptConfig) -> Objective:
    """The entropy of the views' mean probability, with the weighted orthogonality."""
    return lambda _, logits, text, absent: marginal_entropy(logits, absent) + options.weight * orthogonality(text)


METHOD = prompt_method(
    "otpt",
    "prompt tuning with orthogonal classes",
    lambda videos, classes, options, shared: tune_prompts(videos, classes, options, shared, objective_of(options)),
    OtptConfig,
    source="Sharifdeen et al., CVPR 2025",
    reference="sharifdeen2025otpt",
)
