"""What a training's processes say of it; plain, as the queue between them loads no more than this to pass it on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far training is, and means over the steps since the last of these.

    Attributes:
        accuracy: Share of videos whose largest logit was their (largest) target.
        learning_rate: Of the last step.
        gradient_norm: L2 norm of the whole gradient, before it is clipped.
        videos_per_second: All processes together.
        data_wait_share: Share of the time in which the first process waited for pixels.
        gpu_memory_bytes: Most memory that the first process's GPU has held; None without one.
        gpu_utilisation: Share of the last second in which that GPU worked; None where it cannot be asked.
    """

    step: int
    loss: float
    accuracy: float
    learning_rate: float
    gradient_norm: float
    videos_per_second: float
    data_wait_share: float
    gpu_memory_bytes: int | None = None
    gpu_utilisation: float | None = None


@dataclass(frozen=True)
class Validated:
    """An evaluation after so many steps and epochs: of the videos that did not fail, those whose class was found."""

    step: int
    epoch: float
    correct: int
    videos: int
    failed: int

    @property
    def top1(self) -> float:
        """Share of the videos whose class was found."""
        return self.correct / self.videos if self.videos else 0.0
