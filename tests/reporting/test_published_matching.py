"""Published numbers stand beside the right runs, with every difference said."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import pytest
from finished_runs import make_change, make_model_cost, make_record, write_record
from published_runs import TABLES, cell, differences, measured, reported

from zar_ray.errors import RunError
from zar_ray.reporting.published.tables import load_table
from zar_ray.reporting.published.view import compare
from zar_ray.results.study_record import find_runs
from zar_ray.study.options import EvalConfig


def test_a_run_of_all_splits_stands_beside_the_mean_of_its_row(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45])
    mine = measured(output, "zar-table1", "ZAR", "HMDB51")
    assert mine.value == pytest.approx(44.0)
    assert mine.std == pytest.approx(0.5)
    assert cell(output, "zar-table1", "ZAR", "HMDB51").difference == pytest.approx(44.0 - 43.6)
    assert differences(output, "zar-table1", "ZAR", "HMDB51") == []
    # The same weights are no Kinetics-400 weights, and another benchmark is another cell.
    assert cell(output, "zar-table1", "ZAR + K400 pretrain", "HMDB51").measured is None
    assert cell(output, "zar-table1", "ZAR", "UCF101").measured is None


def test_the_decision_before_adaptation_is_vanilla_clips(output, write_run):
    write_run("mine", "k600", [0.6, 0.6, 0.6], before=0.55)
    vanilla = measured(output, "zar-table1", "Vanilla CLIP B/16", "Kinetics-600")
    assert vanilla.value == pytest.approx(55.0)
    assert vanilla.differences == ("eval frames 16 instead of 32",)
    write_run("own", "k600", [0.56, 0.56, 0.56], "zero_shot", views={"eval_frames": 32})
    vanilla = measured(output, "zar-table1", "Vanilla CLIP B/16", "Kinetics-600")
    assert vanilla.value == pytest.approx(56.0)
    assert vanilla.differences == ()


def test_base_novel_and_harmonic_mean_come_from_one_run(output, write_run):
    write_run("mine", "k400-base2novel", [0.9, 0.6], checkpoint="/w/mine.safetensors", model="mine")
    for column, value in (("Kinetics-400 base", 90.0), ("Kinetics-400 novel", 60.0), ("Kinetics-400 HM", 72.0)):
        mine = measured(output, "zar-table2", "ZAR", column)
        assert mine.value == pytest.approx(value)
        assert mine.differences == (
            "mine.safetensors taken for weights with 16-shot training on the base classes",
            "seed 0 instead of the mean of 3 seeds",
        )
    assert cell(output, "zar-table2", "Vanilla CLIP B/16", "Kinetics-400 base").measured is None


def test_an_ablation_takes_the_run_of_its_setting_alone(output, write_run):
    write_run("half", "hmdb51", [0.5] * 3, zar={"confidence": 0.5})
    assert measured(output, "zar-table3", "confidence 50 %", "HMDB51").value == pytest.approx(50)
    assert cell(output, "zar-table3", "confidence 80 %", "HMDB51").measured is None
    assert differences(output, "zar-table3", "confidence 50 %", "HMDB51") == ["weights without Kinetics-400 training"]
    assert differences(output, "zar-table1", "ZAR", "HMDB51") == ["confidence 0.5 instead of 0.8"]
    write_run("two", "hmdb51", [0.4] * 3, views={"rates": [1.0, 0.5]})
    assert measured(output, "zar-table4", "rates 1, 1/2", "HMDB51").value == pytest.approx(40)
    assert cell(output, "zar-table4", "rate 1", "HMDB51").measured is None


def test_a_default_short_side_is_the_one_it_comes_to(output, write_run):
    write_run("five", "hmdb51", [0.5] * 3, views={"crops": 5})
    write_run("three", "hmdb51", [0.5] * 3)
    lacking = "weights without Kinetics-400 training"
    assert differences(output, "zar-table5", "5 crops", "HMDB51") == [lacking]
    assert differences(output, "zar-table5", "3 crops", "HMDB51") == [lacking, "short side 224 instead of 256"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seed": 5}, []),
        ({"split": "2"}, ["split 2 alone instead of the mean of 3 splits"]),
        ({"limit": 100}, ["limit 100 videos"]),
        ({"videos": 1500}, ["4,500 videos instead of 4,590"]),
        ({"failed": 2}, ["6 failed videos counted as wrong"]),
        ({"views": {"frames": 8}}, ["frames 8 instead of 16"]),
        ({"views": {"rates": [1.0], "crops": 1}}, ["rates 1 instead of 1, 0.5, 0.25, 0.125", "crops 1 instead of 3"]),
        ({"zar": {"lr": 0.01, "steps": 3}}, ["steps 3 instead of 1", "lr 0.01 instead of 0.005"]),
        ({"views": {"eval_views": "4x3"}}, ["eval views 4x3 instead of 1x1"]),
        ({"context": "a photo of a"}, ['context "a photo of a" instead of "a video of a"']),
        ({"random_weights": True, "pretrained": "random"}, ["random weights"]),
        ({"pretrained": "laion2b_s34b_b88k", "model": "ViT-B-16"}, ["laion2b_s34b_b88k weights instead of OpenAI's"]),
        ({"checkpoint": "/w/ViT-B-16.pt"}, ["ViT-B-16.pt taken for OpenAI's weights"]),
    ],
)
def test_each_protocol_difference_is_named(output, write_run, options, expected):
    splits = 1 if "split" in options else 3
    write_run("mine", "hmdb51", [0.4] * splits, **options)
    assert differences(output, "zar-table1", "ZAR", "HMDB51") == expected


def test_labels_are_a_difference_until_the_published_ones_are_used(output, write_run):
    write_run("mine", "hmdb51", [0.4] * 3)
    assert any("120 of 1,530" in text for text in measured(output, "zar-table1", "ZAR", "HMDB51").differences)
    write_run("legacy", "hmdb51", [0.4] * 3, legacy_labels=True)
    legacy = measured(output, "zar-table1", "ZAR", "HMDB51")
    assert (legacy.run.summary.name, legacy.differences) == ("legacy", ())


def test_a_benchmarks_own_wording_is_a_difference_and_the_command_asks_for_the_published_one(output, write_run):
    write_run("mine", "ucf101", [0.6] * 3)
    assert differences(output, "zar-table1", "ZAR", "UCF101") == ["name style split_camel_case instead of raw"]
    command = cell(output, "zar-table1", "ZAR", "UCF101").command
    assert command == "zar eval --dataset ucf101 --method zar --name-style raw --name ucf101_zar_name-style-raw"


def test_other_protocols_of_a_dataset_are_shown_and_named(output, write_run):
    write_run("val", "k600-val", [0.6] * 3)
    assert differences(output, "zar-table1", "ZAR", "Kinetics-600") == ["Kinetics-600 validation videos only"]
    write_run("all", "k600", [0.61] * 3)
    assert measured(output, "zar-table1", "ZAR", "Kinetics-600").run.summary.name == "all"


def test_trained_weights_fill_the_trained_row_alone_and_say_what_is_taken_for_granted(output, write_run):
    write_run("mine", "hmdb51", [0.54] * 3, checkpoint="/w/k400.safetensors", model="k400")
    assert differences(output, "zar-table1", "ZAR + K400 pretrain", "HMDB51") == [
        "k400.safetensors taken for weights with Kinetics-400 training"
    ]
    assert cell(output, "zar-table1", "ZAR", "HMDB51").measured is None
    assert cell(output, "zar-table1", "Vanilla CLIP B/16", "HMDB51").measured is None


@pytest.mark.parametrize("called", ["tiny", "ViT-B-16", "k400-clip"])
@pytest.mark.parametrize(
    ("cost", "why"),
    [
        (make_model_cost(None, 48), "an architecture of its own, 3.9 M parameters, 48 pixels"),
        (make_model_cost("ViT-B-32-quickgelu"), "ViT-B-32-quickgelu, 149.6 M parameters, 224 pixels"),
        (make_model_cost("ViT-B-16", 96), "ViT-B-16, 149.6 M parameters, 96 pixels"),
        (None, "is no ViT-B-16 of 224 pixels (what it is is not known)"),
    ],
)
def test_another_architecture_measures_nothing_whatever_it_is_called_and_it_is_said_why(
    output, write_run, called, cost, why
):
    write_run("mine", "hmdb51", [0.4] * 3, model=called, checkpoint=f"/w/{called}.safetensors", cost=cost)
    assert all(one.measured is None for name in TABLES for one in compare(load_table(name), find_runs(output).runs))
    skipped = " ".join(reported("zar-table1", output, "terminal").partition("Skipped")[2].split())
    assert "mine: fills no cell, as" in skipped
    assert why in skipped
    # Who evaluates something else has not asked.
    assert "fills no cell" not in reported("zar-table2", output, "terminal")


def test_a_model_of_the_tables_shapes_fills_the_cell_whatever_it_is_called(output, write_run):
    write_run("mine", "hmdb51", [0.54], split="2", before=0.5, checkpoint="/w/demo-tiny.safetensors", model="demo-tiny")
    mine = measured(output, "zar-table1", "ZAR + K400 pretrain", "HMDB51")
    assert mine.value == pytest.approx(54)
    assert mine.change is not None
    assert mine.change.effect.value == pytest.approx(0.04)
    shown = reported("zar-table1", output, "terminal")
    assert re.search(r"^ZAR \+ K400 pretrain +HMDB51 +54\.2 ± 0\.8 +54\.0 +-0\.2 +r1 t1 d", shown, re.MULTILINE)
    assert "t1  ZAR + K400 pretrain, HMDB51: +4.0 [-6.0, +14.0] points, p 0.267" in shown
    rows = list(csv.DictReader(io.StringIO(reported("zar-table1", output, "csv"))))
    row = next(one for one in rows if (one["method"], one["dataset"]) == ("ZAR + K400 pretrain", "hmdb51"))
    assert [row[name] for name in ("change", "change_low", "change_high", "change_p")] == [
        *("+4.0", "-6.0", "+14.0"),
        "0.267",
    ]


def test_a_mean_over_splits_has_its_own_change(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45], change=make_change(0.01))
    assert measured(output, "zar-table1", "ZAR", "HMDB51").change == make_change(0.01)
    # The decision before adaptation, which stands for vanilla CLIP's, changed nothing.
    assert measured(output, "zar-table1", "Vanilla CLIP B/16", "HMDB51").change is None
    assert "ZAR, HMDB51: +1.0 [-9.0, +11.0] points, p 0.267" in reported("zar-table1", output, "terminal")


def test_the_nearest_run_wins_then_the_newest(output, write_run):
    write_run("old", "hmdb51", [0.41] * 3)
    write_run("new", "hmdb51", [0.42] * 3, seed=1)
    assert measured(output, "zar-table1", "ZAR", "HMDB51").run.summary.name == "new"
    write_run("glance", "hmdb51", [0.43] * 3, limit=100)
    write_run("untrained", "hmdb51", [0.02] * 3, random_weights=True, pretrained="random")
    assert measured(output, "zar-table1", "ZAR", "HMDB51").run.summary.name == "new"


def test_corrupted_videos_measure_nothing_that_is_published(output, write_run):
    write_run("rain", "hmdb51", [0.43] * 3, corruption=["rain:2"])
    text = reported("zar-table1", output, "terminal")
    write_run("clean", "hmdb51", [0.43] * 3, corruption=["clean"])
    assert "43.0" not in text
    assert "43.0" in reported("zar-table1", output, "terminal")


def test_neither_a_glance_nor_random_weights_take_a_full_runs_place(output, write_run):
    write_run("full", "hmdb51", [0.42] * 3, zar={"steps": 2, "lr": 0.01})
    write_run("glance", "hmdb51", [0.43] * 3, limit=100)
    write_run("untrained", "hmdb51", [0.02] * 3, random_weights=True, pretrained="random")
    assert measured(output, "zar-table1", "ZAR", "HMDB51").run.summary.name == "full"


def test_a_run_without_labels_or_of_a_dataset_of_ones_own_measures_nothing(output, write_run, make_summary, tmp_path):
    write_run("mine", "hmdb51", [0.4], split="1")
    path = tmp_path / "runs" / "mine" / "run.json"
    record = json.loads(path.read_text())
    record["study"]["cells"][0]["summary"]["cases"][0]["failures_wrong"] = None
    path.write_text(json.dumps(record))
    own = dataclasses.replace(make_summary(), dataset="/videos")
    config = EvalConfig(dataset="/videos").model_dump(mode="json")
    write_record(tmp_path / "runs" / "own", make_record(own, [config]), config)
    found = find_runs(output)
    assert (len(found.runs), found.broken) == (2, ())
    assert all(one.measured is None for name in TABLES for one in compare(load_table(name), found.runs))


def test_runs_are_found_and_broken_ones_named(output, write_run, tmp_path):
    write_run("good", "hmdb51", [0.4] * 3)
    runs = tmp_path / "runs"
    for name, content in (("torn", '{"study": '), ("other", "[]"), ("bad", '{"study": {}, "config": {}}')):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(content)
    (runs / "unfinished" / "parts").mkdir(parents=True)
    copy = runs / "mlflow-artifacts" / "0123" / "artifacts"
    copy.mkdir(parents=True)
    (copy / "run.json").write_text((runs / "good" / "run.json").read_text())
    found = find_runs(output)
    assert [run.summary.name for run in found.runs] == ["good"]
    assert [re.sub(r".*/(\w+)/run\.json: is not .*", r"\1", line) for line in found.broken] == ["bad", "other", "torn"]
    for form in ("terminal", "markdown"):
        assert "torn/run.json" in reported("zar-table1", output, form)
    assert len(list(csv.DictReader(io.StringIO(reported("zar-table1", output, "csv"))))) == 40


def test_one_runs_folder_and_a_uri_and_nothing_at_all_can_be_given(output, write_run, tmp_path):
    write_run("good", "hmdb51", [0.4] * 3)
    assert len(find_runs(f"{output}/good").runs) == 1
    assert len(find_runs(f"file://{output}").runs) == 1
    assert find_runs(str(tmp_path / "nowhere")).runs == ()
    with pytest.raises(RunError, match="no such kind of place"):
        find_runs("gopher://here")
