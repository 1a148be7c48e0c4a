"""The model in training and its optimiser: what a step computes, without Ray."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import normalize

from zar_ray.config import TrainConfig
from zar_ray.models.clip import ClipModel

# CLIP's own bound on the logit scale (Radford et al., ICML 2021, section 2.5).
MAX_LOGIT_SCALE = 100.0


class VideoTextModel(nn.Module):
    """CLIP over videos: the mean of a video's frame embeddings against the texts of all classes.

    Args:
        model: The CLIP to train; both its towers take gradients from here on.
    """

    def __init__(self, model: ClipModel) -> None:
        super().__init__()
        self.clip = model.clip.requires_grad_(True)
        self._encode_text = model.encode_embedded_text

    def forward(self, pixels: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits of videos over classes.

        Args:
            pixels: float32 (B, T, 3, R, R), normalised.
            token_ids: int64 (K, n), the class texts.

        Returns:
            float32 (B, K).
        """
        frames = self.clip.visual(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        videos = normalize(frames.mean(dim=1).float(), dim=-1)
        ends = token_ids.argmax(dim=1)
        embedded = self.clip.token_embedding(token_ids[:, : int(ends.max()) + 1])
        texts = normalize(self._encode_text(embedded, ends), dim=-1)
        # Outside mixed precision: a bfloat16 logit of 50 is rounded to quarters.
        with torch.autocast(videos.device.type, enabled=False):
            return self.clip.logit_scale.exp() * videos @ texts.T

    @torch.no_grad()
    def bound_logit_scale(self) -> None:
        """Keeps the logit scale within CLIP's bound; to be called after every step."""
        self.clip.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up to the peak, then a cosine down to its share `final_lr`; `step` counts from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)


def optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over everything that takes a gradient.

    Weights and embeddings decay; gains, biases and the logit scale do not, as in CLIP (Radford et al., ICML 2021,
    section 2.5).
    """
    decaying, free = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decaying if parameter.ndim > 1 else free).append(parameter)
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
