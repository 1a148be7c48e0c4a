"""A map of features keeps neighbours together, of few videos and of many."""

from __future__ import annotations

import numpy as np

from zar_ray.reporting.figures import LEAST_VIDEOS, embedding_map, spread


def clusters(each: int, dimensions: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = np.eye(dimensions)[:3]
    features = np.repeat(centres, each, axis=0) + 0.05 * rng.normal(size=(3 * each, dimensions))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_videos_of_a_cluster_lie_together():
    found = embedding_map(clusters(15))
    assert found.points.shape == (45, 2)
    distances = np.linalg.norm(found.points[:, None] - found.points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert np.mean(distances.argmin(axis=1) // 15 == np.arange(45) // 15) == 1


def test_the_same_seed_makes_the_same_map():
    assert np.array_equal(embedding_map(clusters(4), seed=3).points, embedding_map(clusters(4), seed=3).points)


def test_few_videos_have_a_smaller_perplexity():
    found = embedding_map(clusters(2)[:LEAST_VIDEOS])
    assert found.points.shape == (LEAST_VIDEOS, 2)
    assert np.isfinite(found.points).all()
    assert found.perplexity < LEAST_VIDEOS


def test_of_many_videos_some_are_taken_evenly():
    assert spread(15, 7).tolist() == [0, 2, 5, 7, 9, 12, 14]
    assert [spread(count, 7).tolist() for count in (0, 1, 7)] == [[], [0], list(range(7))]
