"""What ZAR's relatives with another objective have in common: their options, and ZAR's loop under them.

View 0 is the evaluation view, which takes part in the selection, as the plain picture does in their authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from zar_ray.adaptation.base import Method, Outcome, Rule, Shared, VideoFeatures, with_plain_view
from zar_ray.adaptation.tpt import TptConfig, TptUpdate, adapt_on_crops, unfit_for_tpt, update_of
from zar_ray.adaptation.zar import Decide, Objective, adapt_zar_batch
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import option


class PromptTuningConfig(TptUpdate):
    """The options that TPT's followers share."""

    crops: int = option(
        0,
        "Tune on so many random crops of the evaluation view's frames, as tpt does on 63; 0: on the run's views.",
        ge=0,
    )


def tune_prompts(
    videos: Sequence[VideoFeatures],
    classes: PromptedClasses,
    options: PromptTuningConfig,
    shared: Shared,
    objective: Objective,
    decide: Decide | None = None,
) -> list[Outcome]:
    """Tunes a fresh context for each video on its views, or crops, with the evaluation view in front.

    See `adapt_zar_batch`.
    """
    adapt = partial(adapt_zar_batch, classes=classes, options=update_of(options), objective=objective, decide=decide)
    if options.crops:
        return adapt_on_crops(videos, classes.model, TptConfig(views=1 + options.crops), shared, adapt)
    return adapt([VideoFeatures(with_plain_view(video), video.evaluation) for video in videos])


def prompt_method(
    name: str, description: str, adapt: Rule, options: type[PromptTuningConfig], **declared: Any
) -> Method:
    """A method that tunes prompts by `tune_prompts`; what it says for people besides is `declared`."""
    return Method(
        name,
        description,
        adapt,
        options=options,
        needs_views=True,
        needs_pixels=lambda own: own.crops > 0,
        updates="context",
        unfit=lambda model, own: unfit_for_tpt(model, TptConfig()) if own.crops else None,
        changes="the context",
        cost="a step back through the text tower, and a pass of it",
        **declared,
    )
