"""ECALP: spreads labels over a graph of the classes and of all videos seen so far; a stream, and no training.

Li et al., "Efficient and Context-Aware Label Propagation for Zero-/Few-Shot Training-Free Adaptation of Vision-Language
Model", ICLR 2025, section 3, as the authors' code computes it. A video is its evaluation view. The newest one stands in
the graph twice, and its second copy is read off; for the next video that copy is gone. Lists of neighbours are kept up
as videos come, not sought anew, and may lose a video for good around the moment when they fill up.

The graph lies on the CPU whatever the model's device: sums over its edges then have one order, so that a stream that is
continued gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Decision, Shared, VideoFeatures, require_finite, stream_method
from zar_ray.adaptation.caches import plain_view, unfit_for_online_texts, unless_it_fails
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option

_SMALL = 1e-6  # beside the root of a degree, as published
_ROOM = 256  # videos that there is room for at first
_STATE = ("weighted", "neighbours", "similarities", "near_classes", "class_cosines", "labels")


class EcalpConfig(Options):
    """Label propagation on a growing graph (Li et al., ICLR 2025), which costs more with every video of the stream."""

    class_neighbours: int = option(3, "Classes that a video has edges to, the nearest ones.", ge=1)
    video_neighbours: int = option(8, "Videos that a video has edges to, the nearest ones.", ge=1)
    sharpness: float = option(10.0, "gamma, the power of a similarity that is an edge's weight.", gt=0)
    alpha: float = option(1.0, "Weight of what neighbours say; the rest is what was carried over.", ge=0, le=1)
    iterations: int = option(3, "How often labels spread, a video.", ge=1)
    carried: float = option(0.2, "Share of a video's largest score that it starts from next time.", ge=0)


@dataclass(frozen=True, eq=False)
class Propagation:
    """A graph of K classes and n videos, the newest once more at the end, and what labels came of it.

    Attributes:
        neighbours: int64 (n + 1, k), rows of the videos nearest to each, descending.
        similarities: float32 (n + 1, k), their similarities.
        adjacency: float32 (K + n + 1, K + n + 1), sparse, symmetric, not normalised.
        scores: float32 (K,), of the newest video's second copy.
        carried: float32 (n + 1, K), the labels that the next propagation starts from.
    """

    neighbours: torch.Tensor
    similarities: torch.Tensor
    adjacency: torch.Tensor
    scores: torch.Tensor
    carried: torch.Tensor


class GrowingGraph:
    """The graph as it is left for the next video; n videos so far, all on the CPU.

    Attributes:
        weighted: float32 (n, D), features weighted by dimension, L2-normalised.
        neighbours: int64 (n, w), each video's list; may name the copy that is gone, n.
        similarities: float32 (n, w), of the list.
        near_classes: int64 (n, c), each video's nearest classes.
        class_cosines: float32 (n, c), their cosines.
        labels: float32 (n, K), carried over.
    """

    def __init__(self, texts: torch.Tensor, options: EcalpConfig) -> None:
        self._texts = texts.cpu()
        self._options = options
        count, width = self._texts.shape
        # What tells classes apart counts; one class has nothing to be told from.
        spread = self._texts.var(dim=0) if count > 1 else self._texts.new_ones(width)
        self._weights = normalize(spread, dim=0)
        near = min(options.class_neighbours, count)
        # Rows that were written stay; room is doubled where there is none, so that a stream does not copy it all.
        self._rows, self._count = self._texts.new_zeros(_ROOM, width), 0
        self.neighbours = torch.zeros(0, 0, dtype=torch.int64)
        self.similarities = self._texts.new_zeros(0, 0)
        self.near_classes = torch.zeros(0, near, dtype=torch.int64)
        self.class_cosines = self._texts.new_zeros(0, near)
        self.labels = self._texts.new_zeros(0, count)

    @property
    def weighted(self) -> torch.Tensor:
        """See the class."""
        return self._rows[: self._count]

    @weighted.setter
    def weighted(self, rows: torch.Tensor) -> None:
        self._count = len(rows)
        if rows.data_ptr() != self._rows.data_ptr():
            self._rows = torch.cat([rows, self._rows.new_zeros(max(_ROOM, len(rows)), rows.shape[1])])

    def place(self, feature: torch.Tensor) -> Propagation:
        """Puts a video's feature (D,), L2-normalised, into the graph, and spreads labels over it."""
        older = self._count
        if older == len(self._rows):
            self._rows = torch.cat([self._rows, torch.zeros_like(self._rows)])
        self._rows[older] = normalize(self._weights * feature, dim=0)
        with exact_float32():
            # One-sided: only the older video of two is weighted.
            similar = self._rows[: older + 1] @ feature
            cosines = self._texts @ feature
        lists, values, width = self._lists(similar)
        nearest = cosines.argsort(descending=True, stable=True)[: self.near_classes.shape[1]]
        near_classes = torch.cat([self.near_classes, nearest.expand(2, -1)])
        class_cosines = torch.cat([self.class_cosines, cosines[nearest].expand(2, -1)])
        adjacency = self._adjacency(lists[:, :width], values[:, :width], near_classes, class_cosines)
        start = torch.cat([self.labels, self.labels.new_zeros(2, self.labels.shape[1])])
        spread = self._spread(adjacency, start)
        largest, of = spread.max(dim=1, keepdim=True)
        carried = torch.zeros_like(spread).scatter(1, of, self._options.carried * largest)
        # The second copy goes.
        kept = older + 1
        self._count, self.labels = kept, carried[:kept]
        self.neighbours, self.similarities = lists[:kept], values[:kept]
        self.near_classes, self.class_cosines = near_classes[:kept], class_cosines[:kept]
        return Propagation(lists[:, :width], values[:, :width], adjacency, spread[-1], carried)

    def _lists(self, similar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """All lists with the newest video twice, their similarities, and how many of their places are edges.

        Up to two places more are kept, as the newest video fills two and leaves one of them.
        """
        older = len(similar) - 1
        width = min(self._options.video_neighbours, older + 2)
        kept = width + min(2, max(0, older - width))
        known = self.similarities.masked_fill(self.neighbours == older, -1.0)
        values = torch.cat([known, similar[:older, None].expand(-1, 2)], dim=1)
        lists = torch.cat([self.neighbours, torch.tensor([older, older + 1]).expand(older, -1)], dim=1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, :kept]
        doubled = torch.cat([similar, similar[-1:]])
        own = doubled.argsort(descending=True, stable=True)[:kept]
        lists = torch.cat([lists.gather(1, order), own.expand(2, -1)])
        return lists, torch.cat([values.gather(1, order), doubled[own].expand(2, -1)]), width

    def _adjacency(
        self, lists: torch.Tensor, values: torch.Tensor, near_classes: torch.Tensor, class_cosines: torch.Tensor
    ) -> torch.Tensor:
        """Edges of classes and videos, both ways, see `Propagation`."""
        classes, videos = len(self._texts), len(lists)
        targets = torch.cat([lists + classes, near_classes], dim=1)
        sources = torch.arange(classes, classes + videos)[:, None].expand_as(targets)
        # A negative cosine may have no such power, and is no edge then.
        weights = torch.cat([values, class_cosines], dim=1).pow(self._options.sharpness).nan_to_num(0.0).flatten()
        edges = torch.stack([sources.flatten(), targets.flatten()])
        size = (classes + videos, classes + videos)
        both = torch.cat([edges, edges.flip(0)], dim=1)
        return torch.sparse_coo_tensor(both, weights.repeat(2), size, check_invariants=True).coalesce()

    def _spread(self, adjacency: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """float32 (n + 1, K): the videos' labels after all iterations, from labels of that shape."""
        (rows, columns), weights = adjacency.indices(), adjacency.values()
        degrees = weights.new_zeros(len(adjacency)).index_add(0, rows, weights)
        scales = 1 / (degrees.sqrt() + _SMALL)
        scaled = torch.sparse_coo_tensor(
            adjacency.indices(),
            scales[rows] * weights * scales[columns],
            adjacency.shape,
            is_coalesced=True,
            check_invariants=False,  # the same edges
        )
        classes, alpha = torch.eye(start.shape[1]), self._options.alpha
        labels = start
        with exact_float32():
            for _ in range(self._options.iterations):
                told = torch.sparse.mm(scaled, torch.cat([classes, labels]))[len(classes) :]
                labels = alpha * told + (1 - alpha) * start
        return labels


class EcalpStream:
    """The graph, as it grows from video to video."""

    def __init__(self, classes: PromptedClasses, options: EcalpConfig, shared: Shared) -> None:
        self._classes = classes
        self._graph = GrowingGraph(classes.initial_features, options)

    def decide(self, video: VideoFeatures) -> Decision:
        """Puts a video into the graph, and decides by the labels that reach it.

        Raises:
            VideoError: Some logits or scores are not finite (stage ``adapt``); the graph is as it was.
        """
        before, feature = plain_view(video, self._classes)
        with unless_it_fails(self._graph):
            scores = self._graph.place(feature.cpu()).scores
            require_finite(scores, "after propagation")
            # The scores' shares are the probabilities; the smallest number stands for none.
            after = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
            return Decision(logits_before=before.cpu(), logits_after=after)

    def state(self) -> dict[str, torch.Tensor]:
        """The videos, their edges and their labels; as many rows as videos were seen."""
        return {name: getattr(self._graph, name) for name in _STATE}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        for name in _STATE:
            setattr(self._graph, name, state[name])


METHOD = stream_method(
    "ecalp",
    "labels spread over a graph of the videos seen before",
    EcalpStream,
    EcalpConfig,
    unfit=unfit_for_online_texts,
    changes="a graph of all videos seen",
    cost="a pass over that graph",
    source="Li et al., ICLR 2025",
    reference="li2025ecalp",
)
