"""Class names as prompts with a context that can be tuned (DESIGN.md, "ZAR, exactly", 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel
from zar_ray.models.precision import exact_float32


class PromptedClasses:
    """K class names under one model, each the prompt ``CONTEXT NAME.`` with L context vectors in front.

    Underscores become spaces. The text features of the untuned context are computed once, here.

    Args:
        model: The model whose text tower reads the prompts.
        class_names: The candidate classes, as they shall appear in results.
        context: The words that the context vectors start from.

    Attributes:
        class_names: The candidate classes, as given.
        token_ids: int64 (K, context_length), the prompts' tokens, on the CPU.
        initial_context: float32 (L, W): the token embeddings of the context's words.
        initial_features: float32 (K, D): the L2-normalised text features under `initial_context`.

    Raises:
        ConfigError: There are no classes; a name is empty, too long, or reads the same as another; or the context
            has no words.
    """

    def __init__(self, model: ClipModel, class_names: Sequence[str], context: str = "a video of a") -> None:
        if not class_names:
            raise ConfigError("no class names are given; name at least one class")
        for number, name in enumerate(class_names, 1):
            if not _spaced(name):
                raise ConfigError(f"class name {number} of {len(class_names)} is empty; give every class a name")
        words = _spaced(context)
        self.model = model
        self.class_names = tuple(class_names)
        self.token_ids = model.tokenize([f"{words} {_spaced(name)}." for name in class_names])
        self._check_distinct()

        context_ids = model.tokenize([words])
        length = int(context_ids.argmax(dim=1)) - 1
        if length < 1 or (self.token_ids[:, 1 : 1 + length] != context_ids[:, 1 : 1 + length]).any():
            raise ConfigError(f'context "{context}": its words must stand for themselves in front of every class name')
        ends = self.token_ids.argmax(dim=1)
        embeddings = model.embed_tokens(self.token_ids[:, : int(ends.max()) + 1])
        self._ends = ends.to(model.device)
        self._before = embeddings[:, :1]
        self._after = embeddings[:, 1 + length :]
        self.initial_context = embeddings[0, 1 : 1 + length].clone()
        with torch.no_grad():
            self.initial_features = self.features(self.initial_context)

    def __len__(self) -> int:
        return len(self.class_names)

    def features(self, context: torch.Tensor) -> torch.Tensor:
        """Text features under a context.

        Args:
            context: float32 (L, W).

        Returns:
            float32 (K, D), L2-normalised, differentiable with respect to `context`.
        """
        inserted = context.expand(len(self), -1, -1)
        prompts = torch.cat([self._before, inserted, self._after], dim=1)
        return normalize(self.model.encode_embedded_text(prompts, self._ends), dim=-1)

    def logits(self, video_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """exp(logit_scale) · cosine.

        Args:
            video_features: float32 (V, D) or (D,), L2-normalised.
            text_features: float32 (K, D), L2-normalised.

        Returns:
            float32 (V, K) or (K,).
        """
        with exact_float32():
            return self.model.logit_scale * video_features @ text_features.T

    def _check_distinct(self) -> None:
        seen: dict[tuple[int, ...], str] = {}
        for name, ids in zip(self.class_names, map(tuple, self.token_ids.tolist()), strict=True):
            if ids in seen:
                raise ConfigError(f'class names "{seen[ids]}" and "{name}" read the same to the model; name it once')
            seen[ids] = name


def _spaced(text: str) -> str:
    return " ".join(text.replace("_", " ").split())
