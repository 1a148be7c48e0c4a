import itertools
from pathlib import Path

import pytest

from zar_ray.data.classes import class_list, known_class_lists, name_key
from zar_ray.data.datasets import known_benchmarks, load_benchmark
from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.protocols import whole_split
from zar_ray.errors import ConfigError, ManifestError

SIZES = {
    "charades": 157,
    "hmdb51": 51,
    "hmdb51_base": 26,
    "hmdb51_novel": 25,
    "kinetics400": 400,
    "kinetics400_base": 200,
    "kinetics400_novel": 200,
    "kinetics600": 600,
    "kinetics600_zero_shot_1": 160,
    "kinetics600_zero_shot_2": 160,
    "kinetics600_zero_shot_3": 160,
    "ssv2": 174,
    "ssv2_base": 87,
    "ssv2_novel": 87,
    "ucf101": 101,
    "ucf101_base": 51,
    "ucf101_novel": 50,
}
ZERO_SHOT = [f"kinetics600_zero_shot_{n}" for n in (1, 2, 3)]


def row(video_id: str, label: str | None, *splits: str, class_names: tuple[str, ...], **facts: object) -> VideoRow:
    return VideoRow(
        video_id,
        f"/data/{video_id}",
        None if label is None else class_names.index(label),
        label,
        splits[0] if len(splits) == 1 else "all",
        10,
        width=32,
        height=24,
        splits=splits if len(splits) > 1 else None,
        **facts,  # type: ignore[arg-type]
    )


def manifest_of(class_names: tuple[str, ...], *videos: tuple[str, str | None, tuple[str, ...]]) -> Manifest:
    rows = [row(name, label, *splits, class_names=class_names) for name, label, splits in videos]
    return Manifest.of(rows, class_names, "/data", "set")


def test_every_list_has_its_classes_and_tells_them_apart() -> None:
    assert {name: len(class_list(name)) for name in known_class_lists()} == SIZES
    for name in known_class_lists():
        names = class_list(name)
        assert len({name_key(n) for n in names}) == len(names), name
        assert all(n == n.strip() and n for n in names)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_lists_are_those_of_the_shared_folder(name: str, shared) -> None:
    places = [shared / "benchmarks" / folder / f"{name}.txt" for folder in ("classes", "splits")]
    (place,) = [place for place in places if place.exists()]
    assert list(class_list(name)) == place.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "kinetics400", "ssv2"])
def test_base_and_novel_halves_share_nothing_and_make_the_whole(name: str) -> None:
    base, novel = class_list(f"{name}_base"), class_list(f"{name}_novel")
    assert not set(base) & set(novel)
    assert {*base, *novel} == set(class_list(name))


def test_the_zero_shot_classes_are_no_classes_of_kinetics_400() -> None:
    known = {name_key(n) for n in class_list("kinetics400")}
    renamed = load_benchmark("k600-exclusive").renamed
    for name in ZERO_SHOT:
        names = class_list(name)
        assert set(names) <= set(class_list("kinetics600"))
        assert not {name_key(n) for n in names} & known
        assert not renamed.keys() & set(names)


def test_the_exclusive_list_has_232_names_of_which_12_are_renamed() -> None:
    benchmark = load_benchmark("k600-exclusive")
    names = benchmark.splits[0].class_names()
    assert len(names) == 232
    assert len(benchmark.renamed) == 12  # 232 less these is the pool of 220
    assert set(benchmark.renamed) <= set(names)
    assert set(benchmark.renamed.values()) <= set(class_list("kinetics400"))
    assert not {*itertools.chain.from_iterable(map(class_list, ZERO_SHOT))} - set(names)
    videos = manifest_of(class_list("kinetics600"), ("a", "dyeing hair", ("val",)), ("b", "yoga", ("val",)))
    (split,) = benchmark.evaluations(videos)
    assert split.renamed["dyeing hair"] == "dying hair"
    assert any("12 classes are Kinetics-400 classes under another name" in note for note in split.notes)
    assert split.video_ids == ("a",)  # yoga is a Kinetics-400 class


def test_a_video_is_in_as_many_splits_as_its_class_is_in() -> None:
    lists = [class_list(name) for name in ZERO_SHOT]
    everywhere = next(n for n in lists[0] if n in lists[1] and n in lists[2])
    once = next(n for n in lists[0] if n not in lists[1] and n not in lists[2])
    videos = manifest_of(
        class_list("kinetics600"),
        ("e.mp4", everywhere, ("val",)),
        ("o.mp4", once, ("train",)),
        *((f"{n}.mp4", names[n], ("test",)) for n, names in enumerate(lists)),
        ("k400.mp4", "yoga", ("val",)),
    )
    benchmark = load_benchmark("k600")
    splits = benchmark.evaluations(videos)
    assert [s.name for s in splits] == ["1", "2", "3"]
    for split, names in zip(splits, lists, strict=True):
        assert split.class_names == names
        labels = {i: label for i, (label,) in zip(split.video_ids, split.labels, strict=True)}
        assert names[labels["e.mp4"]] == everywhere
        assert ("o.mp4" in labels) == (split.name == "1")
        assert "k400.mp4" not in labels
    assert splits[0].notes[0] == f"k600, split 1: {len(splits[0])} videos here, 14,084 in the published split"
    only = load_benchmark("k600-val").evaluations(videos)
    assert all("o.mp4" not in s.video_ids and "e.mp4" in s.video_ids for s in only)
    assert [s.name for s in benchmark.evaluations(videos, "2")] == ["2"]


def test_imported_lists_say_which_videos_are_in_a_split() -> None:
    names = class_list(ZERO_SHOT[0])
    videos = manifest_of(
        class_list("kinetics600"),
        ("listed.mp4", names[0], ("train", "zero_shot_1")),
        ("other.mp4", names[0], ("train",)),
    )
    assert load_benchmark("k600").evaluations(videos, "1")[0].video_ids == ("listed.mp4",)
    with pytest.raises(
        ManifestError, match=r"k600, split 2: the manifest has no videos of zero_shot_2, only of train, z"
    ):
        load_benchmark("k600").evaluations(videos)


def test_the_published_label_files_swap_is_an_option_and_counted() -> None:
    names = class_list("hmdb51")
    videos = manifest_of(
        names,
        ("kick/1.avi", "kick", ("test1", "train2")),
        ("kick_ball/1.avi", "kick ball", ("test1", "test2")),
        ("sword/1.avi", "sword", ("train1", "test2")),
        ("wave/1.avi", "wave", ("test1", "test2", "test3")),
    )
    benchmark = load_benchmark("hmdb51")
    right = benchmark.evaluations(videos)
    legacy = benchmark.evaluations(videos, legacy_labels=True)
    assert [s.video_ids for s in right] == [
        ("kick/1.avi", "kick_ball/1.avi", "wave/1.avi"),
        ("kick_ball/1.avi", "sword/1.avi", "wave/1.avi"),
        ("wave/1.avi",),
    ]
    assert [s.relabelled for s in right] == [2, 2, 0]
    assert right[0].class_names == names
    assert right[0].labels == legacy[0].labels == ((20,), (21,), (50,))
    assert (legacy[0].class_names[20], legacy[0].class_names[21]) == ("kick ball", "kick")
    assert (legacy[0].class_names[44], legacy[0].class_names[45]) == ("sword exercise", "sword")
    assert "split 1: 2 of 3 videos are scored differently: uses the right names" in right[0].notes[-1]
    assert "uses the published label files' names" in legacy[0].notes[-1]
    few = right[0].restricted_to({"kick/1.avi", "sword/1.avi"})
    assert (few.video_ids, few.labels, few.relabelled, len(few)) == (("kick/1.avi",), ((20,),), 1, 1)
    base, novel = load_benchmark("hmdb51-base2novel").evaluations(videos, legacy_labels=True)
    assert (base.class_names[19], base.class_names[20]) == ("sword exercise", "sword")
    assert (novel.class_names[20], novel.class_names[21]) == ("kick ball", "kick")
    assert (base.video_ids, novel.video_ids) == (("wave/1.avi",), ("kick/1.avi", "kick_ball/1.avi"))


def test_class_names_may_be_spelled_as_folders_are() -> None:
    videos = manifest_of(("brush_hair", "kick_ball"), ("a", "brush_hair", ("test1",)), ("b", "kick_ball", ("test1",)))
    (split,) = load_benchmark("hmdb51").evaluations(videos, "1")
    assert [split.class_names[i] for (i,) in split.labels] == ["brush hair", "kick ball"]


def test_several_labels_a_video() -> None:
    names = class_list("charades")
    rows = [
        row("a.mp4", None, "test", class_names=names, labels=(names[3], names[1])),
        row("b.mp4", None, "test", class_names=names, labels=()),
        row("c.mp4", None, "train", class_names=names, labels=(names[0],)),
    ]
    (split,) = load_benchmark("charades").evaluations(Manifest.of(rows, names, "/data", "charades"))
    assert (split.video_ids, split.labels, split.multi_label) == (("a.mp4", "b.mp4"), ((1, 3), ()), True)


def test_what_a_manifest_lacks_is_named_with_the_way_out() -> None:
    videos = manifest_of(("wave",), ("a", "wave", ("all",)))
    with pytest.raises(
        ManifestError,
        match=r'^hmdb51, split 1: the manifest has no videos of test1, only of all; make one with "zar data index hm',
    ):
        load_benchmark("hmdb51").evaluations(videos)
    with pytest.raises(ConfigError, match=r'hmdb51: no split "4"; known: 1, 2, 3'):
        load_benchmark("hmdb51").evaluations(videos, "4")
    with pytest.raises(
        ManifestError, match=r'k400: the manifest\'s class "wave" is no class of Kinetics-400; make one'
    ):
        load_benchmark("k400").evaluations(videos)
    novel = manifest_of(class_list("kinetics400"), ("a", class_list("kinetics400_novel")[0], ("val",)))
    with pytest.raises(ManifestError, match="k400-base2novel, split base: the manifest has no video of its 200 cl"):
        load_benchmark("k400-base2novel").evaluations(novel)
    with pytest.raises(ManifestError, match="demo, split test: the manifest has no videos of test, only of all"):
        load_benchmark("demo").evaluations(videos)
    with pytest.raises(ConfigError, match='no class list "hmdb52"; did you mean "hmdb51"'):
        class_list("hmdb52")


def test_a_manifest_of_its_own_is_one_split_over_its_own_names() -> None:
    videos = manifest_of(("c", "C++"), ("a", "C++", ("val",)), ("b", "c", ("train",)), ("u", None, ("val",)))
    split = whole_split(videos)
    assert (split.name, split.class_names, split.video_ids) == ("all", ("c", "C++"), ("a", "b", "u"))
    assert split.labels == ((1,), (0,), ())
    assert whole_split(videos, "val").video_ids == ("a", "u")
    assert whole_split(videos, "val").notes == ("set, split val: 1 of the 2 classes have no video here",)
    with pytest.raises(ManifestError, match='set: no split "tst"'):
        whole_split(videos, "tst")


def test_counts_of_every_benchmark() -> None:
    counts = {n: [s.count for s in load_benchmark(n).splits] for n in known_benchmarks() if load_benchmark(n).data}
    assert counts == {
        "charades": [1863],
        "hmdb51": [1530] * 3,
        "hmdb51-base2novel": [780, 750],
        "hmdb51-full": [6766],
        "k400": [19877],
        "k400-base2novel": [9944, 9933],
        "k600": [14084, 13978, 14136],
        "k600-exclusive": [None],
        "k600-val": [7250] * 3,
        "ssv2": [24777],
        "ssv2-base2novel": [17562, 7215],
        "ucf101": [3783, 3734, 3696],
        "ucf101-base2novel": [2088, 1695],
        "ucf101-full": [13320],
    }


def test_the_documentation_has_every_benchmark_with_its_counts(repository: Path) -> None:
    lines = (repository / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    table = {cells[1].strip().strip("`"): line for line in lines if len(cells := line.split("|")) > 2}
    for name in known_benchmarks():
        benchmark = load_benchmark(name)
        if benchmark.data is None:
            continue
        for spec in benchmark.splits:
            assert spec.count is None or f"{spec.count:,}" in table[name], name
            assert str(len(spec.class_names())) in table[name], name
    section = "\n".join(lines)
    for new in load_benchmark("k600-exclusive").renamed:
        assert f'"{new}"' in " ".join(section.split())
