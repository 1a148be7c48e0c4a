"""Each benchmark from its official layout to its table: index, evaluate on Ray, report."""

from __future__ import annotations

import io
from collections import Counter

import miniatures
import numpy as np
import pytest
from rich.console import Console

from zar_ray.data.classes import class_list
from zar_ray.data.index import run_index
from zar_ray.data.options import IndexConfig
from zar_ray.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture
def benchmark(tmp_path, make_video, evaluate):
    """Makes a benchmark in miniature, indexes it, and evaluates it under some name."""

    def run(dataset, **options):
        data = dataset.partition("-")[0]
        root = tmp_path / data

        def put(path, number):
            # an official .avi or .webm may hold what it likes; readers go by the content
            make_video(path.with_suffix(".mp4"), frames=12 + 3 * number, seed=number)
            path.with_suffix(".mp4").rename(path)

        present = getattr(miniatures, data)(root, put)
        request = IndexConfig(source=data, root=str(root), data_root=tmp_path, workers=1, available_only=True)
        run_index(request, Console(file=io.StringIO()))
        return present, evaluate(dataset, data_root=tmp_path, **options)

    return run


def check_counts(ran, videos, splits):
    """Every video of every split is in the case's metrics, and the table holds each row once."""
    summary = ran.summary
    assert summary.videos == videos
    assert [(split.name, split.videos) for split in summary.splits] == splits
    for case in summary.cases:
        assert case.videos == case.finished == dict(splits)[case.split]
    rows = Counter((row.video_id, row.case_id) for row in ran.rows)
    assert set(rows.values()) == {1}


def test_k600_decodes_and_encodes_a_video_once_for_all_its_splits(benchmark, tmp_path):
    (everywhere, *alone), ran = benchmark("k600", features=str(tmp_path / "features"))
    check_counts(ran, 8, [("1", 4), ("2", 4), ("3", 4)])
    rows = Counter(row.video_id for row in ran.rows)
    assert {video: count for video, count in rows.items() if f"/{everywhere}/" in video} == dict.fromkeys(
        (video for video in rows if f"/{everywhere}/" in video), 3 * 2
    )
    assert all(rows[video] == 2 for video in rows if f"/{everywhere}/" not in video)
    decoded = Counter((tmp_path / "k600" / "decoded.txt").read_text().split("\n")[:-1])
    adapted = Counter(ran.folder.storage.read("adapted.txt").decode().split("\n")[:-1])
    assert len(decoded) == len(adapted) == 8
    assert set(decoded.values()) == set(adapted.values()) == {1}
    # the label of a video is its place among the names of each split
    places = {names.index(everywhere) for n in (1, 2, 3) if (names := class_list(f"kinetics600_zero_shot_{n}"))}
    assert {row.label_id for row in ran.rows if f"/{everywhere}/" in row.video_id} == places
    assert {row.label for row in ran.rows} == {everywhere, *alone}

    top1 = {
        method: [case.headline.after.top1.value for case in ran.summary.cases if case.method == method]
        for method in ("zero_shot", "zar")
    }
    for average in ran.summary.averages:
        if average.metric == "top1":
            assert average.splits == ("1", "2", "3")
            assert average.value == pytest.approx(np.mean(top1[average.method]))
            assert average.std == pytest.approx(np.std(top1[average.method]))
    assert "±" in ran.printed


def test_hmdb51_reports_three_splits_and_repeats_published_scoring(benchmark):
    _, right = benchmark("hmdb51", here=True)
    check_counts(right, 9, [("1", 3), ("2", 3), ("3", 3)])
    # one class set: a video of several splits has one decision
    assert len({row.case_id for row in right.rows}) == 2
    assert "2 of 3 videos are scored differently: uses the right names" in right.printed
    _, legacy = benchmark("hmdb51", here=True, legacy_labels=True, split="2", name="legacy")
    check_counts(legacy, 3, [("2", 3)])
    names = {row.video_id.split("/")[1]: row.label for row in legacy.rows}
    assert names == {"wave": "wave", "kick": "kick ball", "kick_ball": "kick"}
    assert "uses the published label files' names" in legacy.printed


def test_base_to_novel_is_a_protocol_with_a_harmonic_mean(benchmark):
    _, ran = benchmark("hmdb51", here=True, protocol="base_to_novel")
    assert [split.classes for split in ran.summary.splits] == [26, 25]
    assert ran.summary.dataset == "hmdb51-base2novel"
    (harmonic,) = [one for one in ran.summary.averages if (one.method, one.metric) == ("zar", "top1")]
    base, novel = (case.headline.after.top1.value for case in ran.summary.cases if case.method == "zar")
    assert harmonic.kind == "harmonic"
    assert harmonic.value == pytest.approx(2 * base * novel / (base + novel) if base + novel else 0)
    assert "harmonic" in ran.printed


def test_several_seeds_are_one_run_and_a_mean(benchmark):
    _, ran = benchmark("hmdb51", here=True, protocol="base_to_novel", seeds=[3, 4], method=["zar"])
    cells = ran.record.cells
    assert [(cell.coordinates, cell.summary.seed) for cell in cells] == [({"seed": "3"}, 3), ({"seed": "4"}, 4)]
    ((row,),) = (table.rows for table in ran.record.tables)
    values = {
        split: [c.headline.after.top1.value for cell in cells for c in cell.summary.cases if c.split == split]
        for split in ("base", "novel")
    }
    means = {split: np.mean(of_split) for split, of_split in values.items()}
    assert {split: score.value for split, score in row.scores.items()} == pytest.approx(means)
    assert row.scores["base"].std == pytest.approx(np.std(values["base"], ddof=1))
    total = sum(means.values())
    assert row.average.value == pytest.approx(2 * means["base"] * means["novel"] / total if total else 0)
    each = [one.value for cell in cells for one in cell.summary.averages if one.metric == "top1"]
    assert row.average.std == pytest.approx(np.std(each, ddof=1))
    assert f"{100 * row.average.value:.1f} ± {100 * row.average.std:.1f}" in ran.printed


@pytest.mark.parametrize(
    ("name", "videos", "splits"),
    [
        ("ucf101", 6, [("1", 2), ("2", 2), ("3", 2)]),
        ("k400", 4, [("val", 4)]),
        ("ssv2", 4, [("val", 4)]),
    ],
)
def test_every_video_of_a_benchmark_is_in_its_table(benchmark, name, videos, splits):
    present, ran = benchmark(name, here=True, batch_size=3)
    check_counts(ran, videos, splits)
    assert {row.label for row in ran.rows} == set(present)


def test_charades_is_scored_by_mean_average_precision(benchmark):
    _, ran = benchmark("charades", here=True)
    check_counts(ran, 3, [("test", 3)])
    for row in ran.rows:
        assert row.label_id is None
        assert len(row.scores_after) == 157
    assert {row.video_id.split("/")[1]: row.labels for row in ran.rows} == {
        "AAAA1.mp4": (1, 3),
        "BBBB1.mp4": (3,),
        "NONE1.mp4": (),
    }
    for case in ran.summary.cases:
        assert case.headline is None
        assert 0 < case.map_after.value <= 1
    assert "mAP" in ran.printed


def test_what_a_benchmark_does_not_have_is_refused(benchmark, evaluate):
    with pytest.raises(ConfigError, match='k400: no split "2"'):
        benchmark("k400", split="2")
    with pytest.raises(ConfigError, match="--legacy-labels: no published label file of k400"):
        benchmark("k400", legacy_labels=True)
    with pytest.raises(ConfigError, match="--protocol base_to_novel: k600 has none; these have one: hmdb51, k400"):
        evaluate("k600", protocol="base_to_novel")
