"""What ZAR's relatives with another objective have in common: their options, and ZAR's loop under them.

View 0 is the evaluation view, which takes part in the selection, as the plain picture does in their authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

from zar_ray.adaptation.base import Outcome, VideoFeatures, with_plain_view
from zar_ray.adaptation.zar import Decide, Objective, ZarConfig, adapt_zar_batch
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option


class PromptTuningConfig(Options):
    """The update that TPT's followers share."""

    confidence: float = option(0.1, "Share of views, lowest entropy first, that tune.", gt=0, le=1)
    steps: int = option(1, "AdamW steps a video.", ge=1)
    lr: float = option(0.005, "Learning rate of the context.", gt=0)
    weight_decay: float = option(0.01, "AdamW's weight decay.", ge=0)

    @property
    def context_steps(self) -> int:
        """Steps of the optimiser a video."""
        return self.steps


def update_of(options: PromptTuningConfig) -> ZarConfig:
    """The update as ZAR's options say it."""
    return ZarConfig(
        confidence=options.confidence, steps=options.context_steps, lr=options.lr, weight_decay=options.weight_decay
    )


def tune_prompts(
    videos: Sequence[VideoFeatures],
    classes: PromptedClasses,
    options: PromptTuningConfig,
    objective: Objective,
    decide: Decide | None = None,
) -> list[Outcome]:
    """Tunes a fresh context for each video on its views with the evaluation view in front; see `adapt_zar_batch`."""
    with_plain = [VideoFeatures(with_plain_view(video), video.evaluation) for video in videos]
    return adapt_zar_batch(with_plain, classes, update_of(options), objective, decide)
