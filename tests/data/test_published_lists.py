"""The lists that other repositories publish, imported with the counts that are known of them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from zar_ray.commands.main import main
from zar_ray.data.benchmarks.adapters import list_benchmark, list_published
from zar_ray.data.benchmarks.lists import read_labels, read_list, read_lists
from zar_ray.data.classes import class_list
from zar_ray.data.datasets import load_benchmark, resolve_dataset
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest
from zar_ray.errors import ConfigError, ManifestError
from zar_ray.options.layers import zar_home

pytestmark = pytest.mark.slow

Put = Callable[[Path], Path]
COUNTS = {
    **{f"hmdb_splits/val{n}.txt": ("hmdb51", 1530) for n in (1, 2, 3)},
    "ucf_splits/val1.txt": ("ucf101", 3783),
    "ucf_splits/val2.txt": ("ucf101", 3734),
    "ucf_splits/val3.txt": ("ucf101", 3696),
    "k400_splits/val.txt": ("kinetics400", 19877),
    "ssv2_splits/validation.txt": ("ssv2", 24777),
    "k600_splits/ZS_split1_K600_eval.txt": ("kinetics600_zero_shot_1", 14084),
    "k600_splits/ZS_split2_K600_eval.txt": ("kinetics600_zero_shot_2", 13978),
    "k600_splits/ZS_split3_K600_eval.txt": ("kinetics600_zero_shot_3", 14136),
}
for _short, _name, _base, _novel, _train in [
    ("hmdb", "hmdb51", 780, 750, 416),
    ("ucf", "ucf101", 2088, 1695, 816),
    ("k400", "kinetics400", 9944, 9933, 3200),
    ("ssv2", "ssv2", 17562, 7215, 1392),
]:
    _folder = f"base2novel_splits/{_short}_splits"
    COUNTS[f"{_folder}/base_val.txt"] = (f"{_name}_base", _base)
    COUNTS[f"{_folder}/novel_val.txt"] = (f"{_name}_novel", _novel)
    COUNTS |= {f"{_folder}/fs_base_s{seed}_train.txt": (f"{_name}_base", _train) for seed in (1, 2, 3)}
for _short, _name, _classes in [("hmdb", "hmdb51", 51), ("ucf", "ucf101", 101), ("ssv2", "ssv2", 174)]:
    COUNTS |= {f"{_short}_splits/train1_few_shot_{n}.txt": (_name, n * _classes) for n in (2, 4, 8, 16)}


@pytest.fixture
def lists(shared: Path) -> Path:
    return shared / "benchmarks" / "lists"


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_every_published_list_has_its_count(lists: Path) -> None:
    assert {path.relative_to(lists).as_posix() for path in lists.rglob("*.txt")} == COUNTS.keys()
    for place, (labels, count) in COUNTS.items():
        one = read_list(str(lists / place), labels)
        assert len(one.videos) == count, place
        used = Counter(entry.label_id for entry in one.videos)
        assert set(used) == set(range(len(one.class_names))), place
        if "fs_base" in place:
            assert set(used.values()) == {16}, place


def imported(data: str, specs: list[str], root: Path, name: str | None = None) -> Manifest:
    """The manifest that importing makes, files taken for good without opening them; one is really there."""
    lists = read_lists(specs, (), load_benchmark(name or data).splits)
    first = lists[0].videos[0].video_id
    (root / first).parent.mkdir(parents=True, exist_ok=True)
    (root / first).write_bytes(b"")
    for one in lists[1:]:  # a split of which nothing is there makes no rows
        (root / one.videos[-1].video_id).parent.mkdir(parents=True, exist_ok=True)
        (root / one.videos[-1].video_id).write_bytes(b"")
    listing, report = list_benchmark(data, root, lists=lists)
    assert not report.unused
    ids = {label: n for n, label in enumerate(listing.class_names)}
    rows = [
        VideoRow(v.video_id, v.path, ids[str(v.class_name)], v.class_name, v.split, error="unopened", splits=v.splits)
        for v in listing.videos
    ]
    return Manifest.of(rows, listing.class_names, listing.root, data)


def test_the_imported_k600_lists_are_the_protocol(lists: Path, tmp_path: Path) -> None:
    files = [str(lists / f"k600_splits/ZS_split{n}_K600_eval.txt") for n in (1, 2, 3)]
    for folder in ("train", "val", "test"):  # else the official split would count as not downloaded
        (tmp_path / folder).mkdir()
    manifest = imported("k600", files, tmp_path)
    assert len(manifest) == 19058  # each video once, however many splits it is in
    splits = load_benchmark("k600").evaluations(manifest)
    assert [len(s) for s in splits] == [14084, 13978, 14136]
    assert not any(s.notes for s in splits)
    for split, file in zip(splits, files, strict=True):
        one = read_list(file, f"kinetics600_zero_shot_{split.name}")
        assert dict(zip(split.video_ids, split.labels, strict=True)) == {e.video_id: (e.label_id,) for e in one.videos}


@pytest.mark.parametrize(
    ("data", "name", "places"),
    [
        ("hmdb51", "hmdb51", [f"hmdb_splits/val{n}.txt" for n in (1, 2, 3)]),
        ("ucf101", "ucf101", [f"ucf_splits/val{n}.txt" for n in (1, 2, 3)]),
        ("k400", "k400", ["k400_splits/val.txt"]),
        ("ssv2", "ssv2", ["ssv2_splits/validation.txt"]),
        ("hmdb51", "hmdb51-base2novel", [f"base2novel_splits/hmdb_splits/{n}_val.txt" for n in ("base", "novel")]),
        ("ucf101", "ucf101-base2novel", [f"base2novel_splits/ucf_splits/{n}_val.txt" for n in ("base", "novel")]),
    ],
)
def test_imported_lists_fill_a_benchmarks_splits(
    data: str, name: str, places: list[str], lists: Path, tmp_path: Path
) -> None:
    manifest = imported(data, [str(lists / place) for place in places], tmp_path, name)
    benchmark = load_benchmark(name)
    splits = benchmark.evaluations(manifest)
    assert [len(s) for s in splits] == [spec.count for spec in benchmark.splits]
    assert benchmark.videos == len(manifest)
    for split, place in zip(splits, places, strict=True):
        one = read_list(str(lists / place), COUNTS[place][0])
        assert dict(zip(split.video_ids, split.labels, strict=True)) == {e.video_id: (e.label_id,) for e in one.videos}
    if data == "hmdb51":
        assert [s.relabelled for s in splits] == ([120] * 3 if name == "hmdb51" else [60, 60])


def test_a_list_alone_becomes_a_dataset_that_eval_finds(
    tmp_path: Path, put_video: Put, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZAR_HOME", str(tmp_path / "home"))
    put_video(tmp_path / "videos" / "run" / "a b.mp4")
    put_video(tmp_path / "videos" / "jump" / "c.mkv")
    write(tmp_path / "mine.txt", "a b.mp4 1", "deep/c.mp4, 0", "gone.mp4\t1")
    write(tmp_path / "names.csv", "id,name", '0,"jump, high"', "1,run")
    words = ["--list", str(tmp_path / "mine.txt"), "--labels", str(tmp_path / "names.csv"), "--workers", "1"]
    assert main(["data", "index", *words, "--root", str(tmp_path / "videos")]) == 0
    assert "mine: 3 videos, 1 missing (kept, with an error each)\n  run: 1 missing\n" in capsys.readouterr().out
    source = resolve_dataset("mine")
    assert source.path == str(zar_home() / "datasets" / "mine" / "manifest.parquet")
    manifest = read_manifest(source.path)
    assert manifest.class_names == ("jump, high", "run")
    assert {r.video_id: (r.class_name, r.memberships, r.error) for r in manifest.rows()} == {
        "gone.mp4": ("run", ("mine",), "no such file"),
        "jump/c.mkv": ("jump, high", ("mine",), None),
        "run/a b.mp4": ("run", ("mine",), None),
    }


def test_several_lists_make_several_splits(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / "v" / f"{name}.mp4")
    one, two = write(tmp_path / "one.txt", "a.mp4 0", "b.mp4 1"), write(tmp_path / "two.txt", "b.mp4 0", "c.mp4 1")
    names = write(tmp_path / "x.txt", "jump", "run"), write(tmp_path / "y.txt", "run", "walk")
    given = read_lists([f"train={one}", str(two)], [str(n) for n in names])
    listing, _ = list_published("mine", tmp_path / "v", given)
    assert listing.class_names == ("jump", "run", "walk")
    assert {v.video_id: (v.class_name, v.splits) for v in listing.videos} == {
        "a.mp4": ("jump", ("train",)),
        "b.mp4": ("run", ("train", "two")),
        "c.mp4": ("walk", ("two",)),
    }
    with pytest.raises(
        ManifestError, match=r'two\.txt, line 1: calls the video "jump", which is "run" elsewhere; "zar'
    ):
        list_published("mine", tmp_path / "v", read_lists([str(one), str(two)], [str(names[0])]))


def test_names_that_differ_by_punctuation_alone_stay_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4"), write(tmp_path / "b.mp4")
    file, names = write(tmp_path / "l.txt", "a.mp4 0", "b.mp4 1"), write(tmp_path / "names.txt", "C", "C++")
    listing, _ = list_published("mine", tmp_path, read_lists([str(file)], [str(names)]))
    assert [video.class_name for video in listing.videos] == ["C", "C++"]


def test_files_of_one_name_in_several_folders_are_several_videos(tmp_path: Path) -> None:
    for place in ("jump/1.mp4", "run/1.mp4", "run/2.mp4"):
        write(tmp_path / place)
    file = write(tmp_path / "l.txt", "jump/1.mp4 0", "", "run/1.mp4 1", "run/2.mp4 1")
    names = str(write(tmp_path / "names.txt", "jump", "run"))
    listing, report = list_published("mine", tmp_path, read_lists([str(file)], [names]))
    assert {video.video_id: video.class_name for video in listing.videos} == {
        "jump/1.mp4": "jump",
        "run/1.mp4": "run",
        "run/2.mp4": "run",
    }
    assert not report.missing
    write(file, "jump/1.mp4 0", "", "run/1.mp4 1", "jump/1.avi 0")
    with pytest.raises(ManifestError, match=r"l\.txt, line 4: jump/1\.avi is already in line 1"):
        list_published("mine", tmp_path, read_lists([str(file)], [names]))


def test_a_published_list_adds_to_official_annotations(tmp_path: Path) -> None:
    first = class_list("kinetics600_zero_shot_1")[0]
    header = "label,youtube_id,time_start,time_end,split"
    write(tmp_path / "train.csv", header, f"{first},aaaaaaaaaaa,0,10,train", f"{first},bbbbbbbbbbb,0,10,train")
    for video in ("aaaaaaaaaaa", "bbbbbbbbbbb"):
        write(tmp_path / "train" / f"{video}_000000_000010.mp4")
    file = write(tmp_path / "zs1.txt", "train/aaaaaaaaaaa_000000_000010.mp4 0")
    given = read_lists([f"1={file}"], (), load_benchmark("k600").splits)
    listing, report = list_benchmark("k600", tmp_path, lists=given)
    assert {v.path[-25:-18]: v.splits for v in listing.videos} == {
        "aaaaaaa": ("train", "zero_shot_1"),
        "bbbbbbb": None,
    }
    assert report.sources == ("train.csv", "zs1.txt")


POINTER = "version https://git-lfs.github.com/spec/v1"


@pytest.mark.parametrize(
    ("lines", "labels", "complaint"),
    [
        (["a.mp4 0", "a.mp4"], ["x"], 'list.txt, line 2: must be a path and a label\'s number, not "a.mp4"'),
        (["a.mp4 1"], ["x"], "list.txt, line 1: has label 1, and "),
        ([f"a.mp4 {'9' * 5000}"], ["x"], "list.txt, line 1: must be a path and a label's number"),
        (["a.mp4 -1"], ["x"], "line 1: has label -1"),
        (["a 1.mp4 0", "a.mp4 1 0"], ["x", "y"], 'line 2: "a.mp4 1 0" has several numbers after the path'),
        (["a.mp4,1,0"], ["x", "y"], "has several numbers after the path"),
        (["a.mp4\t1, 0"], ["x", "y"], "has several numbers after the path"),
        (["a.mp4 0;1 0"], ["x", "y"], "has several numbers after the path"),
        (["a.mp4 0.5 0"], ["x", "y"], "has several numbers after the path"),
        (["frames/a 300 0"], ["x", "y"], "has several numbers after the path"),
        ([POINTER, "a.mp4 0"], ["x"], "list.txt: is a Git LFS pointer"),
        (["<!DOCTYPE html>"], ["x"], "list.txt: is a web page"),
        (["a.mp4 0"], [POINTER, "oid sha256:1"], "names.txt: is a Git LFS pointer"),
        ([], ["x"], "list.txt: lists no videos"),
        (["a.mp4 0"], ["x", "x"], 'names.txt: "x" is both class name 1 and class name 2'),
        (["a.mp4 0"], [], "names.txt: no class names"),
        (["a.mp4 0"], ["id,name", "1,x"], "names.txt, line 2: has the id 1, expected 0"),
    ],
)
def test_wrong_lists_and_labels_are_answered_with_the_line(
    lines: list[str], labels: list[str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError) as caught:
        read_list(str(write(tmp_path / "list.txt", *lines)), str(write(tmp_path / "names.txt", *labels)))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_video_listed_twice_and_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    file = write(tmp_path / "list.txt", "a.mp4 0", "a.avi 0")
    names = write(tmp_path / "names.txt", "x")
    with pytest.raises(ManifestError, match=r"list\.txt, line 2: a\.avi is already in line 1"):
        list_published("mine", tmp_path, read_lists([str(file)], [str(names)]))
    with pytest.raises(ConfigError, match=r"--labels: 2 given for 3 lists; give one for all, or one each"):
        read_lists([str(file)] * 3, [str(names)] * 2)
    write(file, "a.mp4 0")
    given = read_lists([f"1={file}"], [str(names)], load_benchmark("k600").splits)
    with pytest.raises(ManifestError, match=r'class "x" of .*names\.txt is no class of k600'):
        list_benchmark("k600", tmp_path, lists=given)
    assert read_labels("hmdb51_base")[0] == "pour"
