"""A summary survives run.json, and its numbers keep the names that docs/mlflow.md promises."""

from __future__ import annotations

import json

import pytest

from zar_ray.errors import RunError
from zar_ray.results.record import Throughput
from zar_ray.results.study_record import Cell, StudyRecord
from zar_ray.results.trust import CALIBRATION


def test_a_summary_survives_json(make_summary, make_protocol, make_multi_label):
    for summary in (
        make_protocol(),
        make_protocol(("base", "novel"), "harmonic"),
        make_multi_label(),
        make_summary(),
        make_summary(3, failures=3, unlabelled=0),
        make_summary(4, failures=0, unlabelled=4),
    ):
        study = StudyRecord(summary, (), (Cell({}, {}, {}, summary),), (), None, 1.0)
        assert StudyRecord.from_json(json.loads(json.dumps(study.to_json()))) == study


@pytest.mark.parametrize("content", [None, {}, {"name": "x"}, []])
def test_what_is_no_summary_is_refused_in_one_line_with_its_place(content):
    with pytest.raises(RunError, match=r"^/runs/a/run\.json: is not the record of a run") as caught:
        StudyRecord.from_json(content, "/runs/a/run.json")
    assert "\n" not in str(caught.value)


def test_every_number_is_in_the_documentation(make_summary, make_protocol, make_multi_label, repository):
    page = (repository / "docs" / "mlflow.md").read_text(encoding="utf-8")
    for summary in (make_summary(), make_multi_label()):
        for name in {*summary.numbers(), *(name for case in summary.cases for name in case.numbers())}:
            stem = name.removesuffix("_low").removesuffix("_high")
            assert f"`{stem}`" in page, f"docs/mlflow.md does not say what {name} is"
    for summary in (make_protocol(), make_protocol(("base", "novel"), "harmonic")):
        for name in {name for average in summary.averages for name in average.numbers()}:
            metric, _, kind = name.rpartition("_")
            assert f"`METHOD/NAME_{kind}`" in page, f"docs/mlflow.md does not say what {name} is"
            assert f"`{metric.removesuffix('_before')}`" in page


def test_averages_are_numbers_by_their_kind(make_protocol):
    mean = make_protocol().averages[0]
    assert mean.numbers() == {"top1_mean": mean.value, "top1_std": mean.std}
    harmonic = make_protocol(("base", "novel"), "harmonic").averages[-1]
    assert harmonic.numbers() == {"mean_class_before_harmonic": harmonic.value}


def test_methods_have_the_same_numbers_but_for_the_change(make_summary):
    zero_shot, zar = (case.numbers() for case in make_summary().cases)
    change = {"top1_change", "top1_change_low", "top1_change_high", "gained", "lost", "change_p", "detectable"}
    change |= {f"{name}_change{end}" for name in CALIBRATION for end in ("", "_low", "_high", "_p")}
    assert zar.keys() - zero_shot.keys() == change
    assert zero_shot.keys() <= zar.keys()
    assert zar["top1_before"] == zero_shot["top1"]


def test_speed_is_unknown_without_work():
    assert Throughput(10, 4.0).videos_per_second == 2.5
    assert Throughput(0, 4.0).videos_per_second is None
    assert Throughput(3, 0.0).videos_per_second is None
