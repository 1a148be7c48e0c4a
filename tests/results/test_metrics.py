"""Metrics agree with scikit-learn and SciPy, count every video once, and stay honest where there is little to go by."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from zar_ray.adaptation.base import Decision
from zar_ray.errors import RunError
from zar_ray.results.case_rows import CaseRows, class_accuracies, class_estimates, confusion_matrix
from zar_ray.results.metrics import (
    case_metrics,
    check_counts,
    costs,
    failure_groups,
    video_counts,
)
from zar_ray.results.rows import RESULT_SCHEMA, ResultRow, to_table
from zar_ray.results.statistics import paired_comparison, share_of

CASE = "zar"


def row(video: int | str, label: int | None, before: int, after: int, classes: int = 3, **facts) -> ResultRow:
    """A finished row whose best class is `before` and then `after`."""
    one_hot = torch.eye(classes)
    decision = Decision(one_hot[before], one_hot[after] * 1.5)
    name = None if label is None else f"class {label}"
    return ResultRow.from_decision(str(video), CASE, CASE, decision, label_id=label, label=name, **facts)


def failed(video: int | str, label: int | None, stage: str = "open", error: str = "broken", **facts) -> ResultRow:
    return ResultRow.failed(str(video), CASE, CASE, error=error, stage=stage, label_id=label, **facts)


def measure(rows, classes: int = 3, **options):
    return case_metrics(to_table(rows), CASE, CASE, classes, **options)


# --- against scikit-learn ---------------------------------------------------------------------------------------


@st.composite
def outcomes(draw):
    """Labels, failures and logits of a few videos; no two logits are equal, so that the ranking is unique."""
    classes = draw(st.integers(6, 9))
    count = draw(st.integers(1, 25))
    labels = draw(st.lists(st.none() | st.integers(0, classes - 1), min_size=count, max_size=count))
    broken = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return classes, labels, broken, rng.normal(size=(2, count, classes)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(outcomes())
def test_accuracies_are_those_of_scikit_learn(drawn):
    classes, labels, broken, (before, after) = drawn
    rows = [
        failed(i, label)
        if broken[i]
        else ResultRow.from_decision(
            str(i), CASE, CASE, Decision(torch.from_numpy(before[i]), torch.from_numpy(after[i])), label_id=label
        )
        for i, label in enumerate(labels)
    ]
    found = measure(rows, classes)
    labelled = [i for i, label in enumerate(labels) if label is not None]
    finished = [i for i in labelled if not broken[i]]
    assert (found.videos, found.finished, found.failed) == (len(rows), broken.count(False), broken.count(True))
    assert found.labelled == len(labelled)
    assert (found.failures_wrong is None) == (not labelled)
    assert (found.failures_excluded is None) == (not finished)
    for scores, chosen in ((found.failures_wrong, labelled), (found.failures_excluded, finished)):
        if scores is None:
            continue
        assert scores.videos == len(chosen)
        right = [labels[i] for i in chosen]
        for logits, accuracy in ((before, scores.before), (after, scores.after)):
            # A failed video is given a class that does not exist, and scores that rank its own class last.
            predicted = [-1 if broken[i] else int(logits[i].argmax()) for i in chosen]
            ranked = np.stack([np.arange(classes) * -1.0 if broken[i] else logits[i] for i in chosen])
            for position, i in enumerate(chosen):
                if broken[i]:
                    ranked[position, labels[i]] = -classes
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = balanced_accuracy_score(right, predicted)
            assert accuracy.mean_class.value == pytest.approx(expected)
            for k, estimate in ((1, accuracy.top1), (5, accuracy.top5)):
                assert estimate.value == pytest.approx(top_k_accuracy_score(right, ranked, k=k, labels=range(classes)))
        for estimate in (scores.before.top1, scores.after.top5, scores.after.mean_class):
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
            assert estimate.low < estimate.high


def test_with_up_to_five_classes_the_right_one_is_always_among_five():
    found = measure([row(0, 2, 0, 1), row(1, 1, 0, 0)])
    assert found.failures_wrong.after.top5.value == 1.0


# --- intervals --------------------------------------------------------------------------------------------------


def skewed(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of 6 classes, two of them rare, and classes predicted before and after, which agree mostly."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(6, size=count, p=[0.4, 0.3, 0.2, 0.08, 0.01, 0.01])
    before = np.where(rng.random(count) < 0.5, labels, rng.integers(6, size=count))
    after = np.where(rng.random(count) < 0.2, labels, before)
    after = np.where(rng.random(count) < 0.1, rng.integers(6, size=count), after)
    return labels, before, after


def test_intervals_are_about_those_of_the_bootstrap():
    labels, before, after = skewed(150, seed=3)
    rows = [row(i, *map(int, values), classes=6) for i, values in enumerate(zip(labels, before, after, strict=True))]
    scores = measure(rows, 6).failures_wrong
    right_before, right_after = (before == labels).astype(float), (after == labels).astype(float)
    for estimate, values in (
        (scores.before.top1, right_before),
        (scores.after.top1, right_after),
        (scores.change.effect, right_after - right_before),
    ):
        expected = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
        assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=0.015)
    # Paired: far narrower than the difference of two independent shares would be.
    unpaired = math.hypot(*(one.high - one.low for one in (scores.before.top1, scores.after.top1)))
    assert scores.change.effect.high - scores.change.effect.low < 0.8 * unpaired


def test_one_video_says_next_to_nothing():
    right = measure([row(0, 1, 1, 1)]).failures_wrong.after
    for estimate in (right.top1, right.top5, right.mean_class):
        assert (estimate.value, estimate.low, estimate.high) == (1.0, pytest.approx(0.2065, abs=1e-4), 1.0)
    gained = measure([row(0, 1, 0, 1)]).failures_wrong.change
    assert (gained.effect.value, gained.effect.high, gained.p_value) == (1.0, 1.0, 1.0)
    assert gained.effect.low < 0
    lost = measure([row(0, 1, 1, 0)]).failures_wrong.change
    assert (lost.effect.value, lost.effect.low) == (-1.0, -1.0)
    assert lost.effect.high > 0


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_keeps_a_doubt_that_shrinks_with_the_number(right):
    widths = []
    for count in (5, 50):
        after = measure([row(i, i % 2, *([i % 2] * 2 if right else [2] * 2)) for i in range(count)]).headline.after
        assert after.top1.value == after.mean_class.value == float(right)
        widths.append(after.top1.high - after.top1.low)
    # Wilson's bound on the open side.
    assert widths == pytest.approx([1 - n / (n + 1.959964**2) for n in (5, 50)])


def test_no_change_in_few_videos_is_not_proof_of_none():
    few = measure([row(i, 0, 0, 0) for i in range(5)]).headline.change
    assert (few.effect.value, few.gained, few.lost, few.p_value) == (0.0, 0, 0, 1.0)
    assert few.effect.low == -few.effect.high < 0


def test_the_mean_over_classes_is_as_unsure_as_their_few_videos():
    # Forty classes of one right video each beside one of a thousand wrong ones: the thousand hardly count.
    rows = [row(f"r{i}", i, i, i, classes=41) for i in range(40)] + [row(i, 40, 0, 0, classes=41) for i in range(1000)]
    estimate = measure(rows, 41).headline.after.mean_class
    assert 0.85 < estimate.low < 0.9 < estimate.value < estimate.high


# --- before against after ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost"), [(5, 0), (8, 1), (3, 3), (1, 9), (40, 20)])
def test_mcnemars_p_is_the_exact_one(gained, lost):
    rows = [row(f"g{i}", 1, 0, 1) for i in range(gained)] + [row(f"l{i}", 1, 1, 0) for i in range(lost)]
    rows += [row(f"s{i}", 1, 1, 1) for i in range(20)] + [row(f"w{i}", 1, 0, 0) for i in range(5)]
    change = measure(rows).headline.change
    discordant = gained + lost
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1)) / 2**discordant
    assert (change.gained, change.lost) == (gained, lost)
    assert change.p_value == pytest.approx(min(1.0, 2 * tail))
    assert change.effect.value == pytest.approx((gained - lost) / len(rows))


def test_a_method_that_leaves_the_scores_alone_has_no_change():
    decision = Decision(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    rows = [ResultRow.from_decision(str(i), CASE, CASE, decision, label_id=0) for i in range(4)]
    found = measure([*rows, failed("x", 1)], 2)
    assert found.failures_wrong.change is None
    assert found.failures_excluded.change is None
    assert "top1_change" not in found.numbers()


# --- failures, unlabelled videos, counts ------------------------------------------------------------------------


def test_failures_are_wrong_in_the_headline_and_absent_beside_it():
    found = measure([row(0, 0, 0, 0), row(1, 1, 1, 1), failed(2, 0), failed(3, None), row(4, None, 1, 1)])
    assert found.headline is found.failures_wrong
    assert (found.videos, found.finished, found.failed, found.labelled) == (5, 3, 2, 3)
    assert (found.headline.videos, found.headline.after.top1.value) == (3, pytest.approx(2 / 3))
    assert found.headline.after.mean_class.value == pytest.approx((0.5 + 1) / 2)
    assert (found.failures_excluded.videos, found.failures_excluded.after.top1.value) == (2, 1.0)
    assert found.numbers()["top1"] == pytest.approx(2 / 3)
    assert found.numbers()["top1_without_failures"] == 1.0


def test_without_failures_both_ways_are_one():
    found = measure([row(0, 0, 0, 1), row(1, 1, 1, 1)])
    assert found.failures_excluded == found.failures_wrong


def test_unlabelled_videos_count_in_no_accuracy():
    labelled = [row(i, i % 3, 0, i % 2) for i in range(9)]
    alone, among = measure(labelled), measure([*labelled, *(row(f"u{i}", None, 1, 2) for i in range(30))])
    assert among.failures_wrong == alone.failures_wrong
    assert (among.videos, among.labelled) == (39, 9)


def test_nothing_labelled_or_nothing_at_all():
    unlabelled = measure([row(0, None, 0, 1), failed(1, None)])
    assert (unlabelled.failures_wrong, unlabelled.failures_excluded, unlabelled.headline) == (None, None, None)
    assert unlabelled.entropy_after > 0
    empty = measure([])
    assert (empty.videos, empty.failures_wrong, empty.entropy_before, empty.chance) == (
        0,
        None,
        None,
        pytest.approx(1 / 3),
    )
    everything_failed = measure([failed(0, 0), failed(1, 1)])
    assert everything_failed.headline.after.top1.value == 0.0
    assert everything_failed.failures_excluded is None


def test_only_the_cases_own_rows_count():
    other = [dataclasses.replace(row(i, 0, 1, 1), case_id="zero_shot") for i in range(5)]
    assert measure([row(0, 0, 0, 0), *other]).videos == 1


def test_the_order_of_rows_changes_nothing():
    labels, before, after = skewed(60, seed=1)
    rows = [row(i, *map(int, values), classes=6) for i, values in enumerate(zip(labels, before, after, strict=True))]
    assert measure(rows, 6).failures_wrong == measure(rows[::-1], 6).failures_wrong


def test_a_label_beyond_the_classes_is_named():
    with pytest.raises(RunError, match="v7: its label is number 2, but the run has 2 classes"):
        measure([row(0, 1, 0, 0), row("v7", 2, 0, 0)], 2)


def test_sixty_thousand_videos_of_six_hundred_classes_take_little_memory():
    count, classes = 60_000, 600
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=count)
    right = {when: rng.random(count) < share for when, share in (("before", 0.5), ("after", 0.6))}
    columns = {
        "video_id": [f"v{i}" for i in range(count)],
        "case_id": [CASE] * count,
        "label_id": labels,
        "recorded_at": np.zeros(count),
        **{f"{name}_{when}": right[when] for name in ("correct", "correct5") for when in right},
    }
    arrays = {f.name: pa.array(columns[f.name], f.type) if f.name in columns else None for f in RESULT_SCHEMA}
    table = pa.table(
        {name: pa.nulls(count, RESULT_SCHEMA.field(name).type) if a is None else a for name, a in arrays.items()}
    )
    tracemalloc.start()
    found = case_metrics(table, CASE, CASE, classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6
    assert found.headline.after.top1.value == pytest.approx(right["after"].mean())
    assert found.headline.after.mean_class.high - found.headline.after.mean_class.low < 0.02


# --- by class ---------------------------------------------------------------------------------------------------


def test_classes_have_their_own_accuracies_and_most_frequent_mistake():
    rows = [row(0, 0, 0, 1), row(1, 0, 1, 1), row(2, 0, 0, 0), failed(3, 0), row(4, 1, 2, 1), row(5, None, 0, 0)]
    first, second, third = class_accuracies(to_table(rows), CASE, ["a", "b", "c"])
    assert (first.label, first.videos, first.failed, first.top1_before, first.top1_after) == ("a", 4, 1, 0.5, 0.25)
    assert (first.taken_for, first.taken_for_videos) == ("b", 2)
    assert (second.videos, second.top1_before, second.top1_after, second.taken_for) == (1, 0.0, 1.0, None)
    assert (third.videos, third.top1_before, third.top1_after) == (0, None, None)
    assert confusion_matrix(to_table(rows), CASE, 3).tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("shared", [False, True])
def test_changes_of_classes_have_the_intervals_of_their_videos_alone(shared):
    rng = np.random.default_rng(3)
    labels, right = rng.integers(0, 4, 90), rng.random((2, 90)) < [[0.4], [0.7]]
    rows = [
        row(i, int(label), int(label if before else 4), int(label if after else 4), 5)
        for i, (label, before, after) in enumerate(zip(labels, *right, strict=True))
    ]
    rows = [dataclasses.replace(one, group=f"film {i // 6}" if shared else None) for i, one in enumerate(rows)]
    # In any order of the rows, with a video that has no label and one that failed.
    table = to_table([*rows[::-1], row(97, None, 0, 0, 5), failed(98, 4)])
    found = CaseRows.of(table, CASE, 5)
    changes, shares = (class_estimates(found, adapts=adapts) for adapts in (True, False))
    assert sorted(changes) == sorted(shares) == [0, 1, 2, 3, 4]
    for label in range(4):
        of_class = labels == label
        before, after = right[:, of_class]
        sources = np.arange(90)[of_class] // 6 if shared else None
        for mine, alone in (
            (changes[label], paired_comparison(before, after, sources).effect),
            (shares[label], share_of(after, sources)),
        ):
            assert dataclasses.astuple(mine) == pytest.approx(dataclasses.astuple(alone))
        assert changes[label].value == pytest.approx(after.mean() - before.mean())
    assert (changes[4].value, shares[4].value) == (0, 0)


def test_no_finished_video_confuses_nothing():
    assert confusion_matrix(to_table([failed(0, 1)]), CASE, 2).tolist() == [[0, 0], [0, 0]]


@settings(max_examples=30, deadline=None)
@given(outcomes())
def test_classes_and_confusions_add_up_to_the_whole(drawn):
    classes, labels, broken, (before, after) = drawn
    rows = [
        failed(i, label) if broken[i] else row(i, label, int(before[i].argmax()), int(after[i].argmax()), classes)
        for i, label in enumerate(labels)
    ]
    table = to_table(rows)
    by_class = class_accuracies(table, CASE, [str(i) for i in range(classes)])
    found = measure(rows, classes)
    assert sum(one.videos for one in by_class) == found.labelled
    matrix = confusion_matrix(table, CASE, classes)
    assert matrix.sum() == (0 if found.failures_excluded is None else found.failures_excluded.videos)
    if found.headline is not None:
        present = [one.top1_after for one in by_class if one.videos]
        assert np.mean(present) == pytest.approx(found.headline.after.mean_class.value)
        assert np.trace(matrix) / found.labelled == pytest.approx(found.headline.after.top1.value)


# --- counts, failures, costs ------------------------------------------------------------------------------------


def both_cases(*rows: ResultRow) -> list[ResultRow]:
    return [*rows, *(dataclasses.replace(one, case_id="zero_shot") for one in rows)]


def test_a_table_that_holds_every_video_once_a_case_passes():
    check_counts(
        dict.fromkeys([CASE, "zero_shot"], pa.array(["0", "1"])), to_table(both_cases(row(0, 0, 0, 0), failed(1, 0)))
    )


def test_missing_strange_and_repeated_rows_are_named():
    rows = [row("a", 0, 0, 0), row("a", 0, 0, 0), row("x", 0, 0, 0)]
    with pytest.raises(RunError) as caught:
        check_counts({CASE: pa.array(["b4", "a", "b2", "b3", "b1"])}, to_table(rows))
    message = str(caught.value)
    assert "4 missing (b1 [zar], b2 [zar], b3 [zar], ...)" in message
    assert "1 not in the manifest (x [zar])" in message
    assert "1 more than once (a [zar])" in message
    assert "\n" not in message


def test_a_video_missing_in_one_case_is_missing():
    with pytest.raises(RunError, match=r"1 missing \(0 \[zero_shot\]\)"):
        check_counts({CASE: pa.array(["0"]), "zero_shot": pa.array(["0"])}, to_table([row(0, 0, 0, 0)]))


def test_videos_are_counted_once_whatever_the_cases():
    rows = both_cases(row(0, 0, 0, 0, warning="tail"), row(1, None, 0, 0), row(2, 0, 0, 0))
    rows[-1] = dataclasses.replace(failed(2, 0, stage="adapt"), case_id="zero_shot")
    counts = video_counts(to_table(rows))
    assert counts == {"videos": 3, "finished": 2, "failed": 1, "unlabelled": 1, "unknown": 0, "warned": 1}
    assert video_counts(to_table([]))["videos"] == 0


def test_failures_are_grouped_by_stage_with_their_first_reasons():
    rows = both_cases(*(failed(f"v{i}", 0, error=f"reason {i}") for i in range(4)), failed("z", 0, stage="decode"))
    opened, decoded = failure_groups(to_table(rows[::-1]), examples=2)
    assert (opened.stage, opened.videos) == ("open", 4)
    assert opened.examples == (("v0", "reason 0"), ("v1", "reason 1"))
    assert (decoded.stage, decoded.videos) == ("decode", 1)
    assert failure_groups(to_table([row(0, 0, 0, 0)])) == ()


def test_costs_are_per_video_not_per_case():
    rows = both_cases(
        row(0, 0, 0, 0, bytes_shipped=100, images_encoded=10, seconds_decode=0.5),
        row(1, 0, 0, 0, bytes_shipped=300, images_encoded=20),
        failed(2, 0),
    )
    found = costs(to_table(rows))
    assert (found.bytes_shipped_mean, found.bytes_shipped_max, found.images_encoded_mean) == (200, 300, 15)
    assert (found.seconds_decode_mean, found.seconds_encode_mean, found.frames_decoded_mean) == (0.5, None, None)
