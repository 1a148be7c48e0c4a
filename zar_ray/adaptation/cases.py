"""What a run's predictions are keyed by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One class set, model, method and setting; a video has one prediction a case.

    Attributes:
        case_id: The method and a hash of the rest.
        method: The method's name.
    """

    case_id: str
    method: str
