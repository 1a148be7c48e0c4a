import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest

from zar_ray.commands.main import main
from zar_ray.data.classes import class_list
from zar_ray.data.datasets import load_benchmark, resolve_dataset
from zar_ray.data.few_shot import draw_shots
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest, write_manifest
from zar_ray.errors import ConfigError, ManifestError


def hmdb51(videos: int = 20, folder: str = "") -> Manifest:
    """Every class with so many training videos and one test video in split 1, the other way round in split 2."""
    names = class_list("hmdb51")
    rows = [
        VideoRow(
            f"{folder}{name}/{name} {number}.avi",
            f"/data/{folder}{name} {number}.avi",
            label,
            name,
            "all",
            6,
            width=32,
            height=24,
            splits=("train1", "test2") if number < videos else ("test1", "train2"),
        )
        for label, name in enumerate(names)
        for number in range(videos + 1)
    ]
    return Manifest.of(rows, names, "/data", "hmdb51")


def ids(manifest: Manifest) -> set[str]:
    return set(manifest.table["video_id"].to_pylist())


@pytest.mark.parametrize("shots", [2, 4, 8, 16])
def test_a_draw_has_its_shots_of_every_class_from_training_alone(shots: int) -> None:
    drawn = draw_shots(load_benchmark("hmdb51"), hmdb51(), shots, 1)
    assert Counter(row.class_name for row in drawn.rows()) == dict.fromkeys(class_list("hmdb51"), shots)
    assert drawn.splits == ("train",)
    assert not ids(drawn) & ids(hmdb51().select("test1"))
    assert drawn.name == f"hmdb51-1-{shots}shot-seed1"


def test_base_classes_count_from_nought() -> None:
    drawn = draw_shots(load_benchmark("hmdb51-base2novel"), hmdb51(), 16, 1)
    assert len(drawn) == 416
    assert drawn.class_names == class_list("hmdb51_base")
    assert {row.label_id for row in drawn.rows()} == set(range(26))


def test_seeds_differ_draws_nest_and_neither_order_nor_layout_matters() -> None:
    benchmark, manifest = load_benchmark("hmdb51"), hmdb51()
    one = ids(draw_shots(benchmark, manifest, 4, 1))
    assert one != ids(draw_shots(benchmark, manifest, 4, 2))
    assert ids(draw_shots(benchmark, manifest, 2, 1)) < one
    rows = list(manifest.rows())
    random.Random(0).shuffle(rows)
    shuffled = Manifest.of(rows, manifest.class_names, "/data", "hmdb51")
    assert ids(draw_shots(benchmark, shuffled, 4, 1)) == one
    deeper = draw_shots(benchmark, hmdb51(folder="deeper/"), 4, 1)
    assert {video.removeprefix("deeper/") for video in ids(deeper)} == one


def test_too_few_videos_and_benchmarks_without_training_are_named() -> None:
    manifest = hmdb51(videos=3)
    with pytest.raises(
        ManifestError, match=r'51 of 51 classes have fewer than 4 usable videos in train1, such as "brush hair" with 3;'
    ):
        draw_shots(load_benchmark("hmdb51"), manifest, 4, 1)
    broken = [dataclasses.replace(row, error="gone") if row.label_id == 7 else row for row in manifest.rows()]
    with pytest.raises(ManifestError, match=r'1 of 51 classes have fewer than 3 .* such as "dive" with 0'):
        draw_shots(load_benchmark("hmdb51"), Manifest.of(broken, manifest.class_names, "/data", "hmdb51"), 3, 1)
    for name in ("k600", "charades", "demo"):
        with pytest.raises(ConfigError, match=f"{name}: has no training videos to draw from"):
            draw_shots(load_benchmark(name), manifest, 2, 1)
    with pytest.raises(ConfigError, match='hmdb51-base2novel: no split "novel" with training videos; known: base'):
        draw_shots(load_benchmark("hmdb51-base2novel"), manifest, 2, 1, "novel")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ZAR_HOME", str(tmp_path))
    words = ["data", "shots", "hmdb51", "--shots", "2", "--seed", "3", "--split", "2"]
    assert main(words) == 1
    assert "hmdb51: no manifest at" in capsys.readouterr().err
    write_manifest(hmdb51(), load_benchmark("hmdb51").manifest_path())
    assert main([*words[:3], *words[3:5], "--split", "1", "--seed", "3"]) == 0
    assert "102 videos, 51 classes; zar train --dataset hmdb51-1-2shot-seed3" in capsys.readouterr().out
    assert len(read_manifest(resolve_dataset("hmdb51-1-2shot-seed3").path)) == 102
    assert main(words) == 1
    assert 'fewer than 2 usable videos in train2, such as "brush hair" with 1' in capsys.readouterr().err
    assert main([*words[:3], "--shots", "0"]) == 2


def test_the_benchmarks_are_listed_with_their_counts_and_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZAR_HOME", str(tmp_path))
    write_manifest(hmdb51(), load_benchmark("hmdb51").manifest_path())
    assert main(["data", "list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("hmdb51 HMDB51 1 51 1,530 1071 videos") for line in lines)
    assert "2 51 1,530" in lines
    assert any(line.startswith("k600-exclusive") and " 232 ? -" in line for line in lines)
    assert any("base 200 ~9,944 -" in line for line in lines)
    make = [line for line in lines if line.startswith("zar ")]
    assert f"zar data index k600 --root FOLDER --output {tmp_path}/datasets/k600/manifest.parquet" in make
    assert not any("hmdb51" in line for line in make)
    assert "zar eval --dataset demo" in make
    assert main(["data", "show", load_benchmark("hmdb51").manifest_path(), "--rows", "1"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("test1 51 51 51 0") for line in shown)
    assert any(line.startswith("train1 1020 1020 51 0") for line in shown)
