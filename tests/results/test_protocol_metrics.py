"""Averages over a protocol's splits, and mean average precision of multi-label splits, against independent code."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score

from zar_ray.adaptation.base import Decision
from zar_ray.errors import RunError
from zar_ray.results.averages import average_change, multi_label_change, multi_label_metrics, protocol_averages
from zar_ray.results.case_rows import CaseRows
from zar_ray.results.metrics import case_metrics, video_counts
from zar_ray.results.record import Estimate
from zar_ray.results.rows import ResultRow, to_table
from zar_ray.results.statistics import paired_comparison

CASE = "zar-0a1b2c"

multi_label_metrics_of = partial(case_metrics, multi_label=True)


def decided(video: int | str, before: np.ndarray, after: np.ndarray, **facts) -> ResultRow:
    decision = Decision(torch.from_numpy(before.astype(np.float32)), torch.from_numpy(after.astype(np.float32)))
    return ResultRow.from_decision(str(video), CASE, "zar", decision, **facts)


def failed(video: int | str, **facts) -> ResultRow:
    return ResultRow.failed(str(video), CASE, "zar", error="broken", stage="open", **facts)


# --- accuracies by split, against plain NumPy -------------------------------------------------------------------


@st.composite
def splits(draw, count: int | None = None):
    """Labels, failures and logits of the videos of two to four splits, each with classes of its own."""
    made = []
    for _ in range(count or draw(st.integers(2, 4))):
        classes, videos = draw(st.integers(2, 9)), draw(st.integers(1, 20))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        labels, broken = rng.integers(classes, size=videos), rng.random(videos) < 0.2
        made.append((labels, broken, rng.normal(size=(2, videos, classes)).astype(np.float32)))
    return made


def measured(made, method: str = "zar"):
    cases = []
    for number, (labels, broken, (before, after)) in enumerate(made, 1):
        rows = [
            failed(i, label_id=int(label)) if broken[i] else decided(i, before[i], after[i], label_id=int(label))
            for i, label in enumerate(labels)
        ]
        cases.append(case_metrics(to_table(rows), CASE, method, before.shape[1], split=f"s{number}"))
    return cases


def by_numpy(labels: np.ndarray, broken: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    order = np.argsort(-logits, axis=1)
    hits = (order == labels[:, None]) & ~broken[:, None]
    return {
        "top1": hits[:, 0].mean(),
        "top5": hits[:, :5].any(axis=1).mean(),
        "mean_class": np.mean([hits[labels == one, 0].mean() for one in np.unique(labels)]),
    }


def expected_values(made) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for labels, broken, (before, after) in made:
        for suffix, logits in (("", after), ("_before", before)):
            for name, value in by_numpy(labels, broken, logits).items():
                values.setdefault(f"{name}{suffix}", []).append(float(value))
    return values


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(splits())
def test_mean_and_population_deviation_are_those_of_the_splits_values(made):
    found = protocol_averages(measured(made), "mean")
    expected = expected_values(made)
    assert [one.metric for one in found] == list(expected)
    for one in found:
        values = expected[one.metric]
        mean = sum(values) / len(values)
        std = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        assert (one.method, one.kind) == ("zar", "mean")
        assert one.splits == tuple(f"s{i}" for i in range(1, len(made) + 1))
        assert (one.value, one.std) == (pytest.approx(mean), pytest.approx(std, abs=1e-12))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(splits(count=2))
def test_the_harmonic_mean_is_that_of_two_splits_and_0_where_one_is(made):
    found, expected = protocol_averages(measured(made), "harmonic"), expected_values(made)
    assert [one.metric for one in found] == list(expected)
    for one in found:
        a, b = expected[one.metric]
        assert (one.kind, one.std) == ("harmonic", None)
        assert one.value == (pytest.approx(2 * a * b / (a + b)) if a and b else 0)


def test_published_base_to_novel_means_come_out():
    # ZAR paper, Table 2, HMDB51: 75.2 on base, 55.2 on novel, harmonic mean 63.7.
    cases = []
    for name, share in (("base", 0.752), ("novel", 0.552)):
        case = measured([(np.zeros(1, int), np.zeros(1, bool), np.ones((2, 1, 2), np.float32))])[0]
        top1 = dataclasses.replace(case.headline.after.top1, value=share)
        after = dataclasses.replace(case.headline.after, top1=top1)
        scores = dataclasses.replace(case.headline, after=after)
        cases.append(dataclasses.replace(case, split=name, failures_wrong=scores))
    found = {one.metric: one for one in protocol_averages(cases, "harmonic")}
    assert f"{100 * found['top1'].value:.1f}" == "63.7"
    assert found["top1"].splits == ("base", "novel")


def some_split(seed: int, videos: int = 10):
    rng = np.random.default_rng(seed)
    return rng.integers(4, size=videos), np.zeros(videos, bool), rng.normal(size=(2, videos, 4)).astype(np.float32)


def test_methods_stand_in_the_order_they_first_come():
    made = [some_split(1), some_split(2)]
    cases = [case for pair in zip(measured(made, "zero_shot"), measured(made, "tpt"), strict=True) for case in pair]
    found = protocol_averages(cases, "mean")
    assert list(dict.fromkeys(one.method for one in found)) == ["zero_shot", "tpt"]
    assert len(found) == 12


def test_no_average_of_one_split_or_where_nothing_is_labelled():
    cases = measured([some_split(1), some_split(2), some_split(3)])
    unlabelled = case_metrics(to_table([decided(0, np.eye(4)[0], np.eye(4)[1])]), CASE, "zar", 4, split="s4")
    for kind in ("mean", "harmonic"):
        assert protocol_averages([], kind) == ()
        assert protocol_averages(cases[:1], kind) == ()
        assert protocol_averages([cases[0], unlabelled], kind) == ()
    assert protocol_averages([*cases, unlabelled], "mean") == ()
    with pytest.raises(ValueError, match="two splits, not of 3"):
        protocol_averages(cases, "harmonic")


def test_a_case_knows_its_split():
    table = to_table([decided(0, np.eye(3)[0], np.eye(3)[1], label_id=1)])
    assert case_metrics(table, CASE, "zar", 3).split == "all"
    assert case_metrics(table, CASE, "zar", 3, split="novel").split == "novel"
    assert multi_label_metrics_of(to_table([]), CASE, "zar", 3).split == "all"


# --- mean average precision -------------------------------------------------------------------------------------


@st.composite
def multi_label(draw):
    """Right classes, failures and logits of a few videos; half of the time many scores are equal."""
    classes, videos = draw(st.integers(1, 8)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    right = rng.random((videos, classes)) < draw(st.sampled_from([0.05, 0.3, 0.9]))
    scores = rng.normal(size=(2, videos, classes)).astype(np.float32)
    if draw(st.booleans()):
        scores = np.round(scores)
    return right, rng.random(videos) < draw(st.sampled_from([0.0, 0.3, 1.0])), scores


def multi_label_rows(right, broken, scores) -> list[ResultRow]:
    rows = []
    for i, classes in enumerate(right):
        labels = tuple(np.flatnonzero(classes).tolist())
        one = failed(i, labels=labels) if broken[i] else decided(i, scores[0, i], scores[1, i], labels=labels)
        rows.append(one)
    return rows


def average_precision_by_hand(right: np.ndarray, score: np.ndarray) -> float:
    """Mean over the positives of the precision among all videos that score at least as high."""
    return float(np.mean([right[score >= threshold].mean() for threshold in score[right]]))


@settings(max_examples=60, deadline=None)
@given(multi_label())
def test_map_is_that_of_scikit_learn_and_of_the_definition(drawn):
    right, broken, scores = drawn
    rows = multi_label_rows(right, broken, scores)
    found = multi_label_metrics_of(to_table(rows), CASE, "zar", right.shape[1], split="test", resamples=20)
    assert (found.videos, found.finished, found.failed) == (len(rows), (~broken).sum(), broken.sum())
    assert found.labelled == right.any(axis=1).sum()
    assert (found.failures_wrong, found.failures_excluded, found.headline) == (None, None, None)
    assert (found.map_before is None) == (found.map_after is None) == (not right.any())
    if not right.any():
        return
    labelled, present = right.any(axis=1), right.any(axis=0)
    for estimate, logits in ((found.map_before, scores[0]), (found.map_after, scores[1])):
        ranked = np.where(broken[:, None], -1e6, log_softmax(logits.astype(np.float64), axis=1))[labelled]
        columns = [(right[labelled, k], ranked[:, k]) for k in np.flatnonzero(present)]
        assert estimate.value == pytest.approx(np.mean([average_precision_score(*one) for one in columns]))
        assert estimate.value == pytest.approx(np.mean([average_precision_by_hand(*one) for one in columns]))
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1 + 1e-12
    assert found.chance == pytest.approx(right[labelled][:, present].mean())


def test_the_official_evaluation_of_charades_gives_the_same():
    """Its rule for one class: sort, and average the precision at each positive; the mean over the classes."""
    rng = np.random.default_rng(5)
    right, scores = rng.random((200, 12)) < 0.1, rng.normal(size=(200, 12))
    precisions = []
    for k in range(12):
        hits = right[np.argsort(-scores[:, k]), k]
        # Videos that show nothing are ranked last there, so that they are in nobody's way.
        shows = right.any(axis=1)[np.argsort(-scores[:, k])]
        hits = np.concatenate([hits[shows], hits[~shows]])
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        precisions.append(precision[hits].mean())
    assert multi_label_metrics(right, scores).value == pytest.approx(np.mean(precisions))


@pytest.mark.slow
def test_the_interval_is_that_of_the_percentile_bootstrap_around_the_value():
    rng = np.random.default_rng(2)
    right = rng.random((80, 5)) < [0.5, 0.3, 0.2, 0.1, 0.03]
    right[~right.any(axis=1), 0] = True
    scores = np.round(rng.normal(size=(80, 5)) + right, 1)

    def statistic(videos: np.ndarray) -> float:
        chosen = videos.astype(int)
        there = right[chosen].any(axis=0)
        return float(
            np.mean([average_precision_score(right[chosen, k], scores[chosen, k]) for k in np.flatnonzero(there)])
        )

    by_scipy = bootstrap((np.arange(80),), statistic, method="percentile", vectorized=False, n_resamples=300, rng=1)
    found = multi_label_metrics(right, scores, resamples=3000)
    assert found.value == pytest.approx(statistic(np.arange(80)))
    moved = found.value - by_scipy.bootstrap_distribution.mean()
    expected = [end + moved for end in by_scipy.confidence_interval]
    assert (found.low, found.high) == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_intervals_hold_what_a_test_set_of_that_size_gives_on_average():
    # Draws repeat videos, which raises precision: unmoved, their quantiles would lie above nearly every value.
    estimates = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        right = rng.random((120, 15)) < 0.15
        right[~right.any(axis=1), 0] = True
        estimates.append(multi_label_metrics(right, rng.normal(size=(120, 15)) + right, seed=seed))
    truth = np.mean([one.value for one in estimates])
    assert 0.88 < np.mean([one.low <= truth <= one.high for one in estimates]) <= 1


def test_the_order_of_rows_changes_nothing():
    rng = np.random.default_rng(0)
    rows = multi_label_rows(rng.random((40, 6)) < 0.3, rng.random(40) < 0.1, rng.normal(size=(2, 40, 6)))
    first, second = (
        multi_label_metrics_of(to_table(order), CASE, "zar", 6, seed=3) for order in (rows, list(reversed(rows)))
    )
    assert (first.map_before, first.map_after) == (second.map_before, second.map_after)
    assert first.map_after != multi_label_metrics_of(to_table(rows), CASE, "zar", 6, seed=4).map_after


def test_failed_videos_rank_last():
    scores = np.array([[0.0, -10.0, 0.0], [-20.0, -30.0, 0.0]])
    rows = [decided(i, scores[i], scores[i], labels=(i,)) for i in range(2)]
    lowest = decided(2, np.array([0.0, 0.0, 50.0]), np.array([0.0, 0.0, 50.0]), labels=(0, 1))
    whole = multi_label_metrics_of(to_table([*rows, lowest]), CASE, "zar", 3)
    lost = multi_label_metrics_of(to_table([*rows, failed(2, labels=(0, 1))]), CASE, "zar", 3)
    assert lost.map_after.value == whole.map_after.value == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert (lost.finished, lost.failed, lost.labelled) == (2, 1, 3)


def test_videos_that_show_nothing_or_are_unlabelled_change_nothing():
    rng = np.random.default_rng(1)
    right, scores = rng.random((30, 5)) < 0.4, rng.normal(size=(2, 30, 5))
    right[:, 4] = False
    rows = multi_label_rows(right, np.zeros(30, bool), scores)
    alone = multi_label_metrics_of(to_table(rows), CASE, "zar", 5)
    loud = np.full(5, 99.0)
    more = [decided("x", loud, loud, labels=()), decided("y", loud, loud), failed("z"), failed("w", labels=())]
    among = multi_label_metrics_of(to_table([*rows, *more]), CASE, "zar", 5)
    assert (among.map_before, among.map_after) == (alone.map_before, alone.map_after)
    assert among.videos == alone.videos + 4
    assert among.labelled == alone.labelled
    counts = video_counts(to_table([*rows, *more]))
    assert counts["unlabelled"] == 4 + (~right.any(axis=1)).sum()


def test_a_method_that_changes_nothing_has_one_map():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(20, 4))
    rows = multi_label_rows(rng.random((20, 4)) < 0.4, np.zeros(20, bool), np.stack([scores, scores]))
    found = multi_label_metrics_of(to_table(rows), CASE, "zero_shot", 4)
    assert found.map_before == found.map_after
    assert found.map_change is None


def test_map_is_of_one_kind_of_score_whatever_the_number_of_views():
    # Of several evaluation views a decision's logits are log probabilities, of one the model's own.
    rng = np.random.default_rng(3)
    right = rng.random((60, 6)) < 0.3
    scores = 8 * rng.normal(size=(2, 60, 6)) + 20 * rng.normal(size=(2, 60, 1)) + 10 * right
    found = [
        multi_label_metrics_of(to_table(multi_label_rows(right, np.zeros(60, bool), one)), CASE, "zar", 6).map_after
        for one in (scores, log_softmax(scores, axis=2))
    ]
    assert found[0].value == pytest.approx(found[1].value)
    assert abs(found[0].value - multi_label_metrics(right, scores[1]).value) > 0.01


def test_maps_change_is_paired_and_tested():
    rng = np.random.default_rng(4)
    right = rng.random((120, 8)) < 0.2
    right[~right.any(axis=1), 0] = True
    before = rng.normal(size=(120, 8)) + right
    alone = np.arange(120)
    better = multi_label_change(right, before, before + 0.5 * right, alone)
    gain = multi_label_metrics(right, before + 0.5 * right).value - multi_label_metrics(right, before).value
    assert better.difference == pytest.approx(gain)
    assert 0 < better.effect.low < better.difference < better.effect.high
    assert better.p_value == pytest.approx(1 / 201)
    noise = multi_label_change(right, before, before + 0.3 * rng.normal(size=before.shape), alone)
    assert noise.effect.low < 0 < noise.effect.high
    assert noise.p_value > 0.05
    # Paired: far narrower than the interval of either.
    one = multi_label_metrics(right, before)
    assert noise.effect.high - noise.effect.low < 0.7 * (one.high - one.low)
    copied = multi_label_change(
        *(np.repeat(x, 4, axis=0) for x in (right, before, before + 0.5 * right)), alone.repeat(4)
    )
    assert copied.effect.high - copied.effect.low == pytest.approx(better.effect.high - better.effect.low, rel=0.4)


def test_map_is_averaged_over_splits_too():
    cases = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        rows = multi_label_rows(rng.random((20, 4)) < 0.4, np.zeros(20, bool), rng.normal(size=(2, 20, 4)))
        cases.append(multi_label_metrics_of(to_table(rows), CASE, "zar", 4, split=f"s{seed}"))
    found = {one.metric: one for one in protocol_averages(cases, "mean")}
    assert list(found) == ["map", "map_before"]
    assert found["map"].value == pytest.approx(np.mean([case.map_after.value for case in cases]))
    assert found["map"].std == pytest.approx(abs(cases[0].map_after.value - cases[1].map_after.value) / 2)
    numbers = cases[0].numbers()
    assert {"map", "map_low", "map_high", "map_before", "map_before_low", "map_before_high"} <= numbers.keys()
    assert not [name for name in numbers if name.startswith(("top1", "top5", "mean_class"))]


def test_a_label_beyond_the_classes_and_lost_scores_are_named():
    logits = np.arange(3.0)
    with pytest.raises(RunError, match="v7: its label is number 3, but the run has 3 classes"):
        multi_label_metrics_of(to_table([decided("v7", logits, logits, labels=(0, 3))]), CASE, "zar", 3)
    lost = dataclasses.replace(decided("v8", logits, logits, labels=(1,)), scores_after=None)
    with pytest.raises(RunError, match="v8: its row lacks the scores after adaptation of the 3 classes"):
        multi_label_metrics_of(to_table([lost]), CASE, "zar", 3)


@pytest.mark.slow
def test_charades_takes_seconds_not_minutes():
    rng = np.random.default_rng(0)
    right, scores = rng.random((1863, 157)) < 0.04, rng.normal(size=(1863, 157))
    started = time.process_time()
    estimate = multi_label_metrics(right, scores)
    assert time.process_time() - started < 20
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value == pytest.approx(0.04, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_draw_is_scored_as_scikit_learn_does_with_weights(seed):
    from zar_ray.results.averages import _weighted_map

    rng = np.random.default_rng(seed)
    right, scores = rng.random((15, 3)) < 0.4, np.round(rng.normal(size=(15, 3)), 1)
    weights = rng.multinomial(15, np.full(15, 1 / 15), size=4)
    assume(all((draw[:, None] * right).any() for draw in weights))
    for draw, found in zip(weights, _weighted_map(right, scores, weights), strict=True):
        there = np.flatnonzero((draw[:, None] * right).any(axis=0))
        kept = draw > 0
        expected = [
            average_precision_score(right[kept, k], scores[kept, k], sample_weight=draw[kept].astype(float))
            for k in there
        ]
        assert found == pytest.approx(np.mean(expected))


# --- what adaptation changes in an average ----------------------------------------------------------------------


def split_rows(before: np.ndarray, after: np.ndarray, names: np.ndarray) -> CaseRows:
    """Rows of videos of class 0 with these decisions, right where true."""
    scores = np.eye(2)[np.stack([1 - before, 1 - after]).astype(int)] + [[[0.0, 1e-3]], [[0.0, 0.0]]]
    rows = [decided(name, *scores[:, i], label_id=0) for i, name in enumerate(names)]
    return CaseRows.of(to_table(rows), CASE, 2)


def some_splits(rng: np.random.Generator, sizes, shares=(0.5, 0.6)) -> list[CaseRows]:
    return [
        split_rows(*(rng.random(size) < share for share in shares), np.array([f"s{place}v{i}" for i in range(size)]))
        for place, size in enumerate(sizes)
    ]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(1, 40), min_size=2, max_size=2), st.sampled_from([0.0, 0.3, 1.0])
)
def test_the_change_is_the_averages_difference_and_lies_in_its_interval(seed, sizes, share):
    splits = some_splits(np.random.default_rng(seed), sizes, (share, 0.6))
    shares = np.array([[(one.before == 2).mean(), (one.after == 2).mean()] for one in splits])
    with np.errstate(divide="ignore"):
        expected = {"mean": shares.mean(axis=0), "harmonic": 2 / (1 / shares).sum(axis=0)}
    for kind, (before, after) in expected.items():
        found = average_change(splits, kind)
        assert found.difference == pytest.approx(after - before)
        assert found.effect.low <= found.difference <= found.effect.high
        assert 0 < found.p_value <= 1


def test_the_change_of_a_mean_of_equal_splits_is_that_of_all_their_videos():
    rng = np.random.default_rng(0)
    splits = some_splits(rng, (200, 200, 200), (0.5, 0.58))
    together = paired_comparison(
        *(np.concatenate([getattr(one, at) == 2 for one in splits]) for at in ("before", "after"))
    )
    found = average_change(splits, "mean")
    assert found.difference == pytest.approx(together.difference)
    assert (found.effect.low, found.effect.high) == pytest.approx((together.effect.low, together.effect.high), abs=0.01)
    assert found.p_value == pytest.approx(together.p_value, abs=0.02)
    assert found.detectable == pytest.approx(together.detectable, rel=0.15)


def test_videos_that_recur_in_splits_are_drawn_together():
    (one,) = some_splits(np.random.default_rng(1), (150,))
    alone, thrice = average_change([one], "mean"), average_change([one] * 3, "mean")
    assert thrice.difference == pytest.approx(alone.difference)
    width = alone.effect.high - alone.effect.low
    assert thrice.effect.high - thrice.effect.low == pytest.approx(width, rel=0.1)
    apart = some_splits(np.random.default_rng(2), (150,) * 3)
    assert average_change(apart, "mean").effect.high - average_change(apart, "mean").effect.low < 0.7 * width
    # Where nothing changes, that is not proof of no change.
    still = split_rows(one.before == 2, one.before == 2, one.source.to_numpy())
    assert average_change([still] * 2, "harmonic").effect.low < 0 < average_change([still] * 2, "harmonic").effect.high


def test_an_average_has_its_change_and_mlflow_its_numbers():
    splits = some_splits(np.random.default_rng(5), (60, 80), (0.4, 0.7))
    tables = {f"s{place}": one.table for place, one in enumerate(splits)}
    cases = [case_metrics(table, CASE, "zar", 2, split=split) for split, table in tables.items()]
    rows = {f"s{place}": one for place, one in enumerate(splits)}
    (top1,) = [one for one in protocol_averages(cases, "mean", lambda case: rows[case.split]) if one.change is not None]
    assert top1.metric == "top1"
    assert isinstance(top1.change.effect, Estimate)
    assert top1.change.difference == pytest.approx(
        np.mean([case.headline.after.top1.value - case.headline.before.top1.value for case in cases])
    )
    assert {
        "top1_mean_change",
        "top1_mean_change_low",
        "top1_mean_change_high",
        "top1_mean_change_p",
    } < top1.numbers().keys()
