"""Zero-shot classification: the evaluation view under the untuned prompt."""

from __future__ import annotations

from zar_ray.adaptation.base import Decision, Method, VideoFeatures, averaged, one_by_one, require_finite
from zar_ray.models.text import PromptedClasses


def classify_zero_shot(features: VideoFeatures, classes: PromptedClasses) -> Decision:
    """Classifies the evaluation view without adaptation: before and after are the same.

    Raises:
        VideoError: Some logits are not finite (stage ``adapt``).
    """
    logits = averaged(classes.initial_logits(features.evaluation))
    require_finite(logits, "of the evaluation view")
    return Decision(logits_before=logits.cpu(), logits_after=logits.cpu())


METHOD = Method(
    "zero_shot",
    "no adaptation",
    one_by_one(lambda video, classes, *_: classify_zero_shot(video, classes)),
    source="Radford et al., ICML 2021",
    reference="radford2021clip",
)
