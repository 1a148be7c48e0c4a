"""Soft targets, and videos mixed with one another: mixup, CutMix and label smoothing within a micro-batch."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import one_hot

from zar_ray.training.options import AugmentConfig


def mix(
    pixels: torch.Tensor, labels: torch.Tensor, classes: int, options: AugmentConfig, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes each video of a micro-batch with another one, and its target with that one's.

    Label smoothing comes first, as in ViFi-CLIP (Rasheed et al., CVPR 2023; `datasets/blending.py` of its repository):
    the target is 1 - s + s/K for the video's class and s/K for each of the others, mixed or not.

    Under mixup (Zhang et al., ICLR 2018) a video is lambda of itself and 1 - lambda of its partner.  Under CutMix (Yun
    et al., ICCV 2019) one rectangle of all frames is the partner's; its area is 1 - lambda of the frame before it is
    cut off at the edges, and the targets are mixed by the area that is left.  One lambda, one permutation of partners
    and one rectangle serve the micro-batch; a video may be its own partner.  Where both are on, a draw chooses.

    Args:
        pixels: float32 (B, T, 3, R, R); left as it is.
        labels: int64 (B,), label ids below `classes`.
        classes: K, how many classes there are.
        options: Mixup's and CutMix's alpha, and the smoothing.
        rng: What to draw from; nothing is drawn where nothing is mixed.

    Returns:
        float32 (B, T, 3, R, R), the same tensor where nothing is mixed; and targets, float32 (B, K), each of which sums
        to one.
    """
    targets = one_hot(labels, classes).to(torch.float32)
    targets = targets * (1 - options.label_smoothing) + options.label_smoothing / classes
    if not options.mixup and not options.cutmix:
        return pixels, targets
    cut = options.cutmix > 0 and (options.mixup == 0 or rng.random() < options.cutmix_share)
    partners = torch.from_numpy(rng.permutation(len(labels))).to(labels.device)
    if cut:
        height, width = pixels.shape[-2:]
        rows, columns = _rectangle(height, width, 1 - rng.beta(options.cutmix, options.cutmix), rng)
        mixed = pixels.clone()
        mixed[..., rows, columns] = pixels[..., rows, columns][partners]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        kept = rng.beta(options.mixup, options.mixup)
        mixed = torch.lerp(pixels[partners], pixels, kept)
    return mixed, torch.lerp(targets[partners], targets, kept)


def _rectangle(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a rectangle of the frame's proportions and this share of its area, its centre anywhere."""
    down, right = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = int(height * math.sqrt(share)) // 2, int(width * math.sqrt(share)) // 2
    return (
        slice(max(0, down - half_height), min(height, down + half_height)),
        slice(max(0, right - half_width), min(width, right + half_width)),
    )
