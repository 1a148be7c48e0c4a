"""A flat map of the videos' features: the paper's figure 6."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.manifold import TSNE

MOST_VIDEOS = 2000
"""More would take minutes and overlap in print; so many are taken, evenly spread over the videos by id."""

LEAST_VIDEOS = 5
"""With fewer there are no neighbourhoods to draw."""

_PERPLEXITY = 30.0


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Where t-SNE puts the videos.

    Attributes:
        chosen: int (M,), the rows of the features that were drawn, ascending.
        points: float (M, 2), their places.
        perplexity: About how many neighbours each video was held against.
    """

    chosen: np.ndarray
    points: np.ndarray
    perplexity: float


def embedding_map(features: np.ndarray, seed: int = 0) -> EmbeddingMap:
    """Lays features out on a plane so that near ones stay near (t-SNE; van der Maaten and Hinton, JMLR 2008).

    Args:
        features: (N, D), L2-normalised, N at least `LEAST_VIDEOS`.
        seed: Seed of the layout.

    Raises:
        ValueError: There are too few videos.
    """
    count = len(features)
    if count < LEAST_VIDEOS:
        raise ValueError(f"{count} videos are too few for a map; {LEAST_VIDEOS} are needed")
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_VIDEOS)).round().astype(np.int64))
    # A video has at most all others for neighbours, and van der Maaten advises to stay well below that.
    perplexity = min(_PERPLEXITY, (len(chosen) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(
        features[chosen].astype(np.float32)
    )
    return EmbeddingMap(chosen, points, perplexity)
