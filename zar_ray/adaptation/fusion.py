"""From image embeddings to view features (DESIGN.md, "ZAR, exactly", 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import VideoFeatures


class ImagesOfViews(Protocol):
    """Which image embeddings belong to which view; a `zar_ray.video.plans.ViewPlan` is one."""

    @property
    def views(self) -> np.ndarray:
        """int64 (V, T), rows of the embeddings."""
        ...

    @property
    def evaluation(self) -> np.ndarray:
        """int64 (T_eval,) or (E, T_eval), rows of the embeddings."""
        ...


def average(frames: torch.Tensor) -> torch.Tensor:
    """The mean over the frames of views: (..., T, D) to (..., D)."""
    return frames.mean(dim=-2)


@torch.no_grad()
def video_features(
    image_embeddings: torch.Tensor, plan: ImagesOfViews, fuse: Callable[[torch.Tensor], torch.Tensor] = average
) -> VideoFeatures:
    """Makes one embedding of those of each view's frames, as the encoder gave them, then L2-normalises.

    Args:
        image_embeddings: float32 (I, D), not normalised, one row a distinct image.
        plan: Which rows belong to which view.
        fuse: Makes one of a view's, (..., T, D) to (..., D), see `ClipModel.fuse`; CLIP takes the mean.

    Returns:
        The features of the V views and of the evaluation views, on the embeddings' device.
    """
    rows = torch.from_numpy(plan.views).to(image_embeddings.device)
    evaluation = torch.from_numpy(plan.evaluation).to(image_embeddings.device)
    return VideoFeatures(
        views=normalize(fuse(image_embeddings[rows]), dim=-1),
        evaluation=normalize(fuse(image_embeddings[evaluation]), dim=-1),
    )
