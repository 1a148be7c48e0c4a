"""C-TPT: TPT that also keeps the classes' text features apart, against the over-confidence that it brings.

Yoon et al., "C-TPT: Calibrated Test-Time Prompt Tuning for Vision-Language Models via Text Feature Dispersion", ICLR
2024, as the authors' code computes it: the dispersion is the mean distance, not squared, of the unit text
features from their mean.
"""

from __future__ import annotations

import torch

from zar_ray.adaptation.prompt_tuning import PromptTuningConfig, prompt_method, tune_prompts
from zar_ray.adaptation.zar import Objective, marginal_entropy
from zar_ray.options.base import option


class CtptConfig(PromptTuningConfig):
    """Calibrated test-time prompt tuning (Yoon et al., ICLR 2024)."""

    weight: float = option(
        50.0, "lambda, of the dispersion: the authors' for fine-grained sets, UCF101 among them; else 20.", ge=0
    )
    two_step: bool = option(
        False, "Lower the entropy alone, then raise the dispersion alone with the same AdamW: each step becomes two."
    )

    @property
    def context_steps(self) -> int:
        """Steps of the optimiser a video."""
        return 2 * self.steps if self.two_step else self.steps


def dispersion(text: torch.Tensor) -> torch.Tensor:
    """Mean distance of text features (..., K, D) from their mean: (...,); of a single class 0, with gradient 0."""
    return (text - text.mean(dim=-2, keepdim=True)).norm(dim=-1).mean(dim=-1)


def objective_of(options: CtptConfig) -> Objective:
    """The entropy of the views' mean probability, less the weighted dispersion; with two steps, in turns."""

    def lose(step: int, logits: torch.Tensor, text: torch.Tensor, absent: torch.Tensor | None) -> torch.Tensor:
        if not options.two_step:
            return marginal_entropy(logits, absent) - options.weight * dispersion(text)
        return marginal_entropy(logits, absent) if step % 2 == 0 else -options.weight * dispersion(text)

    return lose


METHOD = prompt_method(
    "ctpt",
    "prompt tuning with dispersed classes",
    lambda videos, classes, options, shared: tune_prompts(videos, classes, options, shared, objective_of(options)),
    CtptConfig,
    source="Yoon et al., ICLR 2024",
    reference="yoon2024ctpt",
)
