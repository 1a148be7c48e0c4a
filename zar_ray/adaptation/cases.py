"""What a run's predictions are keyed by, and the settings that they are made under."""

from __future__ import annotations

from dataclasses import dataclass

from zar_ray.config import AdaptationOptions
from zar_ray.data.class_texts import ClassPrompts


@dataclass(frozen=True)
class Case:
    """One class set, model, method and setting; a video has one prediction a case.

    Attributes:
        case_id: The method and a hash of the rest.
        method: The method's name.
        class_set: Which of a run's class sets it chooses among.
        setting: Which of a run's settings it is under; an evaluation has one, a sweep several.
    """

    case_id: str
    method: str
    class_set: int = 0
    setting: int = 0


@dataclass(frozen=True)
class Setting:
    """What a case's prediction depends on, besides its class set, model and method.

    Attributes:
        options: The options.
        prompts: The candidate classes' prompts under them, a class set each.
    """

    options: AdaptationOptions
    prompts: tuple[ClassPrompts, ...]
