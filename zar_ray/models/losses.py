"""What the published systems minimise besides cross-entropy, as functions of tensors."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_SHARPNESS = 10.0  # of ActionCLIP's targets


def same_class(labels: torch.Tensor) -> torch.Tensor:
    """Which pairs of a batch are of one class, by labels int64 (B,): float32 (B, B), 1 where they are, 0 elsewhere."""
    return (labels[:, None] == labels[None]).float()


def matching_losses(similarities: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ActionCLIP's two divergences between a batch's similarities and its classes (Wang et al., 2021, equation 3).

    The targets are softmax(10·same class); the divergence, from targets to predictions, is summed over a row and
    averaged over the batch. The training loss is the mean of both. Similarities are float32 (B, B), the logits of
    videos, the rows, against texts, the columns, in the samples' order, as are their classes, int64 (B,).

    Returns:
        float32 () each: videos to texts, and texts to videos.
    """
    targets = (_SHARPNESS * same_class(labels)).to(similarities.dtype).softmax(dim=1)
    of_videos = F.kl_div(similarities.log_softmax(dim=1), targets, reduction="batchmean")
    of_texts = F.kl_div(similarities.T.log_softmax(dim=1), targets, reduction="batchmean")
    return of_videos, of_texts


def motion_loss(frames: torch.Tensor) -> torch.Tensor:
    """EZ-CLIP's motion loss (Ahmad et al., 2023, section 3.3): the less a video's frames differ, the higher.

    1 / (1 + C + V), where C is the mean of |x[t + 1] - x[t - 1]| / 2 with the ends repeated, and V the mean over
    features of the unbiased variance over frames; both are averaged over the batch first. Frames' embeddings, float32
    (B, T, D), T at least 2, are not normalised; the loss is float32 ().
    """
    padded = torch.cat([frames[:, :1], frames, frames[:, -1:]], dim=1)
    change = (padded[:, 2:] - padded[:, :-2]).abs().mean() / 2
    return 1 / (1 + change + frames.var(dim=1).mean())
