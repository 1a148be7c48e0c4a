"""What a run's predictions are keyed by."""

from __future__ import annotations

from dataclasses import dataclass

CLEAN = "clean"
"""What stands in place of a corruption for frames as they are."""


@dataclass(frozen=True)
class Case:
    """One class set, model, method and setting; a video has one prediction a case.

    Attributes:
        case_id: The method and a hash of the rest.
        class_set: Which of a run's class sets it chooses among.
        setting: Which of a run's settings it is under; an evaluation has one, a sweep several.
        model: Which of a run's models decides.
    """

    case_id: str
    method: str
    class_set: int = 0
    setting: int = 0
    model: int = 0
