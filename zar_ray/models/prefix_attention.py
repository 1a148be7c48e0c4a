"""Attention of K prompts that share a prefix, over packed tokens that are laid out by prompt for the products alone.

All tokens lie in one row, the prefix first, then each prompt's own ones; norms and MLPs take them so. Attention takes
them as *groups*, rows of sequences of about equal lengths, the shorter ones padded: the prefix is a sequence as well,
and every sequence has the prefix's keys in front of its own. One gather lays a layer's queries, keys and values out,
and one brings back what they find.

The way back, `pull`, is written out for the one pass over which many gradients are taken, with these side by side as
one more axis of the products. Autograd would run it once a gradient, or batch it by loops over its smaller operations.
Nothing is added up in an order of chance: what a token stands in several times for is summed along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Sequences up to the first length are padded to the longest of them; beyond it, to the longest up to twice as much.
_PADDED_LENGTH = 32

Held = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
"""Of each group, for `pull`: queries and keys, both scaled, values, and probabilities, none of them of padding."""


def group_of(length: int, padded: bool) -> int:
    """The length up to which sequences share a group with one of `length` tokens; itself, where nothing is padded."""
    if not padded:
        return length
    most = _PADDED_LENGTH
    while most < length:
        most *= 2
    return most


@dataclass(frozen=True, eq=False)
class _Group:
    """R sequences of up to q own tokens.

    Attributes:
        rows: R.
        length: q.
        places: int64 (R, q), the own tokens among all; what is beyond a sequence repeats its last.
        index: int64 (parts, 1, R, heads, q), where queries (in three parts alone), keys and values of these are.
        mask: (R, 1, queries, prefix + q), added to the scores.
        real: (R, 1, queries, 1), 1 where a query is of a sequence and 0 beyond it.
    """

    rows: int
    length: int
    places: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True, eq=False)
class Routes:
    """What `PrefixAttention.pull` with B gradients takes in every layer.

    Attributes:
        outcomes: int64, where the groups' outcomes are; None where the ends alone asked.
        sources: int64, where the gradients of what was projected come from.
        rows: The room that they are made in.
    """

    outcomes: torch.Tensor | None
    sources: torch.Tensor
    rows: torch.Tensor


class PrefixAttention:
    """Attention in one kind of layer: of all tokens, or of the ends of text alone.

    Args:
        prefix: Tokens of the prefix, P.
        lengths: Own tokens of each prompt, in the order in which they are packed: by their groups.
        heads: Heads.
        like: A tensor (…, W) of the type and on the device of all.
        padded: Whether prompts of several lengths share a group.
        ends: Whether the last token of each prompt alone asks.

    Attributes:
        tokens: All tokens, T.
    """

    def __init__(
        self, prefix: int, lengths: Sequence[int], heads: int, like: torch.Tensor, *, padded: bool, ends: bool
    ) -> None:
        self._prefix, self._heads, self._only_ends = prefix, heads, ends
        self._parts, self._size = (parts := 2 if ends else 3), like.shape[-1] // heads
        self.tokens = prefix + sum(lengths)
        # The prefix is sequence 0, except where it asks nothing.
        own = torch.tensor([prefix, *lengths])
        starts = own.cumsum(0) - own
        keys = [group_of(length, padded) for length in own.tolist()]
        first = 1 if ends else 0
        self._groups: list[_Group] = []
        # Of A contexts, what a token finds in the one number a is in the row back[0]·A + back[1]·a + back[2].
        back = torch.zeros(3, self.tokens, heads, dtype=torch.int64)
        # Of B gradients, that of a token by the one number b is in the row pull[0]·B + pull[1]·b + pull[2]: each group
        # has its queries' (rows, heads, length, B), its keys' (rows, heads, B, prefix + length), its values' (rows,
        # heads, prefix + length, B), and at the end are the prefix's keys (heads, B, prefix) and values (heads, prefix,
        # B).
        pull = torch.zeros(3, self.tokens, parts, heads, dtype=torch.int64)
        outcomes = gradients = 0
        head = torch.arange(heads)
        for key in sorted(set(keys[first:])):
            members = torch.tensor([number for number in range(first, len(keys)) if keys[number] == key])
            group = self._group(members, own[members], starts[members], like)
            self._groups.append(group)
            rows, length, whole = group.rows, group.length, prefix + group.length
            real = torch.arange(length) < own[members][:, None]
            row, place = real.nonzero(as_tuple=True)
            token = (starts[members][:, None] + torch.arange(length))[real]
            of_head = row[:, None] * heads + head
            back[0, token] = outcomes
            back[1, token] = rows * heads * length
            back[2, token] = of_head * length + place[:, None]
            outcomes += rows * heads * length
            if not ends:
                pull[0, token, 0] = gradients + of_head * length + place[:, None]
                pull[1, token, 0] = 1
                gradients += rows * heads * length
            pull[0, token, -2] = gradients + of_head * whole
            pull[1, token, -2] = whole
            pull[2, token, -2] = prefix + place[:, None]
            gradients += rows * heads * whole
            pull[0, token, -1] = gradients + of_head * whole + prefix + place[:, None]
            pull[1, token, -1] = 1
            gradients += rows * heads * whole
        # Every sequence has the prefix's keys and values, whose gradients are summed.
        place = torch.arange(prefix)[:, None]
        pull[:, :prefix, -2:] = 0
        pull[0, :prefix, -2] = gradients + head * prefix
        pull[1, :prefix, -2] = prefix
        pull[2, :prefix, -2] = place
        pull[0, :prefix, -1] = gradients + heads * prefix + head * prefix + place
        pull[1, :prefix, -1] = 1
        self._gradient_rows = gradients + 2 * heads * prefix
        self._back, self._pull = back.to(like.device), pull.to(like.device)

    def _group(self, members: torch.Tensor, own: torch.Tensor, starts: torch.Tensor, like: torch.Tensor) -> _Group:
        prefix, heads, parts, length = self._prefix, self._heads, self._parts, int(own.max())
        asked = torch.arange(length)
        places = starts[:, None] + torch.minimum(asked, own[:, None] - 1)
        index = (places * parts)[None, :, None] + torch.arange(parts)[:, None, None, None]
        index = index * heads + torch.arange(heads)[:, None]
        if self._only_ends:
            hidden = torch.arange(prefix + length) >= prefix + own[:, None, None, None]
            real = torch.ones(len(own), 1, 1, 1)
        else:
            own_hidden = asked > asked[:, None]
            before = torch.arange(prefix) > asked[:, None]
            whole = torch.cat([torch.zeros_like(before), own_hidden], dim=1)
            of_prefix = torch.cat([before, torch.ones_like(own_hidden)], dim=1)
            hidden = torch.where((members == 0)[:, None, None, None], of_prefix, whole)
            real = (asked < own[:, None])[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden, float("-inf"))
        device = like.device
        return _Group(
            len(own), length, places.to(device), index[:, None].to(device), mask.to(device), real.to(device, like.dtype)
        )

    def layout(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For a pass of A contexts: where the groups' rows come from, and where what tokens find is among theirs."""
        turns = torch.arange(count, device=self._back.device)[:, None, None, None]
        steps = turns * (self.tokens * self._parts * self._heads)
        parts = [(group.index + steps).flatten() for group in self._groups]
        first, size, place = self._back
        back = torch.addcmul(place, size, turns[:, 0]) + first * count
        return parts[0] if len(parts) == 1 else torch.cat(parts), back.flatten()

    def __call__(
        self,
        projected: torch.Tensor,
        layout: tuple[torch.Tensor, torch.Tensor],
        query: torch.Tensor | None = None,
        held: Held | None = None,
    ) -> torch.Tensor:
        """What tokens find, (A, T, W), or of the ends (A, K, W): heads side by side.

        Args:
            projected: (A, T, 3·W), queries, keys and values; with `ends` (A, T, 2·W), keys and values.
            layout: That of A.
            query: With `ends` (A, K, W), the queries.
            held: Is given what `pull` needs, of a pass with A = 1.
        """
        count, heads, prefix, parts = len(projected), self._heads, self._prefix, self._parts
        width = projected.shape[-1] // parts
        size = width // heads
        index, back = layout
        gathered = projected.reshape(-1, size).index_select(0, index)
        of_prefix = projected.unflatten(-1, (parts, heads, size))[:, :prefix, -2:].permute(2, 0, 3, 1, 4)[:, :, None]
        found: list[torch.Tensor] = []
        first = 0
        sizes = [group.index.numel() * count for group in self._groups]
        for group, part in zip(self._groups, gathered.split(sizes), strict=True):
            rows = group.rows
            own = part.view(parts, count, rows, heads, group.length, size)
            keys, values = torch.cat([of_prefix.expand(-1, -1, rows, -1, -1, -1), own[-2:]], dim=-2)
            asking = own[0] if query is None else query[:, first : first + rows].unflatten(-1, (heads, 1, size))
            scores = asking @ keys.mT
            probabilities = torch.add(group.mask, scores, alpha=size**-0.5).softmax(dim=-1)
            outcome = probabilities @ values
            found.append(outcome.reshape(-1, size) if query is None else outcome.reshape(count, rows, width))
            if held is not None:
                real, scale = probabilities * group.real, size**-0.5
                held.append(((asking * scale)[0], (keys * scale)[0], values[0].clone(), real[0]))
            first += rows
        if query is not None:
            return found[0] if len(found) == 1 else torch.cat(found, dim=1)
        outcomes = found[0] if len(found) == 1 else torch.cat(found)
        return outcomes.index_select(0, back).view(count, self.tokens, width)

    def routes(self, count: int, like: torch.Tensor) -> Routes:
        """For `pull` with B gradients: where those of outcomes go, and where those of what was projected come from."""
        turns = torch.arange(count, device=self._pull.device)
        by_row, by_turn, rest = self._pull
        sources = (torch.addcmul(rest, by_turn, turns[:, None, None, None]) + by_row * count).flatten()
        rows = like.new_empty(self._gradient_rows * count, self._size)
        if self._only_ends:
            return Routes(None, sources, rows)
        heads = torch.arange(self._heads, device=turns.device)[:, None, None]
        step = self.tokens * self._heads
        parts = [
            ((group.places * self._heads)[:, None, :, None] + heads + turns * step).flatten() for group in self._groups
        ]
        return Routes(parts[0] if len(parts) == 1 else torch.cat(parts), sources, rows)

    def pull(self, held: Held, gradients: torch.Tensor, routes: Routes) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Takes B gradients of what was found, (B, T, W) or of the ends (B, K, W), to what was projected.

        Returns:
            (B, T, 3·W), or with `ends` (B, T, 2·W), and that of the queries, (B, K, W).
        """
        count, _, width = gradients.shape
        heads, prefix, size, rows = self._heads, self._prefix, self._size, routes.rows
        if routes.outcomes is None:
            # (K, heads, B, size): a sequence asks once
            outcomes = gradients.unflatten(-1, (heads, size)).permute(1, 2, 0, 3).reshape(-1, size)
            of_queries = torch.empty_like(outcomes)
        else:
            outcomes = gradients.reshape(-1, size).index_select(0, routes.outcomes)
            of_queries = None
        sums: list[list[torch.Tensor]] = [[], []]
        first = asked = 0
        for group, (query, key, value, probabilities) in zip(self._groups, held, strict=True):
            queries, whole, batch = probabilities.shape[-2], prefix + group.length, group.rows * heads
            query, key, value, p = (one.flatten(0, 1) for one in (query, key, value, probabilities))
            many = batch * queries * count
            outcome = outcomes[asked : asked + many]
            if of_queries is None:
                of_query = rows[first : first + many]
                first += many
            else:
                of_query = of_queries[asked : asked + many]
            asked += many
            many = batch * whole * count
            of_keys, of_values = rows[first : first + 2 * many].view(2, many, size)
            first += 2 * many

            wide = outcome.view(batch, queries, count * size)
            torch.bmm(p.mT, wide, out=of_values.view(batch, whole, count * size))
            of_scores = torch.bmm(outcome.view(batch, queries * count, size), value.mT)
            p = p[:, :, None].expand(-1, -1, count, -1).contiguous().view_as(of_scores)
            of_scores = torch.ops.aten._softmax_backward_data(of_scores, p, -1, p.dtype)
            torch.bmm(of_scores, key, out=of_query.view(batch, queries * count, size))
            of_scores = of_scores.view(batch, queries, count * whole)
            torch.bmm(of_scores.mT, query, out=of_keys.view(batch, count * whole, size))
            sums[0].append(of_keys.view(group.rows, heads, count, whole, size)[:, :, :, :prefix])
            sums[1].append(of_values.view(group.rows, heads, whole, count, size)[:, :, :prefix])
        for parts, behind in zip(sums, rows[first:].view(2, -1), strict=True):
            target = behind.view(parts[0].shape[1:])
            torch.sum(parts[0], dim=0, out=target)
            for other in parts[1:]:
                target += other.sum(dim=0)
        pulled = rows.index_select(0, routes.sources).view(count, self.tokens, self._parts * width)
        if of_queries is None:
            return pulled, None
        return pulled, of_queries.view(-1, heads, count, size).permute(2, 0, 1, 3).reshape(count, -1, width)
