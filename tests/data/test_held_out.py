"""Classes that are held out: which, and what becomes of their videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from zar_ray.data.held_out import held_out_classes, hold_out, plain_words
from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.options import DatasetOptions
from zar_ray.data.protocols import EvaluationSplit, whole_split
from zar_ray.errors import ConfigError

NAMES = ("archery", "Bowling", "cart wheel", "diving", "eating", "fencing", "golf", "hurling", "ironing", "judo")


def split_of(names: tuple[str, ...] = NAMES, each: int = 3) -> EvaluationSplit:
    rows = [
        VideoRow(f"{name}{number}.mp4", "/x", place, name, frames=9, width=8, height=8)
        for place, name in enumerate(names)
        for number in range(each)
    ]
    return whole_split(Manifest.of(rows, names, "/x", "set"))


def chosen(text: str, seed: int = 0, splits: tuple[EvaluationSplit, ...] = (split_of(),)) -> tuple[str, ...]:
    return held_out_classes(splits, DatasetOptions(unknown_classes=text, unknown_seed=seed))


@pytest.mark.parametrize(("text", "count"), [("20%", 2), ("0.3", 3), (".5", 5), ("1%", 1), ("80 %", 8)])
def test_a_share_is_drawn_by_its_seed(text, count):
    found = chosen(text)
    assert len(found) == count
    assert set(found) < set(NAMES)
    assert chosen(text) == found
    assert len({chosen(text, seed) for seed in range(9)}) > 1
    assert set(found) <= set(chosen("0.9"))


def test_names_are_found_as_they_are_spelled(tmp_path):
    assert chosen("bowling, CartWheel,judo") == ("Bowling", "cart wheel", "judo")
    file = tmp_path / "unknown.txt"
    file.write_text("judo\ngolf\n", encoding="utf-8")
    assert chosen(str(file)) == ("judo", "golf")
    assert held_out_classes((split_of(),), DatasetOptions()) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("archer", '"archer" is no class of set; did you mean "archery"?'),
        ("0", "is to be a share between 0 and 1"),
        ("100%", "is to be a share between 0 and 1"),
        ("nowhere.txt", "no such file of class names"),
    ],
)
def test_a_mistake_is_a_line(text, said):
    with pytest.raises(ConfigError) as caught:
        chosen(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_videos_stay_and_their_labels_name_what_was_held_out():
    whole = split_of(each=2)
    split = hold_out(whole, ("golf", "Bowling"))
    assert split.video_ids == whole.video_ids
    assert split.class_names == tuple(name for name in NAMES if name not in ("golf", "Bowling"))
    every = (*split.class_names, *split.held_out)
    named = {video: NAMES[ids[0]] for video, ids in zip(whole.video_ids, whole.labels, strict=True)}
    assert {video: every[ids[0]] for video, ids in zip(split.video_ids, split.labels, strict=True)} == named
    assert split.unknown == 4
    assert any("4 videos are unknown" in note and "16 have one of the 8 known classes" in note for note in split.notes)
    assert hold_out(whole, ()) is whole


def test_two_classes_must_be_left():
    with pytest.raises(ConfigError, match="leaves 1 of the 3 classes of set, split all"):
        hold_out(split_of(("a", "b", "c")), ("a", "c"))


def test_a_video_of_several_classes_is_refused():
    rows = [VideoRow("v.mp4", "/x", frames=9, width=8, height=8, labels=("a", "b"))]
    manifest = Manifest.of(rows, ("a", "b", "c"), "/x", "set")
    split = whole_split(manifest)
    with pytest.raises(ConfigError, match="may show several classes"):
        chosen("30%", splits=(EvaluationSplit(**{**vars(split), "multi_label": True}),))


def test_the_runs_name_says_what_is_held_out():
    def words(text: str | None, seed: int = 0) -> str:
        return plain_words(DatasetOptions(unknown_classes=text, unknown_seed=seed))

    assert words(None) == ""
    assert words("20%") == words("0.2") == "unknown0.2"
    assert words("20%", 3) == "unknown0.2seed3"
    assert words(str(Path("lists") / "far.txt")) == "unknown-far"
