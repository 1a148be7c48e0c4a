"""What is printed says all it must, fits the width, and survives logs."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from zar_ray.adaptation.rankings import RankedLabel, Ranking
from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.reporting.manifest_tables import print_manifest
from zar_ray.reporting.rankings import print_ranking
from zar_ray.reporting.study_tables import print_study, study_markdown
from zar_ray.reporting.summary_tables import RANDOM_WEIGHTS
from zar_ray.results.record import MlflowState, RunSummary, SplitSummary, Throughput
from zar_ray.results.study_record import Cell, StudyRecord


def study_of(summary: RunSummary) -> StudyRecord:
    """The study of one cell that an evaluation is."""
    return StudyRecord(summary, (), (Cell({}, {}, {}, summary),), (), None, 1.0)


def print_summary(summary: RunSummary, console: Console) -> None:
    print_study(study_of(summary), console)


def markdown(summary: RunSummary) -> str:
    return study_markdown(study_of(summary))


def printed(show, *values, width: int = 80, encoding: str = "utf-8", **options) -> str:
    stream = io.BytesIO()
    text = io.TextIOWrapper(stream, encoding=encoding)
    show(*values, Console(file=text, width=width), **options)
    text.flush()
    return stream.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_shows_before_after_change_and_chance_within_the_width(make_summary, width):
    summary = make_summary()
    output = printed(print_summary, summary, width=width)
    scores = summary.cases[1].headline
    for estimate in (scores.before.top1, scores.after.top1, scores.after.top5, scores.after.mean_class):
        assert f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]" in output
    assert f"{100 * scores.change.difference:+.1f} [" in output
    assert f"{scores.change.gained} gained, {scores.change.lost} lost" in output
    assert re.search(r"McNemar p (< 0\.001|\d\.\d{3})", output)
    assert "chance 12.5 %" in output
    table = output[output.index("method") : output.index("Intervals")].splitlines()
    assert max(map(len, table)) <= width
    # No cell was broken over two lines: a heading, a rule, a row for zero_shot, a gap, and three rows for zar.
    assert len([line for line in table if line.strip()]) == 6


def test_counts_failures_speed_costs_and_places_are_beneath(make_summary):
    output = printed(print_summary, make_summary(resumed=7, warned=1))
    assert "60: 56 finished, 4 failed, 2 without a label" in output
    assert "1 with a warning; 7 were there from an earlier session" in output
    assert "warned   `zar report run /somewhere/runs/demo_zar_seed0` lists videos and warnings" in output
    assert "warned" not in printed(print_summary, make_summary())
    assert "4 at decode: v0.mp4: the file ends in frame 0; v1.mp4: the file ends in frame 1; " in output
    assert "and 1 more" in output
    assert "4.8 videos/s" in output
    assert "12 MB shipped (at most 12 MB), 70 frames decoded, 235 images encoded" in output
    assert "zar: 4 failed videos counted as wrong; left out, top-1 is " in output
    # Paths are on one line each however narrow the terminal: they are there to be copied.
    assert "/somewhere/runs/demo_zar_seed0/predictions.parquet\n" in printed(print_summary, make_summary(), width=40)
    assert "sqlite:////somewhere/runs/mlflow.db (experiment zar-ray, run abc123)\n" in output


def test_random_weights_are_said_everywhere(make_summary):
    summary = make_summary(random_weights=True)
    ranking = Ranking("a.mp4", "zar", (RankedLabel("x", 1.0),), (RankedLabel("x", 1.0),))
    assert RANDOM_WEIGHTS in printed(print_summary, summary)
    assert RANDOM_WEIGHTS in markdown(summary)
    assert RANDOM_WEIGHTS in printed(print_ranking, ranking, random_weights=True, width=100)
    assert "RANDOM" not in printed(print_summary, make_summary()) + markdown(make_summary())
    assert "RANDOM" not in printed(print_ranking, ranking, random_weights=False)


def test_a_run_that_was_not_logged_says_why(make_summary):
    reason = "http://mlflow:5000: no answer; send it with `zar report mlflow runs/a`"
    assert f"not logged: {reason}" in printed(print_summary, make_summary(mlflow=MlflowState(why_not=reason)), width=60)


@pytest.mark.parametrize("counts", [(3, 3, 0), (3, 0, 3), (1, 0, 0), (1, 0, 1)])
def test_runs_with_little_in_them_are_shown_too(make_summary, counts):
    videos, failures, unlabelled = counts
    summary = make_summary(videos, failures=failures, unlabelled=unlabelled, throughput=Throughput(0, 0.0))
    for output in (printed(print_summary, summary), markdown(summary)):
        assert ("no labels" in output) == (unlabelled == videos)
        assert "videos/s" not in output
        assert not re.search(r"\bnan\b|None", output)


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        ([2.5], "2.5 s to load the models (1 worker)"),
        ([1, 4.5, 2], "2.5 s to load the models (3 workers, the slowest 4.5"),
    ],
)
def test_how_long_workers_took_to_load_the_models_is_said(make_summary, loads, said):
    summary = make_summary(throughput=Throughput.of(3, 9.0, loads))
    for output in (printed(print_summary, summary, width=120), markdown(summary)):
        assert said in output
    assert summary.numbers()["seconds_load_most"] == max(loads)
    assert "load the models" not in printed(print_summary, make_summary(throughput=Throughput.of(3, 9.0, ())))


def test_a_log_that_knows_only_ascii_gets_it_too(make_summary):
    assert "zero_shot" in printed(print_summary, make_summary(), encoding="ascii")


def test_square_brackets_in_reasons_are_text_not_markup(make_summary):
    summary = make_summary()
    group = replace(summary.failures[0], examples=(("a[bold].mp4", "[Errno 2] [/] no such file"),))
    output = printed(print_summary, replace(summary, failures=(group,)), width=120)
    assert "a[bold].mp4: [Errno 2] [/] no such file" in output


def test_no_value_prints_as_minus_zero(make_summary):
    summary = make_summary()
    change = summary.cases[1].headline.change
    tiny = replace(change, effect=replace(change.effect, value=-0.0001, low=-0.0004, high=-0.00001))
    case = replace(summary.cases[1], failures_wrong=replace(summary.cases[1].headline, change=tiny))
    assert "+0.0 [+0.0, +0.0]" in printed(print_summary, replace(summary, cases=(case,)))


def test_markdown_has_the_same_rows_and_is_safe(make_summary):
    summary = make_summary()
    text = markdown(replace(summary, dataset="a|b_*c*<script>"))
    assert r"a\|b\_\*c\*\<script>" in text
    rows = [line for line in text.partition("**Trust and cost")[0].splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert rows[2].startswith(r"| zero\_shot |")


@pytest.mark.parametrize("width", [80, 100])
def test_several_splits_have_a_table_each_and_their_mean_beneath(make_protocol, width):
    summary = make_protocol()
    output = printed(print_summary, summary, width=width)
    assert "demo: 60 videos, 3 splits, demo-tiny (0123456789ab), seed 0" in output
    titles = [
        "split 1: 60 videos, 8 classes (chance 12.5 %)",
        "split 2: 67 videos, 9 classes (chance 11.1 %)",
        "split 3: 74 videos, 10 classes (chance 10.0 %)",
        "mean ± std over 3 splits",
    ]
    places = [output.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    for case, start, end in zip(summary.cases[1::2], places[:-1], places[1:], strict=True):
        part = output[start:end]
        for estimate in (case.headline.before.top1, case.headline.after.top1, case.headline.after.mean_class):
            assert f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]" in part
        assert "zar: 4 failed videos counted as wrong" in part
        assert f"demo, split {case.split}: 3 classes have no video here" in part
    assert output.count("Intervals hold with 95 %.") == 1
    means = output[places[-1] : output.index("\nTrust and cost a video")]
    shown = {(one.method, one.metric): f"{100 * one.value:.1f} ± {100 * one.std:.1f}" for one in summary.averages}
    rows = [re.split(r"  +", line.strip()) for line in means.splitlines() if "±" in line][1:]
    metrics = ("top1", "top5", "mean_class")
    assert rows == [
        ["zero_shot", *(shown["zero_shot", name] for name in metrics)],
        ["zar", "before", *(shown["zar", f"{name}_before"] for name in metrics)],
        ["after", *(shown["zar", name] for name in metrics)],
    ]
    tables = [line for line in output[places[0] : places[-1]].splitlines() if "[" in line and "videos" not in line]
    assert len(tables) == 3 * 4
    assert max(map(len, [*tables, *means.splitlines()])) <= width


def test_base_and_novel_have_their_harmonic_mean(make_protocol):
    summary = make_protocol(("base", "novel"), "harmonic")
    output = printed(print_summary, summary)
    below = output[output.index("harmonic mean of base and novel") :]
    value = next(one.value for one in summary.averages if (one.method, one.metric) == ("zar", "top1"))
    assert re.search(rf"after +{100 * value:.1f} ", below)
    assert "±" not in output


def test_markdown_has_the_splits_and_the_mean_too(make_protocol):
    summary = make_protocol()
    text = markdown(summary)
    for title in ("split 1: 60 videos, 8 classes (chance 12.5 %)", "mean ± std over 3 splits"):
        assert f"\n\n**{title}**\n\n| method |" in text
    accuracies = text.partition("**Trust and cost")[0]
    assert len([line for line in accuracies.splitlines() if line.startswith("|")]) == 3 * (2 + 4) + 2 + 3
    assert text.count("3 classes have no video here") == 3


def test_a_log_that_knows_only_ascii_gets_the_deviation_too(make_protocol):
    assert "mean +/- std over 3 splits" in printed(print_summary, make_protocol(), encoding="ascii")


def test_splits_without_labels_or_averages_are_shown_too(make_protocol):
    summary = make_protocol()
    cases = tuple(replace(case, labelled=0, failures_wrong=None, failures_excluded=None) for case in summary.cases)
    for output in (printed(print_summary, replace(summary, cases=cases, averages=())), markdown(summary)):
        assert "None" not in output
    assert printed(print_summary, replace(summary, cases=cases, averages=())).count("no labels") == 6


def test_one_split_is_shown_as_ever_with_its_notes(make_summary):
    summary = make_summary()
    one = replace(summary, splits=(SplitSummary("all", 8, 60),))
    noted = replace(summary, splits=(SplitSummary("test", 8, 60, ("demo, split test: only [half] of it",)),))
    for show in (lambda *run: printed(print_summary, *run), markdown):
        assert show(one) == show(summary)
        assert "of it" in show(noted)
    assert "\ndemo, split test: only [half] of it\n" in printed(print_summary, noted)


def test_multi_label_splits_show_mean_average_precision(make_multi_label):
    summary = make_multi_label()
    output = printed(print_summary, summary)
    assert re.search(r"method +mAP %", output)
    assert "top-1" not in output + markdown(summary)
    zero_shot, zar = summary.cases
    assert f"chance {100 * zar.chance:.1f} %" in output
    for label, estimate in (("zero_shot", zero_shot.map_after), ("before", zar.map_before), ("after", zar.map_after)):
        shown = f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
        assert re.search(rf"{label} +{re.escape(shown)}", output)
    assert len(re.findall(r"before", output)) == 1
    assert "zar: 2 failed videos ranked last." in output
    assert "Intervals hold with 95 %." in output
    assert "are not defined where a video may show several classes" in output
    unmeasured = [replace(case, map_before=None, map_after=None, map_change=None) for case in summary.cases]
    assert "no labels" in printed(print_summary, replace(summary, cases=tuple(unmeasured)))


def test_a_ranking_shows_both_sides_or_one_where_nothing_changed():
    before = (RankedLabel("run", 0.6), RankedLabel("jump", 0.4))
    after = (RankedLabel("jump", 0.9), RankedLabel("run", 0.1))
    both = printed(
        print_ranking, Ranking("a b.mp4", "zar", before, after, warning="damaged tail"), random_weights=False
    )
    assert re.search(r"before +after", both)
    assert re.search(r"1 +run +60\.0 % +jump +90\.0 %", both)
    assert "a b.mp4  zar" in both
    assert "warning: damaged tail" in both
    one = printed(print_ranking, Ranking("a.mp4", "zero_shot", before, before), random_weights=False)
    assert "before" not in one
    assert re.search(r"1 +run +60\.0 %\s*\n", one)


def test_a_file_without_a_ranking_says_why():
    output = printed(print_ranking, Ranking("a.mp4", "zar", (), (), error="no such [file]"), random_weights=False)
    assert "failed: no such [file]" in output


def test_a_manifest_shows_its_counts_rows_and_broken_files():
    rows = [
        VideoRow(f"run/{i}.mp4", f"/d/run/{i}.mp4", 0, "run", "test", 30, 25.0, 96, 64, 1.2, 1000, "decord")
        for i in range(3)
    ]
    rows.append(VideoRow("bad.mp4", "/d/bad.mp4", split="test", error="moov [atom] not found"))
    output = printed(print_manifest, Manifest.of(rows, ["run", "jump"], "/d", "mine"), rows=2)
    assert "mine: 4 videos, 2 classes" in output
    assert re.search(r"test +4 +3 +1 +1 +0\.00", output)
    assert re.search(r"run/0\.mp4 +run +30 +96x64 +25", output)
    assert "run/2.mp4" not in output
    assert "... and 2 more" in output
    assert "broken: bad.mp4: moov [atom] not found" in output
    assert "read by decord (3)" in output
    empty = printed(print_manifest, Manifest.of([], ["run", "jump"], "/d", "none"))
    assert "none: 0 videos" in empty


def test_that_a_video_shows_none_of_the_labels_is_said_above_them():
    ranked = (RankedLabel("x", 0.3), RankedLabel("y", 0.2))
    rejected = Ranking("a.mp4", "zar", ranked, ranked, certainty=0.3, reject=True)
    output = printed(print_ranking, rejected, random_weights=False)
    assert output.index("none of these: 0.3 is below the threshold") < output.index("30.0 %")
    kept = replace(rejected, reject=False)
    assert "none of these" not in printed(print_ranking, kept, random_weights=False)
