"""Maps over a video's frames as values: where a model looks, and what speaks for a class before and after tuning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """What speaks for a class before and after tuning.

    Attributes:
        name: The class.
        role: ``predicted`` or ``right``.
        before: (T, g, g), none negative: relevance under the untuned text.
        after: (T, g, g), under the tuned text.
    """

    name: str
    role: str
    before: np.ndarray
    after: np.ndarray

    @property
    def moved(self) -> float | None:
        """Share of the relevance that is elsewhere after tuning: the total variation distance, in [0, 1].

        None where one of the maps is empty.
        """
        if not self.before.sum() or not self.after.sum():
            return None
        return float(np.abs(self.before / self.before.sum() - self.after / self.after.sum()).sum() / 2)


@dataclass(frozen=True, eq=False)
class VideoMaps:
    """A video's evaluation view with its maps.

    Attributes:
        video_id: The video.
        frames: uint8 (T, R, R, 3), the crops that the model sees.
        indices: (T,), which frames of the video they are.
        rollout: (T, g, g), none negative: the image tower's attention rollout.
        classes: The classes that are explained.
        remarks: Sentences for the caption.
    """

    video_id: str
    frames: np.ndarray
    indices: np.ndarray
    rollout: np.ndarray
    classes: tuple[ClassMaps, ...]
    remarks: tuple[str, ...] = ()
