"""The settings that predictions are made under."""

from __future__ import annotations

from dataclasses import dataclass

from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import ClassPrompts


@dataclass(frozen=True)
class Setting:
    """What a case's prediction depends on, besides its class set, model and method.

    Attributes:
        options: The options.
        prompts: The candidate classes' prompts under them, a class set each.
    """

    options: AdaptationOptions
    prompts: tuple[ClassPrompts, ...]
