"""Each run ends with a sentence a method: whether it helped, how sure that is, and what it cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finished_runs import make_case, make_summary_of

from zar_ray.reporting.summary_tables import summary_facts
from zar_ray.reporting.verdicts import verdicts
from zar_ray.results.record import Estimate, PairedComparison, ProtocolAverage


def changed(case, effect: float, low: float, high: float, p: float, detectable: float | None, **fields):
    change = PairedComparison(Estimate(effect, low, high), 9, 4, p, detectable)
    return replace(case, failures_wrong=replace(case.failures_wrong, change=change), **fields)


@pytest.mark.parametrize(
    ("effect", "p", "found"),
    [
        (0.005, 0.8, "no evidence of a gain"),
        (-0.1, 0.3, "no evidence of a gain"),
        (0.08, 0.01, "a gain"),
        (-0.08, 0.01, "a loss"),
    ],
)
def test_a_gain_needs_evidence_and_has_its_price(effect, p, found):
    zar = changed(make_case("zar", 0.5), effect, effect - 0.031, effect + 0.031, p, 0.051, images=121.6, seconds=0.189)
    without = replace(make_case("zero_shot", 0.5), images=16.0, seconds=0.009)
    (said,) = verdicts(make_summary_of([without, zar]))
    shown = f"{100 * effect:+.1f} points, {100 * effect - 3.1:+.1f} to {100 * effect + 3.1:+.1f}"
    assert said == (
        f"zar: {found} ({shown}; 104 videos can show 5.1), at 7.6 x the images and 21 x the time of zero_shot"
    ).replace("104", str(make_summary_of([without, zar]).videos))
    assert summary_facts(make_summary_of([without, zar]))[-1] == ("verdict", said), "it is the last line"


def test_few_videos_and_no_zero_shot():
    zar = changed(make_case("zar", 0.5, videos=5, failed=0), 0.0, -0.4, 0.4, 1.0, None, images=364.0, seconds=0.194)
    assert verdicts(make_summary_of([zar])) == [
        "zar: no evidence of a gain (+0.0 points, -40.0 to +40.0; 5 videos can show no difference), "
        "at 364 images and 0.19 s a video"
    ]


def test_videos_of_unknown_classes_show_no_difference():
    zar = changed(make_case("zar", 0.5, videos=52), 0.1, 0.0, 0.2, 0.01, 0.05)
    (said,) = verdicts(make_summary_of([zar], unlabelled=10, unknown=20))
    assert "; 22 videos can show" in said


def test_without_labels_it_says_what_adaptation_did():
    zar = replace(make_case("zar", None, failed=12), changed=7, confidence_before=0.612, confidence_after=0.783)
    assert verdicts(make_summary_of([zar])) == [
        "zar: 7 of 40 decisions changed, sure of them to 78.3 % in the mean, before 61.2 %"
    ]


def test_of_several_splits_it_is_the_average_that_papers_print():
    cases = [changed(make_case("zar", 0.5, split=split), 0.5, 0.4, 0.6, 0.001, 0.1) for split in "12"]
    change = PairedComparison(Estimate(0.02, -0.01, 0.05), None, None, 0.2, 0.043)
    averages = (
        ProtocolAverage("tpt", "top1", "mean", 0.5, 0.1, ("1", "2"), replace(change, p_value=0.01)),
        ProtocolAverage("zar", "top5", "mean", 0.5, 0.1, ("1", "2")),
        ProtocolAverage("zar", "top1", "mean", 0.5, 0.1, ("1", "2"), change),
    )
    (said,) = verdicts(make_summary_of(cases, averages=averages))
    assert said.startswith("zar: no evidence of a gain (+2.0 points, -1.0 to +5.0; ")
    assert said.endswith("can show 4.3)")


def test_what_adapts_nothing_is_not_judged():
    assert verdicts(make_summary_of([make_case("zero_shot", 0.4)])) == []
