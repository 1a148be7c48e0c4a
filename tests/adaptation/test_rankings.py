"""Rankings over several seeds: means, and how far the seeds lie apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.adaptation.rankings import mean_ranking

SCORES = st.integers(1, 5).flatmap(
    lambda labels: st.lists(st.lists(st.floats(0, 1), min_size=labels, max_size=labels), min_size=1, max_size=6)
)


@given(SCORES)
def test_scores_are_means_with_the_sample_deviation_by_falling_mean(scores):
    of_seeds = [dict(zip("abcde", of_one, strict=False)) for of_one in scores]
    table, ranked = np.array(scores), mean_ranking(of_seeds, top_k=3)
    assert len(ranked) == min(3, table.shape[1])
    assert [one.score for one in ranked] == pytest.approx(sorted(table.mean(axis=0), reverse=True)[:3])
    for one in ranked:
        column = table[:, "abcde".index(one.label)]
        assert one.score == pytest.approx(column.mean())
        if len(scores) == 1:
            assert (one.score, one.std) == (column[0], None)
        else:
            assert one.std == pytest.approx(column.std(ddof=1), abs=1e-12)


def test_equal_labels_stay_in_their_order():
    ranked = mean_ranking([{"b": 0.25, "a": 0.25, "c": 0.5}] * 2, top_k=3)
    assert [one.label for one in ranked] == ["c", "b", "a"]
