"""Paired differences with their intervals and p values, and what becomes of p values when there are several."""

from __future__ import annotations

import itertools
from dataclasses import astuple
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from zar_ray.results.statistics import (
    detectable_difference,
    holm,
    paired_comparison,
    sample_deviation,
    share_estimate,
    share_of,
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
    assert found.effect.low < 0.35 < found.effect.high


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
    low, high = found.effect.low, found.effect.high
    assert -1 <= low <= found.difference <= high <= 1


def test_the_interval_is_bonett_and_prices():
    # Counts and interval worked out by hand from their formula, with one more gained and one more lost.
    found = paired_comparison(*outcomes(30, 12, 158)).effect
    centre = 18 / 202
    reach = 1.959964 * np.sqrt((44 / 202 - centre**2) / 202)
    assert (found.low, found.high) == pytest.approx((centre - reach, centre + reach), abs=1e-6)


def test_no_change_in_few_videos_is_not_proof_of_none():
    before, after = outcomes(0, 0, 5)
    found = paired_comparison(before, after)
    assert (found.difference, found.p_value) == (0, 1)
    assert (found.effect.low, found.effect.high) == pytest.approx((-0.396, 0.396), abs=1e-3)


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


@settings(deadline=None, max_examples=12)
@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.04, 1.0])), min_size=1, max_size=12))
def test_holms_rule_is_that_of_statsmodels(p_values):
    # It collects garbage each time, which takes half a second where all tests are loaded.
    with patch("gc.collect"):
        expected = multipletests(p_values, method="holm")[1].tolist()
    assert holm(p_values) == pytest.approx(expected)


@given(st.integers(1, 3000).flatmap(lambda videos: st.tuples(st.integers(0, videos), st.just(videos))))
def test_every_share_has_wilsons_interval(counts):
    right, videos = counts
    found = share_estimate(right, videos)
    expected = binomtest(right, videos).proportion_ci(method="wilson")
    assert found.value == right / videos
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    if right < videos:
        # One more that is right never makes the share look less sure of being high.
        assert share_estimate(right + 1, videos).low > found.low


@st.composite
def grouped(draw):
    """Two decisions about up to 12 sources of up to 4 videos each, and the videos' sources, in any order."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    sources = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pair = rng.random((2, len(sources))) < draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
    order = rng.permutation(len(sources))
    return *pair[:, order], sources[order]


@given(grouped())
def test_what_sources_are_called_is_no_matter(drawn):
    before, after, sources = drawn
    ranks = np.unique(sources, return_inverse=True)[1]
    for named in (ranks, 3 * ranks + 2, ranks + 10**12, -ranks, ranks.astype(np.uint8), ranks.astype(str)):
        for side in (before, after):
            assert astuple(share_of(side, named)) == pytest.approx(astuple(share_of(side, sources)))


@given(grouped())
@settings(deadline=None, max_examples=60)
def test_sources_are_exchanged_and_counted_as_a_whole(drawn):
    before, after, sources = drawn
    found = paired_comparison(before, after, sources)
    changes = np.array([(after.astype(int) - before)[sources == one].sum() for one in np.unique(sources)])
    signs = np.array(list(itertools.product((-1, 1), repeat=len(changes))))
    assert found.p_value == pytest.approx((np.abs(signs @ np.abs(changes)) >= abs(changes.sum())).mean())
    assert found.difference == pytest.approx(after.mean() - before.mean())
    assert found.effect.low <= found.difference <= found.effect.high
    alone = paired_comparison(before, after).effect
    assert found.effect.high - found.effect.low >= alone.high - alone.low - 1e-9
    share, by_itself = share_of(after, sources), share_of(after)
    assert 0 <= share.low <= by_itself.low <= share.value <= by_itself.high <= share.high <= 1


def test_copies_of_a_video_are_no_further_evidence():
    before, after = outcomes(9, 2, 60)
    once = paired_comparison(before, after)
    copied = paired_comparison(*(np.repeat(one, 6) for one in (before, after)), np.repeat(np.arange(71), 6))
    assert copied.p_value == pytest.approx(once.p_value)
    assert (copied.effect.low, copied.effect.high) == pytest.approx((once.effect.low, once.effect.high), abs=0.01)
    assert copied.detectable == pytest.approx(once.detectable, abs=0.01)
    sure = share_of(np.ones(60, bool), np.repeat(np.arange(10), 6))
    assert sure.low == pytest.approx(share_estimate(10, 10).low, abs=0.01)


@pytest.mark.parametrize(("videos", "flips"), [(60, 0.3), (200, 0.02), (192, 0.06), (1500, 0.1)])
def test_the_smallest_difference_is_found_in_four_of_five_runs(videos, flips):
    least = detectable_difference(videos, flips)
    for difference, expected in ((least, 0.8), (least / 2, 0.4), (min(1.5 * least, 1.0), 0.95)):
        share = max(flips, difference)
        chances = [(share + difference) / 2, (share - difference) / 2, 1 - share]
        gained, lost, _ = np.random.default_rng(7).multinomial(videos, chances, 3000).T
        found = (2 * binom.sf(np.maximum(gained, lost) - 1, gained + lost, 0.5) < 0.05) & (gained > lost)
        if expected == 0.8:
            assert found.mean() == pytest.approx(expected, abs=0.03)
        else:
            assert (found.mean() < 0.5) if expected < 0.8 else (found.mean() > 0.93)


def test_five_videos_can_show_nothing():
    assert detectable_difference(5, 0.5) is None
    assert paired_comparison(*outcomes(0, 0, 5)).detectable is None
    assert detectable_difference(6, 0.5) > 0.9


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
    assert found.effect.low <= found.difference <= found.effect.high


def test_replicates_that_agree_are_one_measurement():
    before, after = outcomes(9, 2, 30)
    one = paired_comparison(before, after)
    three = paired_comparison(np.stack([before] * 3), np.stack([after] * 3))
    assert three.p_value == pytest.approx(one.p_value)
    assert (three.effect.low, three.effect.high) == pytest.approx((one.effect.low, one.effect.high), abs=0.03)
    right = np.stack([after] * 3)
    single, tripled = share_of(after[None]), share_of(right)
    assert single == share_estimate(int(after.sum()), len(after))
    assert (tripled.value, tripled.low, tripled.high) == pytest.approx(
        (single.value, single.low, single.high), abs=0.03
    )


def test_which_deviation_is_which():
    values = (0.1, 0.2, 0.6)
    assert sample_deviation(values) == pytest.approx(np.std(values, ddof=1))
    assert sample_deviation((0.5,)) is None


def test_the_work_of_an_exact_p_does_not_grow_with_the_square_of_the_sources():
    """Twenty thousand videos of their own and ten thousand pairs, against all sums by Fourier transform."""
    rng, alone, pairs = np.random.default_rng(0), 20_000, 10_000
    gains = np.concatenate([rng.random(alone) < 0.505, np.repeat(rng.random(pairs) < 0.505, 2)])
    sources = np.concatenate([np.arange(alone), np.repeat(alone + np.arange(pairs), 2)])
    twos = np.zeros(2 * pairs + 1)
    twos[::2] = binom.pmf(np.arange(pairs + 1), pairs, 0.5)
    chances = fftconvolve(binom.pmf(np.arange(alone + 1), alone, 0.5), twos)
    reach = abs(gains.sum() - len(gains) / 2)
    expected = chances[np.abs(np.arange(len(chances)) - len(gains) / 2) >= reach - 1e-9].sum()
    found = paired_comparison(~gains, gains, sources)
    assert 1e-6 < expected < 0.9
    assert found.p_value == pytest.approx(expected, rel=1e-6)
