"""From image embeddings to view features (DESIGN.md, "ZAR, exactly", 5).

The three levels are those that the ZAR paper names (Liang et al., Electronic Imaging 2025, "Pretraining CLIP"):
embedding-level, which it uses, image-level and decision-level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Fusion, VideoFeatures
from zar_ray.models.clip import ClipModel


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


def video_features(
    image_embeddings: torch.Tensor,
    plan: ImagesOfViews,
    of_view: Callable[[torch.Tensor], torch.Tensor] | None = None,
    fusion: Fusion = "embedding",
) -> VideoFeatures:
    """The features of the V views and of the evaluation views, on the embeddings' device.

    Args:
        image_embeddings: float32 (I, D), not normalised, one row a distinct image.
        plan: Which rows belong to which view.
        of_view: Makes one embedding of a view's frames, (..., T, D) to (..., D), at the embedding level; by default
            `fuse_embeddings`, see `ClipModel.view_features`.
        fusion: Where the frames of a view become one: see `fuse_embeddings`, `fuse_decisions` and, for images that
            stay views of their own, `separate_images`.
    """
    rows = torch.from_numpy(plan.views).to(image_embeddings.device)
    evaluation = torch.from_numpy(plan.evaluation).to(image_embeddings.device)
    fuse = of_view if of_view is not None and fusion == "embedding" else _LEVELS[fusion]
    return VideoFeatures(views=fuse(image_embeddings[rows]), evaluation=fuse(image_embeddings[evaluation]))


def unfit_for_fusion(model: ClipModel, fusion: Fusion) -> str | None:
    """Why a level cannot be chosen for a model; None where it can."""
    if fusion == "embedding":
        return None
    if not model.frame_independent:
        return f"it encodes the frames of a view together, and fusion {fusion} takes them one by one"
    if not model.averages_frames:
        return f"it has learnt to make one embedding of a view's frames, and fusion {fusion} takes them one by one"
    return None


def fuse_embeddings(frames: torch.Tensor) -> torch.Tensor:
    """Averages the embeddings of each view's frames as the encoder gave them, then L2-normalises.

    Args:
        frames: (..., T, D).

    Returns:
        (..., D), L2-normalised.
    """
    return normalize(frames.mean(dim=-2), dim=-1)


def fuse_decisions(frames: torch.Tensor) -> torch.Tensor:
    """What gives each view the mean of its frames' logits: the mean of the normalised embeddings, not normalised again.

    Logits are linear in the features, so that averaging before them or after them is the same.

    Args:
        frames: (..., T, D).

    Returns:
        (..., D), of norm 1 or less.
    """
    return normalize(frames, dim=-1).mean(dim=-2)


def separate_images(frames: torch.Tensor) -> torch.Tensor:
    """Makes each image a view of its own, in the order of views and, within one, of frames.

    Args:
        frames: (T, D) or (V, T, D).

    Returns:
        (T, D) or (V·T, D), L2-normalised.
    """
    return normalize(frames.reshape(-1, frames.shape[-1]), dim=-1)


_LEVELS: Mapping[Fusion, Callable[[torch.Tensor], torch.Tensor]] = {
    "embedding": fuse_embeddings,
    "image": separate_images,
    "decision": fuse_decisions,
}
