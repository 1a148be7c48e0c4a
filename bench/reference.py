"""ZAR as one writes it from the papers, without zar-ray's engine: what `bench/adapt.py` measures against.

A video at a time: every view's frames are cropped, normalised and encoded by open_clip's own call, repeated images
included. Every prompt runs through open_clip's own text transformer with all its positions, forward, backward and
forward again, as in the reference implementation of TPT (Shu et al., NeurIPS 2022). It computes what ours computes, in
the same precision, with the same threads and batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import open_clip
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Decision, VideoFeatures
from zar_ray.adaptation.zar import ZarConfig
from zar_ray.errors import ConfigError
from zar_ray.models.precision import exact_float32
from zar_ray.video.pixels import crop_and_normalise
from zar_ray.video.plans import ViewPlan
from zar_ray.video.transforms import Preprocessing


@contextmanager
def fast_path(on: bool) -> Iterator[None]:
    """Allows or forbids `nn.MultiheadAttention` its fused path for inference.

    Without it attention is `F.scaled_dot_product_attention`, as in ours. But then the projections in front of it read
    transposed tokens, as slow batched products on a CPU: a third of the encoder's time there.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(on)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class Reference:
    """The plain loop for one model and one set of classes.

    Args:
        clip: open_clip's model, frozen, on its device; its text tower is causal, as CLIP's.
        class_names: The K candidate classes.
        context: The words that the context vectors start from.
        preprocessing: What the model expects of its pixels.
        zar: The update of the context.
        encoder_batch: Images a pass of the image encoder.
        autocast: The type of the image encoder's products under autocast; None for float32.
        fused: Whether the image encoder may take `nn.MultiheadAttention`'s fused path, as open_clip's call does.

    Attributes:
        initial_context: float32 (L, W), the token embeddings of the context's words.
        tokens: Tokens that one pass runs through the text tower.

    Raises:
        ConfigError: The text tower is not CLIP's.
    """

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        context: str,
        preprocessing: Preprocessing,
        zar: ZarConfig,
        encoder_batch: int,
        autocast: torch.dtype | None = None,
        fused: bool = True,
    ) -> None:
        self.clip, self.text = clip, getattr(clip, "text", clip)
        if self.text.attn_mask is None or not isinstance(self.text.text_projection, torch.Tensor):
            raise ConfigError("the reference reads prompts with CLIP's causal text tower; choose another --model")
        self.preprocessing, self.zar = preprocessing, zar
        self.encoder_batch, self.autocast, self.fused = encoder_batch, autocast, fused
        self.device = clip.logit_scale.device
        positions = self.text.positional_embedding.shape[0]
        names = [name.replace("_", " ") for name in class_names]
        ids = open_clip.tokenize([f"{context} {name}." for name in names], context_length=positions)
        length = int(open_clip.tokenize(context, context_length=positions).argmax()) - 1
        self.ends = ids.argmax(dim=1).to(self.device)
        with torch.no_grad():
            embedded = self.text.token_embedding(ids.to(self.device))
        self.starts, self.rests = embedded[:, :1], embedded[:, 1 + length :]
        self.initial_context = embedded[0, 1 : 1 + length].clone()
        self.tokens = ids.numel()

    def encode(self, frames: torch.Tensor, plan: ViewPlan) -> tuple[VideoFeatures, int]:
        """Encodes the frames of every view and of the evaluation view, each as if it were the only one.

        Args:
            frames: uint8 (F, h, w, 3), resized, one a row of ``plan.frames``.
            plan: The video's views.

        Returns:
            The views' features, and how many images went through the encoder.
        """
        frames = frames.to(self.device)
        wanted = plan.images[np.concatenate([plan.views.ravel(), plan.evaluation])]
        parts = []
        autocast = torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(), fast_path(self.fused), exact_float32(), autocast:
            for first in range(0, len(wanted), self.encoder_batch):
                rows = wanted[first : first + self.encoder_batch]
                pixels = crop_and_normalise(frames, rows, plan.boxes, self.preprocessing)
                parts.append(self.clip.visual(pixels).float())
        embeddings = torch.cat(parts).clone()  # outside inference mode, so that autograd may see it
        of_views = embeddings[: plan.views.size].unflatten(0, plan.views.shape)
        features = VideoFeatures(
            views=normalize(of_views.mean(dim=1), dim=-1),
            evaluation=normalize(embeddings[plan.views.size :].mean(dim=0), dim=-1),
        )
        return features, sum(len(part) for part in parts)

    def adapt(self, video: VideoFeatures) -> Decision:
        """Tunes a fresh context on the video's most confident views and classifies its evaluation view."""
        context = torch.nn.Parameter(self.initial_context.clone())
        zar = self.zar
        optimiser = torch.optim.AdamW([context], lr=zar.lr, betas=zar.betas, eps=zar.eps, weight_decay=zar.weight_decay)
        before = entropies = selected = None
        losses = []
        for _ in range(zar.steps):
            text = self.text_features(context)
            logits = self.logits(video.views, text)
            if before is None or selected is None:
                before = self.logits(video.evaluation, text.detach())
                entropies, selected = select_confident_views(logits.detach(), zar.confidence)
            loss = average_entropy(logits[selected])
            optimiser.zero_grad()
            with exact_float32():
                loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        with torch.no_grad():
            after = self.logits(video.evaluation, self.text_features(context))
        assert before is not None
        assert entropies is not None
        assert selected is not None
        return Decision(before.cpu(), after.cpu(), entropies.cpu(), selected.cpu(), torch.stack(losses).cpu())

    def text_features(self, context: torch.Tensor) -> torch.Tensor:
        """Text features under a context.

        Args:
            context: float32 (L, W).

        Returns:
            float32 (K, D), L2-normalised, differentiable with respect to `context`.
        """
        tower = self.text
        with exact_float32():
            contexts = context.expand(len(self.starts), -1, -1)
            prompts = torch.cat([self.starts, contexts, self.rests], dim=1) + tower.positional_embedding
            states = tower.transformer(prompts, attn_mask=tower.attn_mask)
            ends = states[torch.arange(len(states), device=self.device), self.ends]
            return normalize(tower.ln_final(ends) @ tower.text_projection, dim=-1)

    def gradient(self, views: torch.Tensor) -> torch.Tensor:
        """float32 (L, W): of the first step's loss on some views (S, D), with respect to the untuned context."""
        context = self.initial_context.clone().requires_grad_()
        with exact_float32():
            loss = average_entropy(self.logits(views, self.text_features(context)))
            (gradient,) = torch.autograd.grad(loss, context)
        return gradient

    def logits(self, video: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(V, D) or (D,) and (K, D), all L2-normalised, to (V, K) or (K,): scaled cosines."""
        with exact_float32():
            return self.clip.logit_scale.exp() * video @ text.T


def select_confident_views(logits: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Views by rising entropy, cut off at a fraction, at least one.

    Args:
        logits: float32 (V, K).
        fraction: The confidence fraction.

    Returns:
        float32 (V,), the entropies, and int64 (S,), the rows selected.
    """
    entropies = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)
    return entropies, entropies.argsort(stable=True)[: max(1, int(len(entropies) * fraction))]


def average_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the mean probability of some views, float32 (S, K) to ()."""
    log_p = logits - logits.logsumexp(dim=-1, keepdim=True)
    mean = log_p.logsumexp(dim=0) - np.log(len(log_p))
    mean = mean.clamp(min=torch.finfo(mean.dtype).min)
    return -(mean * mean.exp()).sum(dim=-1)
