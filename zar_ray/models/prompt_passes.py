"""Two ways through the text tower for K prompts that differ in their class name only.

    start  context …  name … .  end          L context vectors, tuned; everything else stays

`SharedPrefixPass` computes start and context once for all classes, which a causal tower allows, and each class's own
tokens against their keys and values. `FullPass` runs whole prompts, for towers and prompts of another shape. They
give equal features and gradients, and both take several contexts, one a video, at once. All videos start from the same
context: what its pass leaves behind for gradients is a *trail*, which each can `follow` for those of many losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from zar_ray.models.blocks import Block, Norm, unfit_block
from zar_ray.models.clip import ClipModel
from zar_ray.models.deep_prompts import has_other_hooks, with_layer_prompts
from zar_ray.models.parts import DEEP_PROMPTS
from zar_ray.models.precision import full_precision
from zar_ray.models.prefix_attention import Held, PrefixAttention, group_of


@dataclass
class TokenCount:
    """Tokens that contexts have run through the text tower: forward, and back through it for gradients.

    What all videos share, the pass of the untuned context, is in neither.
    """

    forward: int = 0
    backward: int = 0

    def passed(self, features: torch.Tensor, tokens: int) -> torch.Tensor:
        """Counts a pass of so many tokens, and each time that gradients go back through it."""
        self.forward += tokens
        if features.requires_grad:
            features.register_hook(lambda _: self.back(tokens))
        return features

    def back(self, tokens: int) -> None:
        """Counts tokens that gradients have gone back through."""
        self.backward += tokens

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Counts nothing of what is done inside where that fails, as where memory runs out: it is done anew."""
        known = self.forward, self.backward
        try:
            yield
        except Exception:
            self.forward, self.backward = known
            raise


@dataclass(frozen=True, eq=False)
class Trail:
    """What one context's pass has left behind.

    Attributes:
        embeddings: (K, D), its text embeddings, not normalised.
        bytes: What is held for `follow`, weights aside.
        follow: Takes gradients (B, K, D) of these embeddings to those of the context, (B, L, W).
    """

    embeddings: torch.Tensor
    bytes: int
    follow: Callable[[torch.Tensor], torch.Tensor]


class FullPass:
    """Runs each prompt from its start to the longest end of text, or as many positions as the tower needs.

    Args:
        model: Whose text tower it is.
        embeddings: (K, n, W), token embeddings of the prompts without positions, n the tower's positions; what
            stands in the context's places does not matter.
        places: int64 (K, L), where each prompt's context vectors stand.
        ids: int64 (K, n), the prompts' tokens, which say where each ends.

    Attributes:
        tokens: Tokens that one context runs through the tower.
    """

    def __init__(self, model: ClipModel, embeddings: torch.Tensor, places: torch.Tensor, ids: torch.Tensor) -> None:
        length = model.text.needed(ids)
        self._encode, self._weights = model.encode_embedded_text, tuple(model.clip.parameters())
        self._embeddings = embeddings[:, :length]
        self._rows = torch.arange(len(embeddings), device=embeddings.device)[:, None]
        self._places, self._ids = places.to(embeddings.device), ids[:, :length].to(embeddings.device)
        self.tokens = len(embeddings) * length

    def __call__(self, contexts: torch.Tensor) -> torch.Tensor:
        """Text embeddings (B, K, D) under contexts (B, L, W), not normalised, differentiable in these."""
        count, classes = len(contexts), len(self._embeddings)
        prompts = self._embeddings.expand(count, -1, -1, -1).clone()
        prompts[:, self._rows, self._places] = contexts[:, None].expand(-1, classes, -1, -1)
        return self._encode(prompts.flatten(0, 1), self._ids.repeat(count, 1)).unflatten(0, (count, classes))

    def trail(self, context: torch.Tensor) -> Trail:
        """Runs one context (L, W), and keeps autograd's graph."""
        leaf, kept = context.detach()[None].clone().requires_grad_(), {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # the tensor itself would hold the graph that holds it

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            embeddings = self(leaf)

        def follow(gradients: torch.Tensor) -> torch.Tensor:
            parts = [torch.autograd.grad(embeddings, leaf, one[None], retain_graph=True)[0] for one in gradients]
            return torch.cat(parts)

        own = {weight.untyped_storage().data_ptr() for weight in self._weights}
        return Trail(embeddings.detach()[0], sum(size for place, size in kept.items() if place not in own), follow)


def unfit_text(tower: Any) -> str | None:
    """Why `SharedPrefixPass` cannot stand for a text tower; None where it can."""
    if not hasattr(tower, "token_embedding"):
        return "its text tower is none of open_clip's"
    if tower.attn_mask is None:
        return "its text tower is not causal"
    if getattr(tower, "cls_emb", None) is not None:
        return "its text tower gathers a text in a class token"
    if not isinstance(tower.text_projection, torch.Tensor):
        return "its text tower ends in no plain projection"
    if has_other_hooks(tower.transformer.modules()):
        return "something hooks into its text tower"
    reason = unfit_block(tower.transformer.resblocks)
    return None if reason is None else f"in its text tower, {reason}"


class SharedPrefixPass:
    """Runs the start token and the context once, and of each class its own tokens only, up to its end of text.

    All tokens pass the norms and the MLPs as one matrix, and nothing is padded there; see `PrefixAttention` for what
    they find in each other. In the last block only what the ends of text need is computed. Where the tower has prompt
    vectors in its layers (`zar_ray.models.deep_prompts`), they take the context's places there.

    Args:
        tower: open_clip's text tower, a `CLIP` or the ``text`` of a `CustomTextCLIP`, which `unfit_text` has nothing
            against.
        embeddings: (K, n, W), token embeddings of the prompts without positions; the context stands in the places
            1 to L.
        context_length: L.
        ends: int64 (K,), where each prompt's end of text is; after the context.
        padded: Whether classes of several lengths share attention's products, which takes fewer and larger ones; by
            default on a GPU alone.
    """

    def __init__(
        self,
        tower: Any,
        embeddings: torch.Tensor,
        context_length: int,
        ends: torch.Tensor,
        padded: bool | None = None,
    ) -> None:
        positions, device = tower.positional_embedding, embeddings.device
        padded = device.type == "cuda" if padded is None else padded
        self._prefix = prefix = 1 + context_length
        self._start = embeddings[0, :1] + positions[:1]
        self._context_positions = positions[1:prefix]
        self._blocks = [Block(block, embeddings.dtype) for block in tower.transformer.resblocks]
        self._norm, self._projection = Norm(tower.ln_final), tower.text_projection
        self._layer_prompts: torch.Tensor | None = getattr(tower, DEEP_PROMPTS, None)

        # Where the ends are, on the CPU as a rule: no wait for a GPU, and sizes are known where weights are not.
        lengths = ends.cpu() - prefix + 1
        order = torch.tensor([group_of(length, padded) for length in lengths.tolist()]).argsort(stable=True)
        lengths = lengths[order]
        owner = torch.arange(len(order)).repeat_interleave(lengths)
        places = prefix + torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
        packed = order[owner].to(device), places.to(device)
        self._names = embeddings[packed] + positions[packed[1]]
        self._order, self._rank = order.to(device), order.argsort().to(device)
        self._ends = (prefix - 1 + lengths.cumsum(0)).to(device)
        self.tokens = prefix + len(owner)

        def attention(ends: bool) -> PrefixAttention:
            heads = self._blocks[0].heads
            return PrefixAttention(prefix, lengths.tolist(), heads, embeddings, padded=padded, ends=ends)

        self._attention, self._attention_of_ends = attention(ends=False), attention(ends=True)

    def __call__(self, contexts: torch.Tensor) -> torch.Tensor:
        """See `FullPass`."""
        return self._run(contexts, None)

    def trail(self, context: torch.Tensor) -> Trail:
        """Runs one context (L, W), and keeps what the gradients of any number of losses need."""
        record = _Record()
        with torch.no_grad():
            embeddings = self._run(context[None], record)[0]
            record.seal()
        return Trail(embeddings, record.bytes, lambda gradients: self._follow(gradients, record))

    def _run(self, contexts: torch.Tensor, record: _Record | None) -> torch.Tensor:
        count = len(contexts)
        with full_precision(contexts.device):
            tokens = [self._start, contexts + self._context_positions, self._names]
            x = torch.cat([part.expand(count, *part.shape[-2:]) for part in tokens], dim=1)
            layouts = self._attention.layout(count), self._attention_of_ends.layout(count)
            for layer, block in enumerate(self._blocks):
                x = with_layer_prompts(x, self._layer_prompts, layer, 1)
                x = self._block(block, x, layouts, record, last=layer == len(self._blocks) - 1)
            return (_normed(self._norm, x, record) @ self._projection)[:, self._rank]

    def _block(self, block: Block, x: torch.Tensor, layouts: Any, record: _Record | None, last: bool) -> torch.Tensor:
        normed = _normed(block.norm_1, x, record)
        held: Held | None = None if record is None else []
        if last:
            width = x.shape[-1]
            of_ends = F.linear(normed[:, self._ends], block.project_weight[:width], block.project_bias[:width])
            others = F.linear(normed, block.project_weight[width:], block.project_bias[width:])
            heads, x = self._attention_of_ends(others, layouts[1], of_ends, held), x[:, self._ends]
        else:
            projected = F.linear(normed, block.project_weight, block.project_bias)
            heads = self._attention(projected, layouts[0], held=held)
        attended = x + F.linear(heads, block.out_weight, block.out_bias)
        middle = attended if block.adapter is None else block.adapter(attended)
        if record is None or held is None:
            return block.transformed(middle)
        wide = F.linear(_normed(block.norm_2, middle, record), block.widen_weight, block.widen_bias)
        record.layers.append(_Layer(held, None if block.adapter is None else attended, wide))
        return block.narrowed(middle, wide)

    def _follow(self, gradients: torch.Tensor, record: _Record) -> torch.Tensor:
        count, last = len(gradients), len(self._blocks) - 1
        with torch.no_grad(), full_precision(gradients.device):
            of_all, of_ends = (one.routes(count, gradients) for one in (self._attention, self._attention_of_ends))
            (means, deviations), (end_means, end_deviations) = (
                _tiled(one, count).unflatten(0, (2, -1)) for one in record.statistics
            )
            middle, end = _tiled(record.inputs[-1], count)
            gradient = gradients[:, self._order] @ self._projection.mT
            gradient = self._norm.pull(gradient, end, end_means[1], end_deviations[1])
            for layer in reversed(range(len(self._blocks))):
                block, left = self._blocks[layer], record.layers[layer]
                if layer == last:
                    x = _tiled(record.inputs[layer], count)[0]
                    gradient = _pull_mlp(block, left, gradient, middle, end_means[0], end_deviations[0])
                else:
                    x, middle = _tiled(record.inputs[layer], count)
                    statistics = means[2 * layer + 1], deviations[2 * layer + 1]
                    gradient = _pull_mlp(block, left, gradient, middle, *statistics)
                heads, statistics = gradient @ block.out_weight, (means[2 * layer], deviations[2 * layer])
                if layer == last:
                    pulled, of_query = self._attention_of_ends.pull(left.held, heads, of_ends)
                    assert of_query is not None
                    width = gradient.shape[-1]
                    pulled = pulled @ block.project_weight[width:]
                    pulled.index_add_(1, self._ends, of_query @ block.project_weight[:width])
                    gradient = block.norm_1.pull(pulled, x, *statistics).index_add_(1, self._ends, gradient)
                else:
                    pulled, _ = self._attention.pull(left.held, heads, of_all)
                    gradient = block.norm_1.pull(pulled @ block.project_weight, x, *statistics).add_(gradient)
                if self._layer_prompts is not None and 0 < layer < len(self._layer_prompts):
                    gradient[:, 1 : self._prefix] = 0  # the layer's own vectors stood there
            return gradient[:, 1 : self._prefix].clone()


@dataclass(frozen=True, eq=False)
class _Layer:
    """What a block of one context's pass leaves behind.

    Attributes:
        held: The attention's.
        attended: What an adapter read, (1, tokens, W); None without one.
        wide: What the activation read, (1, tokens, 4·W).
    """

    held: Held
    attended: torch.Tensor | None
    wide: torch.Tensor


class _Record:
    """What one context's pass leaves behind.

    Attributes:
        layers: Of each block.
        inputs: What each norm read, (1, tokens, W); once sealed, that of the two norms of each block but the last
            together, of the last one's first norm, and of the norms of the ends alone.
        statistics: Each norm's means and reciprocal deviations; once sealed, (2·N, tokens, 1) of all norms of all
            tokens, the means first, and of the two norms of the ends alone.
    """

    def __init__(self) -> None:
        self.layers: list[_Layer] = []
        self.inputs: list[torch.Tensor] = []
        self.statistics: list[torch.Tensor] = []

    def seal(self) -> None:
        """Puts together what is taken together on the way back."""
        *of_all, middle, end = self.inputs
        pairs = [torch.cat(of_all[first : first + 2]) for first in range(0, len(of_all), 2)]
        self.inputs = [*pairs, torch.cat([middle, end])]
        means, deviations = self.statistics[::2], self.statistics[1::2]
        self.statistics = [torch.cat([*means[:-2], *deviations[:-2]]), torch.cat([*means[-2:], *deviations[-2:]])]

    @property
    def bytes(self) -> int:
        """Of all tensors; none shares its memory with another."""
        held = [one for layer in self.layers for group in layer.held for one in group]
        others = [one for layer in self.layers for one in (layer.wide, layer.attended) if one is not None]
        return sum(one.untyped_storage().nbytes() for one in (*self.inputs, *self.statistics, *held, *others))


def _normed(norm: Norm, x: torch.Tensor, record: _Record | None) -> torch.Tensor:
    if record is None:
        return norm(x)
    normed, *statistics = norm.with_statistics(x)
    record.inputs.append(x)
    record.statistics += statistics
    return normed


def _tiled(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """(N, tokens, …) to (N, B, tokens, …), as many times each, in memory of its own where B is more than 1."""
    return tensor[:, None].expand(-1, count, -1, -1).contiguous()


def _pull_mlp(
    block: Block, left: _Layer, gradient: torch.Tensor, middle: torch.Tensor, *statistics: torch.Tensor
) -> torch.Tensor:
    """Takes gradients (B, tokens, W) of a block's outcome to those of what its attention gave."""
    wide = block.pull_activation(gradient @ block.narrow_weight, left.wide)
    gradient = block.norm_2.pull(wide @ block.widen_weight, middle, *statistics).add_(gradient)
    if block.adapter is None or left.attended is None:
        return gradient
    with torch.enable_grad():
        leaf = left.attended.expand_as(gradient).clone().requires_grad_()
        return torch.autograd.grad(block.adapter(leaf), leaf, gradient)[0]
