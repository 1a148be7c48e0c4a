"""TC-CLIP's additions to CLIP: context tokens that sum up a view for all its frames, and prompts that follow the video.

The design is TC-CLIP's (Kim et al., "Leveraging Temporal Contextualization for Video Action Recognition", ECCV 2024,
section 3). What the paper leaves open was found from reference numbers alone, by what reproduces them:

- in each block of the image tower, after its attention, the patches that a frame's class token attends to most are the
  frame's seeds, most attended first; the mean over heads counts, and a share of the patches is taken, rounded down;
- the seeds of a view's frames, one frame after another, are merged into context tokens by bipartite matching (Bolya et
  al., "Token Merging: Your ViT But Faster", ICLR 2023): those at even places each find the one at an odd place whose
  cosine with them is largest, and the best pairs become one token, the mean of all that it holds. A round merges so
  many, half of the tokens at most; rounds go on until enough are left. What was not merged comes first, by falling
  cosine, then the tokens at odd places in their order;
- context tokens pass the block's MLP, and the next block's attention has them as further keys and values of every
  frame, with a bias a head for a frame's own tokens and one for these. Then the block makes new ones of its own seeds;
- those of the last block, projected as class tokens are, make the prompts of the video: in front of the text tower's
  last block, the states of the learnt vectors in front of class names attend to them in a layer of its own.

So the image tower gives each frame's class embedding with the view's context tokens behind it, the head makes of them
the video's embedding, the mean, with the context tokens behind it, and a text has an embedding for each video. Text
states stop in front of the last block, where the head goes on with them: see `VideoPrompts`. The CLIP holds the head as
its module ``fusion``. The architecture has the sizes under ``video_context``. Frames come view by view: T images after
one another are a view.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from zar_ray.errors import ModelError
from zar_ray.models.formats import Converted, SavedWeights, count_layers, of_towers, with_joined_projections
from zar_ray.models.openclip import QuickGELU, ResidualAttentionBlock
from zar_ray.models.parts import (
    FUSION,
    VIEW_FRAMES,
    StandIn,
    embedding_width,
    is_of_head,
    keep_tokens,
    kept_tokens,
    projected_heads,
    require_class_token,
    require_sizes,
)
from zar_ray.models.precision import full_precision
from zar_ray.models.systems.base import System, TrainingRule
from zar_ray.video.transforms import imagenet_preprocessing

VIDEO_CONTEXT = "video_context"
BIAS = "local_global_bias_table"

_HEAD_WIDTH = 64  # of an attention head over context tokens
_DEVIATION = 0.02  # of new vectors
_WORDS, _PLACEHOLDER = "a photo of a", "x"  # in whose places the learnt vectors stand
_CONTEXT, _PROMPTS = "prompt_learner.ctx", "prompt_generation_layer."
_GENERATOR = f"text_encoder.{_PROMPTS}"
_NEW = {"frames": 16, "context": 96, "seeds": 0.3, "merged": 70, "vectors": 4, "biased": True}
# What a file's own configuration calls the settings that no tensor tells.
_SETTINGS = {"frames": "num_frames", "context": "context_token_k", "seeds": "seed_token_a", "merged": "tome_r"}


def attach_video_context(
    clip: Any, frames: int, context: int, seeds: float, merged: int, vectors: int = 4, biased: bool = True
) -> None:
    """Gives an open_clip CLIP with a vision transformer context tokens of views, and prompts that follow them.

    Args:
        clip: A CLIP with a text tower as OpenAI's, whose width is that of embeddings.
        frames: T, of a view.
        context: How many context tokens a view has at most, k.
        seeds: Which share of a frame's patches are seeds.
        merged: How many tokens a round of merging takes away at most.
        vectors: Learnt vectors in front of class names.
        biased: Whether attention to context tokens has a bias.

    Raises:
        ModelError: The towers are not such, or a setting is out of range.
    """
    require_class_token(clip, "context tokens of a view")
    tower, width = _text_tower(clip), embedding_width(clip)
    require_sizes("context tokens of a view", frames=frames, context=context, merged=merged, vectors=vectors)
    if not 0 < seeds <= 1:
        raise ModelError(f"context tokens of a view: seeds={seeds}, and it is a share between 0 and 1")
    visual: Any = clip.visual
    blocks, tokens = visual.transformer.resblocks, visual.positional_embedding.shape[0]
    taken = max(1, int(seeds * (tokens - 1)))
    setattr(visual, VIEW_FRAMES, frames)
    for layer, block in enumerate(blocks):
        if biased and layer:  # the first has no context tokens to attend to
            block.attn.register_parameter(BIAS, nn.Parameter(torch.zeros(block.attn.num_heads, 1, 2)))
        blocks[layer] = ContextBlock(block, frames, tokens, Summary(taken, context, merged))
    # The tower's output has the class token alone; the context is taken on its way there.
    keep_tokens(visual)
    visual.register_forward_hook(partial(_with_context, tokens))
    head = VideoPrompts(tower, width, vectors)
    clip.add_module(FUSION, head)
    tower.transformer.register_forward_pre_hook(partial(_with_vectors, head))
    tower.transformer.resblocks[-1].register_forward_hook(_as_it_came)


class Summary(nn.Module):
    """Makes a view's context tokens of its frames' patches; it has no weights.

    Args:
        seeds: How many patches of a frame take part.
        context: How many tokens are to be left.
        merged: How many a round takes away at most.
    """

    def __init__(self, seeds: int, context: int, merged: int) -> None:
        super().__init__()
        self.seeds, self.context, self.merged = seeds, context, merged

    def forward(self, patches: torch.Tensor, attention: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Context tokens (n, k, W) of patches (n, T, P, W) by their frame's attention to each (n, T, P).

        Returns:
            The tokens, of the patches' type, and for each patch the number of the one that holds it, int64 (n, T·P);
            -1 for those that are no seeds.
        """
        chosen = attention.topk(self.seeds, dim=-1).indices
        flat = (chosen + patches.shape[2] * torch.arange(patches.shape[1], device=patches.device)[:, None]).flatten(1)
        seeds = patches.flatten(1, 2).gather(1, flat[..., None].expand(-1, -1, patches.shape[-1]))
        with full_precision(patches.device):
            context, groups = merge_tokens(seeds.float(), self.context, self.merged)
        whole = torch.full_like(attention.flatten(1), -1, dtype=torch.int64).scatter(1, flat, groups)
        return context.to(patches.dtype), whole


def merge_tokens(tokens: torch.Tensor, left: int, merged: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges float32 tokens (n, S, W) by bipartite matching until `left` are left, at most `merged` a round.

    Returns:
        float32 (n, k, W), the mean of what each holds, and int64 (n, S), which one holds a token; k is `left`, or S
        where that is less.
    """
    # A mean's cosines are those of the sum, so sums are kept, and divided at the end.
    sums, sizes = tokens, torch.ones_like(tokens[..., :1])
    groups = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    while (count := sums.shape[1]) > left:
        taken = min(merged, count // 2, count - left)
        unit = F.normalize(sums.detach(), dim=-1)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].mT).max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        going, staying = order[:, :taken], order[:, taken:]
        target = partner.gather(1, going)
        sums, sizes = (_joined(one, going, staying, target) for one in (sums, sizes))
        # Where a token of either half is now.
        stay = staying.shape[1]
        place = torch.empty_like(order).scatter(1, going, target + stay)
        place = place.scatter(1, staying, torch.arange(stay, device=order.device).expand_as(staying))
        odd = groups % 2 == 1
        groups = torch.where(odd, stay + groups // 2, place.gather(1, groups // 2))
    return sums / sizes, groups


def _joined(values: torch.Tensor, going: torch.Tensor, staying: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Values (n, S, W) with those `going` of the even places added to those at `target` of the odd ones."""
    even, odd, width = values[:, ::2], values[:, 1::2], (-1, -1, values.shape[-1])
    moved = even.gather(1, going[..., None].expand(width))
    joined = odd.scatter_add(1, target[..., None].expand(width), moved)
    return torch.cat([even.gather(1, staying[..., None].expand(width)), joined], dim=1)


class ContextBlock(StandIn):
    """A block of the image tower, with the weights of the one it stands for, that attends to a view's context tokens.

    These stand behind the L tokens of each frame: those of the block before come in, and its own go out.

    Args:
        block: open_clip's.
        frames: T, of a view.
        tokens: L, of a frame.
        summary: What makes context tokens.
    """

    def __init__(self, block: Any, frames: int, tokens: int, summary: Summary) -> None:
        super().__init__(block)
        self.frames, self.tokens = frames, tokens
        self.summary = summary

    def forward(
        self, x: torch.Tensor, _keys: None = None, _values: None = None, attn_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(n·T, L + c, W) to (n·T, L + k, W), with c context tokens of the block before; there is no mask."""
        own, context = x[:, : self.tokens], x[:: self.frames, self.tokens :]
        query, key, value = projected_heads(self.attn, self.ln_1(own), "qkv")
        if context.shape[1]:
            shared = projected_heads(self.attn, self.ln_1(context), "kv")
            of_view = (one.repeat_interleave(self.frames, dim=0) for one in shared)
            key, value = (torch.cat(pair, dim=2) for pair in zip((key, value), of_view, strict=True))
        bias = self._bias(context.shape[1], query.dtype)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        own = self.attended(own, found)
        with torch.no_grad():
            scores = (query[:, :, :1] @ key.mT).float() * query.shape[-1] ** -0.5
            shares = (scores if bias is None else scores + bias).softmax(dim=-1)
            attention = shares[:, :, 0, 1 : self.tokens].mean(dim=1)
        by_view = (-1, self.frames)
        context, _ = self.summary(own[:, 1:].unflatten(0, by_view), attention.unflatten(0, by_view))
        own, context = self.transformed(own), self.transformed(context)
        return torch.cat([own, context.repeat_interleave(self.frames, dim=0)], dim=1)

    def _bias(self, context: int, dtype: torch.dtype) -> torch.Tensor | None:
        """(heads, 1, L + c): a head's bias of a frame's own tokens, and of context tokens; None where there is none."""
        table = getattr(self.attn, BIAS, None)
        if table is None or not context:
            return None
        parts = table[..., :1].expand(-1, -1, self.tokens), table[..., 1:].expand(-1, -1, context)
        return torch.cat(parts, dim=-1).to(dtype)


class VideoPrompts(nn.Module):
    """From T frames to a video, and from a video's context tokens to texts of its own.

    A text is what the text tower has made of it in front of its last block: the states (context_length, W) of its
    tokens, those behind its end of no meaning, and the position of its end. D is the width of embeddings, and W.

    Args:
        tower: The text tower, which stays where it is; its last block, its norm and its projection end texts here.
        width: D.
        vectors: Learnt vectors in front of class names.
    """

    tower: Any  # the towers' attributes bear no types

    def __init__(self, tower: Any, width: int, vectors: int) -> None:
        super().__init__()
        self.width = width
        self.ctx = nn.Parameter(torch.randn(vectors, width) * _DEVIATION)
        layer = ResidualAttentionBlock(
            width, max(1, width // _HEAD_WIDTH), act_layer=QuickGELU, is_cross_attention=True
        )
        self.prompt_generation_layer = nn.ModuleList([layer])
        self.__dict__["tower"] = tower  # whose weights are not this one's

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Videos (n, D + k·D), not normalised, of frames (n, T, D + k·D): context tokens are behind either."""
        return torch.cat([frames[..., : self.width].mean(dim=1), frames[:, 0, self.width :]], dim=1)

    def framed(self, text: str) -> str:
        """The text that is read for a class name, or for any: each capital letter starts a word."""
        words = _WORDS if len(self.ctx) == len(_WORDS.split()) else " ".join([_PLACEHOLDER] * len(self.ctx))
        spaced = re.sub("[A-Z]", r" \g<0>", text.replace("_", " "))
        return f"{words} {spaced.strip()}."

    def unfinished_texts(self, states: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Texts (K, context_length·W + 1), of their states (K, n, W) and the positions (K,) of their ends."""
        missing = self.tower.positional_embedding.shape[0] - states.shape[1]
        return torch.cat([F.pad(states, (0, 0, 0, missing)).flatten(1), ends[:, None].to(states)], dim=1)

    def text_embeddings(self, texts: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Texts (n, K, D) as videos have them, of `unfinished_texts` and context tokens (n, k·D); not normalised."""
        block: Any = self.tower.transformer.resblocks[-1]
        ends, states = texts[:, -1].long(), texts[:, :-1].unflatten(1, (-1, self.width))
        states = states[:, : int(ends.max()) + 1]
        # No state depends on what stands behind, so that of the vectors is the same in all texts. The official
        # configuration stops gradients of texts in front of the image tower (im_stop_grad).
        before = states[0, 1 : 1 + len(self.ctx)].expand(len(context), -1, -1)
        shown = context.detach().unflatten(1, (-1, self.width))
        prompts = self.prompt_generation_layer[0](before, shown, shown)

        # Only the end's state is read of the last block. All but the prompts is the same for all videos.
        last = states[torch.arange(len(states), device=states.device), ends]
        (query,) = projected_heads(block.attn, block.ln_1(last)[:, None], "q")  # (K, heads, 1, d)
        key, value = projected_heads(block.attn, block.ln_1(states), "kv")  # (K, heads, t, d)
        new_key, new_value = projected_heads(block.attn, block.ln_1(prompts), "kv")  # (n, heads, V, d)
        places = torch.arange(states.shape[1], device=states.device)
        hidden = (places > ends[:, None]) | ((places > 0) & (places <= len(self.ctx)))
        own = (query @ key.mT)[:, :, 0].masked_fill(hidden[:, None], float("-inf"))
        new = torch.einsum("khd,nhvd->nkhv", query[:, :, 0], new_key)
        scores = torch.cat([own.expand(len(context), -1, -1, -1), new], dim=-1) * query.shape[-1] ** -0.5
        of_own, of_new = scores.softmax(dim=-1).tensor_split([states.shape[1]], dim=-1)
        found = torch.einsum("nkht,khtd->nkhd", of_own, value) + torch.einsum("nkhv,nhvd->nkhd", of_new, new_value)
        x = last + block.ls_1(block.attn.out_proj(found.flatten(2)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return self.tower.ln_final(x) @ self.tower.text_projection


def _text_tower(clip: Any) -> Any:
    projection = getattr(clip, "text_projection", None)
    usual = getattr(clip, "attn_mask", None) is not None and isinstance(projection, torch.Tensor)
    if not usual or hasattr(clip, "cls_emb") or getattr(clip, "text_pool_type", "argmax") not in ("argmax", "eos"):
        raise ModelError("prompts that follow the video need a text tower as OpenAI's CLIP has it, such as ViT-B-16's")
    width, embedded = cast(torch.Tensor, projection).shape
    if width != embedded:
        raise ModelError(f"prompts that follow the video need texts as wide as embeddings, not {width} and {embedded}")
    return clip


def _with_vectors(head: VideoPrompts, _transformer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, vectors = inputs[0], len(head.ctx)
    own = (head.ctx + head.tower.positional_embedding[1 : 1 + vectors]).to(x.dtype).expand(len(x), -1, -1)
    return (torch.cat([x[:, :1], own, x[:, 1 + vectors :]], dim=1), *inputs[1:])


def _as_it_came(_block: nn.Module, inputs: tuple[Any, ...], _output: object) -> torch.Tensor:
    return inputs[0]


def _with_context(tokens: int, visual: Any, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    context = visual.ln_post(kept_tokens(visual)[:: getattr(visual, VIEW_FRAMES), tokens:]) @ visual.proj
    every = context.flatten(1).to(output.dtype).repeat_interleave(getattr(visual, VIEW_FRAMES), dim=0)
    return torch.cat([output, every], dim=1)


def is_new(name: str) -> bool:
    """Whether a parameter of the CLIP is one that TC-CLIP adds."""
    return is_of_head(name) or name.endswith(f".{BIAS}")


def recognise(saved: SavedWeights) -> Converted | None:
    """TC-CLIP's own files have the towers' names of ViFi-CLIP's, and a layer that generates prompts.

    The numbers of frames, seeds and context tokens are those of the configuration in the file, where it has one, and
    a new model's where not: no tensor tells them.

    Raises:
        ModelError: The file is not whole, or its prompts are made in several layers.
    """
    if not any(name.startswith(_GENERATOR) for name in saved.tensors):
        return None
    if _CONTEXT not in saved.tensors:
        raise ModelError(f"{saved.place}: a TC-CLIP checkpoint without {_CONTEXT}")
    if (layers := count_layers(saved.tensors, _GENERATOR)) != 1:
        raise ModelError(f"{saved.place}: generates prompts in {layers} layers, and zar-ray does in the last alone")
    left_out = saved.class_buffers()
    named = {_our_name(name): tensor for name, tensor in saved.tensors.items() if name not in left_out}
    told = _told(saved)
    sizes = {
        **_NEW,
        **told,
        "vectors": len(saved.tensors[_CONTEXT]),
        "biased": any(name.endswith(BIAS) for name in named),
    }
    assumed = tuple(name for name in _SETTINGS if name not in told)
    return Converted(with_joined_projections(named, saved.place), {VIDEO_CONTEXT: sizes}, left_out, assumed)


def _our_name(name: str) -> str:
    if name == _CONTEXT:
        return f"{FUSION}.ctx"
    short = of_towers(name)
    return f"{FUSION}.{short}" if short.startswith(_PROMPTS) else short


def _told(saved: SavedWeights) -> dict[str, Any]:
    """What the configuration in a file says, at its top or of its trainer."""
    config = saved.content.get("config")
    config = config if isinstance(config, Mapping) else {}
    trainer = config.get("trainer")
    said = {**config, **(trainer if isinstance(trainer, Mapping) else {})}
    found = {ours: said[theirs] for ours, theirs in _SETTINGS.items() if isinstance(said.get(theirs), int | float)}
    return {name: value if name == "seeds" else int(value) for name, value in found.items()}


SYSTEM = System(
    name="tcclip",
    title="TC-CLIP",
    parts={VIDEO_CONTEXT: attach_video_context},
    additions={VIDEO_CONTEXT: dict(_NEW)},
    recognise=recognise,
    preprocessing=imagenet_preprocessing,
    training=TrainingRule(added=is_new, new=is_new),
    reference="kim2024tcclip",
)
