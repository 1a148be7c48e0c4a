"""Class names as prompts with a context that can be tuned (DESIGN.md, "ZAR, exactly", 6)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property

import torch
from torch.nn.functional import normalize

from zar_ray.config import ClassPosition
from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel, clip_tokenizer
from zar_ray.models.precision import exact_float32
from zar_ray.models.prompt_passes import FullPass, PromptPass, SharedPrefixPass, unfit_text


class PromptedClasses:
    """K class names under one model, each the prompt ``CONTEXT NAME.`` with L context vectors in front.

    Underscores become spaces. The text features of the untuned context, and the graph behind them, are computed once
    for all videos. The text tower is run by `SharedPrefixPass` where it can be; a warning says where it cannot.

    Args:
        model: The model whose text tower reads the prompts.
        class_names: The candidate classes, as they shall appear in results.
        context: The words that the context vectors start from.
        position: Where the name stands: ``end``, after the context; ``front``, before it; ``middle``, after the first
            half of it, rounded down (CoOp: Zhou et al., IJCV 2022, section 3.2).

    Attributes:
        model: The model.
        class_names: The candidate classes, as given.
        token_ids: int64 (K, context_length), the prompts' tokens, on the CPU.
        initial_context: float32 (L, W): the token embeddings of the context's words.

    Raises:
        ConfigError: There are no classes; a name is empty, too long, or reads the same as another; or the context
            has no words.
    """

    def __init__(
        self,
        model: ClipModel,
        class_names: Sequence[str],
        context: str = "a video of a",
        position: ClassPosition = "end",
    ) -> None:
        if not class_names:
            raise ConfigError("no class names are given; name at least one class")
        for number, name in enumerate(class_names, 1):
            if not _spaced(name):
                raise ConfigError(f"class name {number} of {len(class_names)} is empty; give every class a name")
        words = _spaced(context)
        self.model = model
        self.class_names = tuple(class_names)
        names = [_spaced(name) for name in class_names]
        context_ids = model.tokenize([words])
        length = int(context_ids.argmax(dim=1)) - 1
        if length < 1:
            raise ConfigError(f'context "{context}" has no words')
        before = {"end": length, "front": 0, "middle": length // 2}[position]
        self.token_ids = _prompt_tokens(model, words, names, before)
        self._check_distinct()

        places = _context_places(names, before, length)
        if (self.token_ids.gather(1, places) != context_ids[:, 1 : 1 + length]).any():
            raise ConfigError(f'context "{context}": its words must stand for themselves in front of every class name')
        embeddings = model.embed_tokens(self.token_ids)
        self.initial_context = embeddings[0, places[0].to(embeddings.device)].clone()
        self._run = _fastest_pass(model, position, embeddings, places, self.token_ids.argmax(dim=1))

    def __len__(self) -> int:
        return len(self.class_names)

    @property
    def tokens(self) -> int:
        """Tokens that one context runs through the text tower."""
        return self._run.tokens

    @cached_property
    def initial_features(self) -> torch.Tensor:
        """float32 (K, D): the L2-normalised text features under `initial_context`."""
        with torch.no_grad():
            return self.features(self.initial_context)

    @cached_property
    def _initial_graph(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The untuned context (1, L, W), and its text features (1, K, D) with the graph that leads back to it."""
        with torch.enable_grad():
            context = self.initial_context[None].clone().requires_grad_()
            return context, self.features(context)

    def features(self, contexts: torch.Tensor) -> torch.Tensor:
        """Text features under one context or several.

        Args:
            contexts: float32 (L, W) or (B, L, W).

        Returns:
            float32 (K, D) or (B, K, D), L2-normalised, differentiable with respect to `contexts`.
        """
        if contexts.ndim == 2:
            return self.features(contexts[None])[0]
        return normalize(self._run(contexts), dim=-1)

    def initial_gradients(self, gradients: torch.Tensor) -> torch.Tensor:
        """Takes gradients from the text features of the untuned context back to it, through the one graph kept.

        Args:
            gradients: float32 (B, K, D), of B losses with respect to `initial_features`.

        Returns:
            float32 (B, L, W), of the losses with respect to `initial_context`.
        """
        context, features = self._initial_graph
        with exact_float32():
            if self._run.batches_gradients and len(gradients) > 1:
                (found,) = torch.autograd.grad(
                    features, context, gradients[:, None], retain_graph=True, is_grads_batched=True
                )
                return found[:, 0]
            return torch.cat(
                [torch.autograd.grad(features, context, one[None], retain_graph=True)[0] for one in gradients]
            )

    def logits(self, video_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """exp(logit_scale) · cosine.

        Args:
            video_features: float32 (..., V, D), L2-normalised; or (D,) with text features (K, D).
            text_features: float32 (..., K, D), L2-normalised.

        Returns:
            float32 (..., V, K), or (K,).
        """
        with exact_float32():
            return self.model.logit_scale * video_features @ text_features.mT

    def _check_distinct(self) -> None:
        seen: dict[tuple[int, ...], str] = {}
        for name, ids in zip(self.class_names, map(tuple, self.token_ids.tolist()), strict=True):
            if ids in seen:
                raise ConfigError(f'class names "{seen[ids]}" and "{name}" read the same to the model; name it once')
            seen[ids] = name


def why_full_pass(model: ClipModel, position: ClassPosition = "end") -> str | None:
    """Why prompts of a model must run through the text tower as a whole; None where classes can share a prefix."""
    if position != "end":
        return "class names stand before context vectors"
    return unfit_text(model.text_tower)


def _fastest_pass(
    model: ClipModel, position: ClassPosition, embeddings: torch.Tensor, places: torch.Tensor, ends: torch.Tensor
) -> PromptPass:
    reason = why_full_pass(model, position)
    if reason is None:
        return SharedPrefixPass(model.text_tower, embeddings, places.shape[1], ends)
    warnings.warn(f"{model.name}: {reason}; every prompt is run as a whole, which takes longer", stacklevel=3)
    return FullPass(model, embeddings, places, ends)


def _prompt_tokens(model: ClipModel, words: str, names: Sequence[str], before: int) -> torch.Tensor:
    """int64 (K, context_length): the prompts, with `before` of the context's tokens in front of the name."""
    encode = clip_tokenizer().encode
    context = encode(words)
    if before == len(context):
        return model.tokenize([f"{words} {name}." for name in names])
    tokens = [[*context[:before], *encode(name), *context[before:], *encode(".")] for name in names]
    return model.frame_tokens([f"{name} {words}." for name in names], tokens)


def _context_places(names: Sequence[str], before: int, length: int) -> torch.Tensor:
    """int64 (K, L): where each prompt's context tokens stand."""
    name_lengths = torch.tensor([len(clip_tokenizer().encode(name)) for name in names])
    places = torch.arange(1, 1 + length).expand(len(names), -1)
    return places + name_lengths[:, None] * (torch.arange(length) >= before)


def _spaced(text: str) -> str:
    return " ".join(text.replace("_", " ").split())
