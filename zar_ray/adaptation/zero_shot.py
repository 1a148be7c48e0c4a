"""Zero-shot classification: the evaluation view under the untuned prompt."""

from __future__ import annotations

from zar_ray.adaptation.base import Decision, Method, VideoFeatures, evaluation_logits, one_by_one
from zar_ray.models.text import PromptedClasses


def classify_zero_shot(features: VideoFeatures, classes: PromptedClasses) -> Decision:
    """Classifies the evaluation view without adaptation: before and after are the same.

    Raises:
        VideoError: Some logits are not finite (stage ``adapt``).
    """
    logits = evaluation_logits(features, classes).cpu()
    return Decision(logits_before=logits, logits_after=logits)


METHOD = Method(
    "zero_shot",
    "no adaptation",
    one_by_one(lambda video, classes, *_: classify_zero_shot(video, classes)),
    source="Radford et al., ICML 2021",
    reference="radford2021clip",
)
