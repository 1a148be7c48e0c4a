"""Calibration and the telling of unknown classes agree with scikit-learn and with their written-out definitions."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve

from zar_ray.adaptation.base import Decision
from zar_ray.errors import VideoError
from zar_ray.results.case_rows import CaseRows
from zar_ray.results.certainty import SCORES, certainties, is_rejected
from zar_ray.results.metrics import case_metrics, video_counts
from zar_ray.results.rows import ResultRow, to_table
from zar_ray.results.trust import (
    BINS,
    CALIBRATION,
    MEASURES,
    TRUST_COLUMNS,
    Decisions,
    _detection,
    compare_trust,
    equal_mass_bins,
    threshold_of,
    trust_of,
)

CASE = "zar"


def rows_of(logits, labels, after=None) -> list[ResultRow]:
    """Finished rows; a label that no class has is one that was held out, None is none."""
    rows = []
    for number, (own, label) in enumerate(zip(logits, labels, strict=True)):
        later = own if after is None else after[number]
        right = {} if label is None else {"label": f"class {label}"}
        if label is not None and label < len(own):
            right["label_id"] = int(label)
        decision = Decision(torch.from_numpy(np.asarray(own)), torch.from_numpy(np.asarray(later)))
        rows.append(ResultRow.from_decision(f"{number:05}", CASE, CASE, decision, **right))
    return rows


def measure(rows: list[ResultRow], classes: int, seed: int = 0):
    return case_metrics(to_table(rows), CASE, CASE, classes, seed=seed)


@st.composite
def tables(draw):
    """Logits with ties and with probabilities that are 0 in float64, and labels, some of them held out."""
    classes, count = draw(st.integers(2, 7)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 3.0, 2000.0]))
    logits = (scale * rng.normal(size=(2, count, classes))).round(draw(st.integers(0, 3))).astype(np.float32)
    labels = rng.integers(draw(st.sampled_from([1, classes, classes + 2])), size=count)
    return classes, labels, logits


@settings(max_examples=30, deadline=None)
@given(tables())
def test_losses_and_areas_are_those_of_scikit_learn(drawn):
    classes, labels, (before, after) = drawn
    found = measure(rows_of(before, labels, after), classes).trust
    known = labels < classes
    assert (not found) == (not known.any())
    for when, logits in (("before", before), ("after", after)) if known.any() else ():
        p, told = softmax(logits.astype(np.float64), axis=1), log_softmax(logits.astype(np.float64), axis=1)
        own = np.take_along_axis(told[known], labels[known, None], axis=1)[:, 0]
        value = {name: getattr(one, when).value for name, one in found.items() if getattr(one, when)}
        # scikit-learn takes a probability of 0 for the least that is not; ours are of logarithms.
        assert value["nll"] == pytest.approx(-own.mean(), rel=1e-5, abs=1e-6)
        if own.min() > np.log(np.finfo(np.float64).eps):
            expected = log_loss(labels[known], p[known], labels=np.arange(classes))
            assert value["nll"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        of_all = (
            brier_score_loss(labels[known], p[known], labels=np.arange(classes), scale_by_half=False)
            if classes > 2
            else ((p[known] - np.eye(classes)[labels[known]]) ** 2).sum(axis=1).mean()
        )
        assert value["brier"] == pytest.approx(of_all, rel=1e-5, abs=1e-6)
        best = np.sort(p, axis=1)[:, ::-1].astype(np.float32)
        scores = {"max_probability": best[:, 0], "margin": best[:, 0].astype(float) - best[:, 1]}
        scores["entropy"] = (p * told).sum(axis=1).astype(np.float32)
        assert ("auroc_margin" in value) == (not known.all())
        for score, values in scores.items() if not known.all() else ():
            assert value[f"auroc_{score}"] == pytest.approx(roc_auc_score(known, values), abs=1e-6)
            fpr, tpr, _ = roc_curve(known, values, drop_intermediate=False)
            assert value[f"fpr95_{score}"] == pytest.approx(fpr[(tpr >= 0.95).argmax()])
    for name, one in found.items():
        for estimate in (one.before, one.after):
            most = {"brier": 2, "nll": math.inf}.get(name, 1)
            assert estimate is None or 0 <= estimate.low <= estimate.value <= estimate.high <= most + 1e-9


@settings(max_examples=20, deadline=None)
@given(tables())
def test_calibration_errors_are_those_of_their_definitions(drawn):
    classes, labels, (logits, _) = drawn
    labels = labels % classes
    found = measure(rows_of(logits, labels), classes).trust
    p = softmax(logits.astype(np.float64), axis=1)
    confidence, right = p.max(axis=1).astype(np.float32).astype(np.float64), logits.argmax(axis=1) == labels

    def error(groups) -> float:
        return sum(len(one) * abs(right[one].mean() - confidence[one].mean()) for one in groups if len(one)) / len(
            right
        )

    edges = np.linspace(0, 1, BINS + 1)
    width = [np.flatnonzero((confidence > low) & (confidence <= high)) for low, high in pairwise(edges)]
    assert found["ece"].after.value == pytest.approx(error(width), abs=1e-6)
    # As many videos in each bin, but for those that are as sure as the last of a bin: they are in it too.
    order, mass, start = np.argsort(confidence, kind="stable"), [], 0
    for number in range(1, BINS + 1):
        end = max(start, math.ceil(len(order) * number / BINS))
        while start < end < len(order) and confidence[order[end]] == confidence[order[end - 1]]:
            end += 1
        mass.append(order[start:end])
        start = end
    assert found["adaptive_ece"].after.value == pytest.approx(error(mass), abs=1e-6)
    assert all(one.change is None for one in found.values())


@pytest.mark.parametrize("count", [1, 14, 15, 16, 299, 1000])
def test_bins_of_equal_mass_hold_as_many(count):
    confidence = np.random.default_rng(count).permutation(count) / count
    held = np.bincount(equal_mass_bins(confidence), minlength=BINS)
    assert held.sum() == count
    assert held.max() - held.min() <= 1


def test_a_case_is_unsure_where_videos_are_few_and_its_change_agrees_with_its_p():
    rng = np.random.default_rng(5)
    widths = []
    for count in (60, 2400):
        labels = rng.integers(5, size=count)
        before = rng.normal(size=(count, 5)).astype(np.float32) + 1.5 * np.eye(5, dtype=np.float32)[labels]
        found = measure(rows_of(before, labels, before * 4), 5).trust
        for name in CALIBRATION:
            change = found[name].change
            assert change.effect.value == pytest.approx(found[name].after.value - found[name].before.value)
            assert (change.p_value < 0.05) == (not change.effect.low <= 0 <= change.effect.high)
        widths.append(found["nll"].after.high - found["nll"].after.low)
    # Four times over-confident logits lose, beyond doubt, and the interval shrinks with the root of the number.
    assert found["ece"].change.p_value < 0.01
    assert found["nll"].change.effect.low > 0
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(40), rel=0.5)


@pytest.mark.slow
def test_intervals_hold_about_as_often_as_they_say():
    rng, held, truth = np.random.default_rng(8), {"brier": 0, "auroc_margin": 0}, {}
    for turn in range(31):
        count = 40_000 if not turn else 150
        known = rng.random(count) < 0.7
        loss, score = np.where(known, rng.gamma(2, 0.2, count), np.nan), rng.normal(size=count) + known
        scores = {"max_probability": rng.random(count), "margin": score}
        said = Decisions(known, rng.random(count) < 0.5, {"brier": loss, "nll": loss}, scores)
        found = compare_trust(said, said, np.arange(count), turn)
        for name in held:
            if not turn:
                truth[name] = found[name].after.value
            else:
                held[name] += found[name].after.low <= truth[name] <= found[name].after.high
    assert all(count >= 25 for count in held.values()), held


def test_videos_of_one_source_say_less():
    rng = np.random.default_rng(2)
    logits = np.repeat(rng.normal(size=(30, 4)), 8, axis=0).astype(np.float32)
    labels = np.repeat(rng.integers(6, size=30), 8)
    rows = rows_of(logits, labels)
    grouped = [replace(row, group=f"g{number // 8}") for number, row in enumerate(rows)]
    alone, together = measure(rows, 4).trust, measure(grouped, 4).trust
    for name in ("brier", "auroc_margin"):
        assert together[name].after.value == alone[name].after.value
        wide, narrow = (one[name].after.high - one[name].after.low for one in (together, alone))
        assert wide > 1.8 * narrow


def test_known_unknown_and_unlabelled_videos_add_up():
    rng = np.random.default_rng(3)
    labels = [0, 1, 2, 7, None, 1, 8, 0]
    logits = rng.normal(size=(8, 3)).astype(np.float32)
    rows = rows_of(logits, labels)
    failed = ResultRow.failed("x", CASE, CASE, error="broken", stage="open", label="class 9")
    table = to_table([*rows, failed])
    found, counts = case_metrics(table, CASE, CASE, 3), video_counts(table)
    assert (found.videos, found.labelled, found.unknown) == (9, 5, 3)
    assert (counts["unknown"], counts["unlabelled"], counts["failed"]) == (3, 1, 1)
    assert found.headline.videos == 5
    known = [number for number, label in enumerate(labels) if label is not None and label < 3]
    right = np.mean([logits[number].argmax() == labels[number] for number in known])
    assert found.headline.after.top1.value == pytest.approx(right)
    assert found.numbers()["auroc_margin_before"] == found.trust["auroc_margin"].before.value


def test_scores_without_an_energy_have_none():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(20, 3)).astype(np.float32)
    labels = rng.integers(5, size=20)
    found = measure(rows_of(logits, labels, log_softmax(logits, axis=1)), 3).trust
    assert found["auroc_energy"].before is not None
    assert found["auroc_energy"].after is None
    assert found["auroc_energy"].change is None
    assert set(found) == set(MEASURES)


def test_rows_of_an_earlier_version_have_no_calibration():
    table = to_table(rows_of(np.eye(3, dtype=np.float32), [0, 1, 2]))
    for name in ("nll_before", "nll_after"):
        table = table.set_column(table.column_names.index(name), name, pa.nulls(3, pa.float32()))
    assert case_metrics(table, CASE, CASE, 3).trust == {}


def test_a_million_videos_take_little_memory_beside_their_columns():
    """In proportion: a hundred thousand take a tenth."""
    count = 100_000
    rng = np.random.default_rng(6)
    known = rng.random(count) < 0.8
    columns = {
        "video_id": pa.array(np.char.mod("%07d", np.arange(count))),
        "case_id": pa.array([CASE] * count),
        "label_id": pa.array(np.where(known, rng.integers(5, size=count), 0), pa.int32(), mask=~known),
        "label": pa.array(["some class"] * count),
    }
    for when in ("before", "after"):
        best = rng.random((count, 2)).astype(np.float32)
        best.sort(axis=1)
        lists = pa.LargeListArray.from_arrays(np.arange(0, 2 * count + 1, 2), best[:, ::-1].ravel())
        columns |= {f"top5_scores_{when}": lists}
        columns |= {f"{n}_{when}": pa.array(rng.random(count).astype(np.float32)) for n in ("nll", "brier", "energy")}
        columns |= {f"entropy_{when}": columns[f"nll_{when}"]}
        columns |= {f"{n}_{when}": pa.array(rng.random(count) < 0.5) for n in ("correct", "correct5")}
    for name in TRUST_COLUMNS:
        columns.setdefault(name, pa.nulls(count, pa.string()))
    rows = CaseRows.of(pa.table(columns), CASE, 5)
    tracemalloc.start()
    found = trust_of(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(found) == set(MEASURES)
    assert peak < 60e6
    # What is put together for the draws leaves intervals about the value, and as narrow as so many videos make them.
    area = found["auroc_margin"].after
    assert area.low < area.value < area.high
    assert area.high - area.low < 0.02


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40), st.floats(0.01, 1))
def test_the_threshold_keeps_what_it_is_asked_to(scores, keep):
    values = np.array(scores)
    found = threshold_of(values, keep, np.arange(len(values)))
    assert (values >= found.value).mean() >= keep - 1e-9
    higher = values[values > found.value]
    assert not len(higher) or (values >= higher.min()).mean() < keep
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(("known", "kept"), [(20, 19), (40, 38), (21, 20), (19, 19)])
def test_the_threshold_of_known_videos_keeps_as_few_as_it_may(known, kept):
    # The surest `kept` of the known videos come before one unknown video, the others behind it.
    score = np.append(-np.arange(known, dtype=float), 0.5 - kept)
    of_known = np.arange(known + 1) < known
    drawn = _detection(of_known, score, np.arange(known + 1), known + 1)
    assert drawn.values[1] == 0
    assert drawn.of(drawn.sums.sum(axis=0, keepdims=True).astype(float))[0] == pytest.approx(drawn.values)


@pytest.mark.parametrize("levels", [1, 2, 5, 400])
def test_what_is_drawn_from_is_the_measure_itself(levels):
    rng = np.random.default_rng(levels)
    known, score, sources = rng.random(300) < 0.6, rng.integers(levels, size=300) / 7, rng.integers(40, size=300)
    drawn = _detection(known, score, sources, 40)
    assert drawn.of(drawn.sums.sum(axis=0, keepdims=True).astype(float))[0] == pytest.approx(drawn.values)


@pytest.mark.parametrize("classes", [1, 2, 9])
def test_certainties_are_what_they_are_called(classes):
    logits = torch.randn(classes, generator=torch.Generator().manual_seed(classes))
    found, p = certainties(logits), logits.double().softmax(dim=0).sort(descending=True).values.tolist()
    assert set(found) == set(SCORES)
    assert found["max_probability"] == pytest.approx(p[0])
    assert found["margin"] == pytest.approx(p[0] - (p[1] if classes > 1 else 0))
    assert found["energy"] == pytest.approx(math.log(sum(math.exp(one) for one in logits.tolist())))
    assert found["entropy"] == pytest.approx(sum(one * math.log(one) for one in p))


@pytest.mark.parametrize("certainty", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_rejected_without_a_word(certainty):
    assert is_rejected(0.4, 0.5)
    assert not is_rejected(0.5, 0.5)
    with pytest.raises(VideoError, match="how sure the decision is cannot be told"):
        is_rejected(certainty, 0.5)
