"""Paired differences with their intervals and p values, and what becomes of p values when there are several."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar

from zar_ray.results.statistics import (
    holm,
    paired_comparison,
    replicated_share,
    sample_deviation,
    share_estimate,
)

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).map(lambda one: np.array(one).T)


def outcomes(gained: int, lost: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.array([False] * gained + [True] * lost + [True] * same)
    after = np.array([True] * gained + [False] * lost + [True] * same)
    return before, after


def test_known_counts_and_p():
    found = paired_comparison(*outcomes(8, 1, 11))
    assert (found.gained, found.lost, found.difference) == (8, 1, 7 / 20)
    assert found.p_value == pytest.approx(0.0390625)
    assert found.top1.low < 0.35 < found.top1.high


@given(pairs)
@settings(deadline=None, max_examples=40)
def test_p_is_that_of_statsmodels_exact_mcnemar(pair):
    before, after = pair
    table = [[(before & after).sum(), (before & ~after).sum()], [(~before & after).sum(), (~before & ~after).sum()]]
    assert paired_comparison(before, after).p_value == pytest.approx(mcnemar(table, exact=True).pvalue)


@given(pairs, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_the_order_of_videos_changes_nothing_and_exchange_changes_the_sign(pair, random):
    before, after = pair
    order = list(range(len(before)))
    random.shuffle(order)
    found = paired_comparison(before, after)
    assert paired_comparison(before[order], after[order]) == found
    back = paired_comparison(after, before)
    assert (back.difference, back.gained, back.lost) == (-found.difference, found.lost, found.gained)
    assert back.p_value == pytest.approx(found.p_value)
    low, high = found.top1.low, found.top1.high
    assert -1 <= low <= found.difference <= high <= 1


def test_the_interval_is_that_of_a_paired_bootstrap_over_videos():
    before, after = outcomes(30, 12, 158)
    found = paired_comparison(before, after)

    def difference(a, b, axis):
        return b.mean(axis=axis) - a.mean(axis=axis)

    redrawn = bootstrap(
        (before, after), difference, paired=True, vectorized=True, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    assert (found.top1.low, found.top1.high) == pytest.approx((redrawn.low, redrawn.high), abs=0.012)


def test_no_change_in_few_videos_is_not_proof_of_none():
    before, after = outcomes(0, 0, 5)
    found = paired_comparison(before, after)
    assert (found.difference, found.p_value) == (0, 1)
    assert (found.top1.low, found.top1.high) == pytest.approx((-0.5218, 0.5218), abs=1e-3)


def test_different_or_no_videos_are_refused():
    with pytest.raises(ValueError, match="same N > 0"):
        paired_comparison(np.array([True]), np.array([True, False]))
    with pytest.raises(ValueError, match="same N > 0"):
        paired_comparison(np.array([], bool), np.array([], bool))


def test_holm_by_hand():
    # The smallest times 4, the next times 3 and so on, never falling, never above 1.
    assert holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    assert holm([]) == []


def test_shares_of_all_or_none_have_exact_intervals():
    assert (share_estimate(5, 5).low, share_estimate(5, 5).high) == pytest.approx((0.4782, 1.0), abs=1e-4)
    assert (share_estimate(3, 10).value, share_estimate(3, 10).low) == (0.3, 0.0)


replicated = st.integers(1, 4).flatmap(
    lambda replicates: st.lists(
        st.lists(st.tuples(st.booleans(), st.booleans()), min_size=replicates, max_size=replicates),
        min_size=1,
        max_size=12,
    ).map(lambda one: np.array(one).transpose(2, 1, 0))
)


@given(replicated)
@settings(deadline=None, max_examples=60)
def test_p_of_replicates_is_that_of_all_exchanges_of_whole_videos(pair):
    before, after = pair
    changes = (after.astype(int) - before).sum(axis=0)
    signs = np.array(list(itertools.product((-1, 1), repeat=len(changes))))
    sums = np.abs(signs @ np.abs(changes))
    found = paired_comparison(before, after)
    assert found.p_value == pytest.approx((sums >= abs(changes.sum()) - 1e-9).mean())
    assert found.difference == pytest.approx(after.mean() - before.mean())
    assert found.top1.low <= found.difference <= found.top1.high


def test_replicates_that_agree_are_one_measurement():
    before, after = outcomes(9, 2, 30)
    one = paired_comparison(before, after)
    three = paired_comparison(np.stack([before] * 3), np.stack([after] * 3))
    assert three.p_value == pytest.approx(one.p_value)
    assert (three.top1.low, three.top1.high) == pytest.approx((one.top1.low, one.top1.high), abs=0.03)
    right = np.stack([after] * 3)
    single, tripled = replicated_share(after[None]), replicated_share(right)
    assert single == share_estimate(int(after.sum()), len(after))
    assert (tripled.value, tripled.low, tripled.high) == pytest.approx(
        (single.value, single.low, single.high), abs=0.03
    )


def test_which_deviation_is_which():
    values = (0.1, 0.2, 0.6)
    assert sample_deviation(values) == pytest.approx(np.std(values, ddof=1))
    assert sample_deviation((0.5,)) is None
