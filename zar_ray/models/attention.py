"""Where CLIP's vision transformer looks, and what speaks for a class: two kinds of maps over an image's patches.

The attention rollout follows attention alone (Abnar and Zuidema, ACL 2020), so it belongs to the image and the image
tower: tuning the text's context cannot move it. The relevance weights attention with the gradient of a class's logit
(Chefer et al., "Generic attention-model explainability", ICCV 2021) and so moves with the class's text.

Both are computed in the weights' own precision, whatever a run's `precision` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zar_ray.errors import ModelError
from zar_ray.models.clip import ClipModel
from zar_ray.models.openclip import ResidualAttentionBlock
from zar_ray.models.precision import exact_float32, full_precision
from zar_ray.models.vision import unfit_pooling


def unfit_attention(visual: nn.Module) -> str | None:
    """Why an image tower has no maps: the class token must gather the image in blocks of CLIP's kind; None if it does.

    A tower whose patches carry further tokens, such as prompt vectors, is found out when it runs.
    """
    tower: Any = visual
    if (reason := unfit_pooling(visual)) is not None:
        return reason
    for block in tower.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock:
            return f"its blocks are of type {type(block).__name__}"
        if type(block.attn) is not nn.MultiheadAttention or block.attn.in_proj_weight is None:
            return f"its attention is of type {type(block.attn).__name__}"
    return None


def require_attention(model: ClipModel) -> None:
    """Refuses a model whose image tower has no maps.

    Raises:
        ModelError: See `unfit_attention`.
    """
    reason = unfit_attention(model.clip.visual)
    if reason is not None:
        raise ModelError(f"{model.name}: {reason}; attention maps need a CLIP such as ViT-B-16-quickgelu")


def attention_rollout(model: ClipModel, pixels: torch.Tensor) -> torch.Tensor:
    """How much of each patch of normalised images (n, 3, R, R) reaches the class token through all attention.

    Returns:
        float32 (n, g, g) for a tower of g × g patches. With what the class token keeps of itself an image's map sums
        to 1.

    Raises:
        ModelError: The image tower is not fit for it.
    """
    with torch.no_grad(), _recording(model) as (embed, weights):
        embed(pixels)
        return _maps(roll_out(weights), model)


def class_relevance(
    model: ClipModel, pixels: torch.Tensor, text_features: torch.Tensor, frames_a_pass: int = 4
) -> torch.Tensor:
    """Which patches of a view's frames speak for classes, by the gradient of the view's logit for each of them.

    The view's logit is exp(logit_scale) · cosine of a class's text feature and the mean of the frames' embeddings, or
    what the model's head makes of them.

    Args:
        model: A model whose image tower `unfit_attention` has nothing against.
        pixels: float32 (T, 3, R, R), one view's frames, normalised, on the model's device.
        text_features: float32 (C, D), L2-normalised: the classes to explain.
        frames_a_pass: Frames whose attention and gradients are held at a time; it changes memory, not the result.

    Returns:
        float32 (C, T, g, g), none negative. Their scale has no meaning across models; it has across frames, and across
        texts of the same view.

    Raises:
        ModelError: The image tower is not fit for it.
    """
    parts = pixels.split(frames_a_pass)
    with _recording(model) as (embed, weights):
        with torch.no_grad():
            embeddings = torch.cat([embed(part) for part in parts])
        # The frames meet in the view's embedding alone, so that the gradient reaches each through its own embedding.
        towards = logit_gradients(embeddings, text_features, model.logit_scale, model.fuse)
        maps = []
        for part, of_part in zip(parts, towards.split(frames_a_pass, dim=1), strict=True):
            with torch.enable_grad():
                embedded = embed(part)
            # The first block's attention is where the graph starts, so that no gradient runs further than that.
            of_classes = [torch.autograd.grad(embedded, weights, gradient, retain_graph=True) for gradient in of_part]
            maps.append(torch.stack([_maps(gather_relevance(weights, one), model) for one in of_classes]))
    return torch.cat(maps, dim=1)


def roll_out(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiplies up attention over blocks, each mixed half and half with the residual stream (its section 3).

    Of (n, heads, t, t) a block it makes (n, t, t): what of each token is in each. Rows sum to 1 in both.
    """
    same = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype, device=weights[0].device)
    rolled = same.expand(len(weights[0]), -1, -1)
    for one in weights:
        rolled = (one.mean(dim=1) + same) / 2 @ rolled
    return rolled


def gather_relevance(weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Adds up attention times its gradient over blocks, positive parts alone (equations 5 and 6).

    Both are (n, heads, t, t) a block; of the class's logit the gradients. They give the relevance of each token to
    each, (n, t, t), none negative, 1 on the diagonal or more.
    """
    relevance = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype, device=weights[0].device)
    relevance = relevance.expand(len(weights[0]), -1, -1)
    for one, gradient in zip(weights, gradients, strict=True):
        relevance = relevance + (one.detach() * gradient).clamp(min=0).mean(dim=1) @ relevance
    return relevance


def logit_gradients(
    embeddings: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: float,
    fuse: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Gradients (C, T, D) of a view's logits for texts (C, D), L2-normalised, by its frames' embeddings (T, D).

    The view's embedding (D,) is what `fuse` makes of the frames'.
    """
    with torch.enable_grad(), exact_float32():
        frames = embeddings.detach().requires_grad_()
        logits = logit_scale * text_features @ F.normalize(fuse(frames), dim=-1)
        return torch.stack([torch.autograd.grad(logit, frames, retain_graph=True)[0] for logit in logits])


def attend(attention: nn.MultiheadAttention, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention with its weights on the way from input to output, where gradients pass.

    PyTorch's own module gives weights that its output does not depend on.

    Returns:
        What the module would return of `x`, (n, t, W), or (t, n, W) where it has its batch second; and the weights
        (n, heads, t, t).
    """
    batched = x if attention.batch_first else x.transpose(0, 1)
    projected = F.linear(batched, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.unflatten(-1, (3, attention.num_heads, attention.head_dim)).transpose(1, 3).unbind(2)
    weights = (query @ key.mT / math.sqrt(attention.head_dim)).softmax(dim=-1)
    if torch.is_grad_enabled() and not weights.requires_grad:
        weights.requires_grad_()
    attended = attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
    return (attended if attention.batch_first else attended.transpose(0, 1)), weights


@contextmanager
def _recording(model: ClipModel) -> Iterator[tuple[Any, list[torch.Tensor]]]:
    """The image tower as open_clip wrote it, and a list that holds the attention of each block of its latest pass."""
    require_attention(model)
    visual = model.clip.visual
    tokens = math.prod(visual.grid_size) + 1
    weights: list[torch.Tensor] = []

    def replace(attention: nn.MultiheadAttention, inputs: tuple[torch.Tensor, ...], _output: object) -> Any:
        attended, of_block = attend(attention, inputs[0])
        if of_block.shape[-1] != tokens:
            raise ModelError(
                f"{model.name}: its image tower has {of_block.shape[-1]} tokens for {tokens - 1} patches, so further"
                " ones take part; attention maps need a model without prompt vectors"
            )
        weights.append(of_block)
        return attended, None

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        weights.clear()
        return visual(pixels.to(model.dtype))

    hooks = [block.attn.register_forward_hook(replace) for block in visual.transformer.resblocks]
    try:
        with full_precision(model.device):
            yield embed, weights
    finally:
        for hook in hooks:
            hook.remove()


def _maps(tokens: torch.Tensor, model: ClipModel) -> torch.Tensor:
    """(n, g, g): the class token's row of (n, t, t), over the patches."""
    return tokens[:, 0, 1:].unflatten(-1, model.clip.visual.grid_size)
