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


def normalised_mean(frames: torch.Tensor) -> torch.Tensor:
    """The mean over the frames of views, L2-normalised: (..., T, D) to (..., D)."""
    return normalize(frames.mean(dim=-2), dim=-1)


@torch.no_grad()
def video_features(
    image_embeddings: torch.Tensor,
    plan: ImagesOfViews,
    of_view: Callable[[torch.Tensor], torch.Tensor] = normalised_mean,
) -> VideoFeatures:
    """Makes one feature of each view's frames: by default their mean as the encoder gave them, then L2-normalised.

    Args:
        image_embeddings: float32 (I, D), not normalised, one row a distinct image.
        plan: Which rows belong to which view.
        of_view: Makes one of a view's, (..., T, D) to (..., D), see `ClipModel.view_features`.

    Returns:
        The features of the V views and of the evaluation views, on the embeddings' device.
    """
    rows = torch.from_numpy(plan.views).to(image_embeddings.device)
    evaluation = torch.from_numpy(plan.evaluation).to(image_embeddings.device)
    return VideoFeatures(
        views=of_view(image_embeddings[rows]),
        evaluation=of_view(image_embeddings[evaluation]),
    )
