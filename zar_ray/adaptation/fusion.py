"""From image embeddings to view features (DESIGN.md, "ZAR, exactly", 5).

The three levels are those that the ZAR paper names (Liang et al., Electronic Imaging 2025, "Pretraining CLIP"):
embedding-level, which it uses, image-level and decision-level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Fusion, VideoFeatures
from zar_ray.video.pixels import to_device

# What each level makes of frames (..., T, D): their mean, L2-normalised; every image a view of its own, in the order of
# views and, within one, of frames; or the mean of the normalised embeddings, not normalised again, which gives a view
# the mean of its frames' logits, as these are linear in the features.
_LEVELS: Mapping[Fusion, Callable[[torch.Tensor], torch.Tensor]] = {
    "embedding": lambda frames: normalize(frames.mean(dim=-2), dim=-1),
    "image": lambda frames: normalize(frames.reshape(-1, frames.shape[-1]), dim=-1),
    "decision": lambda frames: normalize(frames, dim=-1).mean(dim=-2),
}


def video_features(
    image_embeddings: torch.Tensor,
    plan: Any,
    of_view: Callable[[torch.Tensor], torch.Tensor] | None = None,
    fusion: Fusion = "embedding",
) -> VideoFeatures:
    """The features of the V views and of the evaluation views, on the embeddings' device.

    Args:
        image_embeddings: float32 (I, D), not normalised, one row a distinct image.
        plan: Which rows belong to which view, as a `zar_ray.video.plans.ViewPlan` says: `views`, int64 (V, T), and
            `evaluation`, (T_eval,) or (E, T_eval).
        of_view: Makes one embedding of a view's frames, (..., T, D) to (..., D), at the embedding level; by default
            their mean, L2-normalised, see `ClipModel.view_features`.
        fusion: Where the frames of a view become one.
    """
    rows, evaluation = to_device([plan.views, plan.evaluation], image_embeddings.device)
    fuse = of_view if of_view is not None and fusion == "embedding" else _LEVELS[fusion]
    return VideoFeatures(views=fuse(image_embeddings[rows]), evaluation=fuse(image_embeddings[evaluation]))
