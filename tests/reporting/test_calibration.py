"""Confidence against how often it is right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.reporting.figures import calibrate


def test_a_known_answer():
    # Two bins: 0.6 said and half right, 0.95 said and all right.
    found = calibrate(np.array([0.6, 0.6, 0.95, 0.95]), np.array([True, False, True, True]))
    assert found.confidence == pytest.approx([0.6, 0.95])
    assert found.accuracy == pytest.approx([0.5, 1.0])
    assert found.videos.tolist() == [2, 2]
    assert found.error == pytest.approx((0.1 + 0.05) / 2)


def test_weights_are_numbers_of_videos():
    confidence = np.array([0.15] * 9 + [0.85])
    found = calibrate(confidence, np.array([False] * 9 + [True]))
    assert found.error == pytest.approx((9 * 0.15 + 0.15) / 10)


def test_all_right_and_all_wrong():
    assert calibrate(np.ones(3), np.ones(3, bool)).error == 0
    assert calibrate(np.ones(3), np.zeros(3, bool)).error == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_the_error_is_that_of_its_definition(videos, bins):
    confidence, right = (np.array(column) for column in zip(*videos, strict=True))
    found = calibrate(confidence, right, bins)
    assert found.videos.sum() == len(videos)
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for number, (low, high) in enumerate(pairwise(edges)):
        # A bin holds its upper end; the first its lower end as well.
        inside = (confidence > low) & (confidence <= high) if number else confidence <= high
        if inside.any():
            expected += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    assert found.error == pytest.approx(expected / len(videos), abs=1e-9)
