"""Files, folders, patterns and lists as `zar predict` takes them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from zar_ray.data.finding import expanded, find_videos, looks_like_videos
from zar_ray.errors import ConfigError


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = ("b.mp4", "a.MKV", "notes.txt", ".hidden.mp4", "deep/er/c.webm", "deep/[1].mp4", ".cache/d.mp4")
    for name in names:
        place = tmp_path / "clips" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return tmp_path / "clips"


def read(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


ALL = ("clips/a.MKV", "clips/b.mp4", "clips/deep/[1].mp4", "clips/deep/er/c.webm")


@pytest.mark.parametrize(
    ("word", "videos", "skipped"),
    [
        ("clips", ALL, "2 hidden, 1 no videos"),
        ("clips/", ALL, "2 hidden, 1 no videos"),
        ("clips/*", ALL, "1 no videos"),
        ("clips/**", ALL, "1 no videos"),
        ("clips/**/*.mp4", ("clips/b.mp4", "clips/deep/[1].mp4"), None),
        ("clips/?.[mM]*", ("clips/a.MKV", "clips/b.mp4"), None),
        ("clips/deep/[1].mp4", ("clips/deep/[1].mp4",), None),  # what exists is no pattern
        ("clips/notes.txt", ("clips/notes.txt",), None),  # what is named itself is tried
        ("clips/.hidden.mp4", ("clips/.hidden.mp4",), None),
        ("s3://bucket/a b.mp4", ("s3://bucket/a b.mp4",), None),
    ],
)
def test_a_word_is_a_file_a_folder_or_a_pattern(clips, word, videos, skipped):
    found = find_videos([word])
    assert (found.videos, found.skipped) == (videos, skipped)


def test_a_file_is_taken_once_in_the_order_of_its_first_name(clips):
    (clips / "link.mp4").symlink_to(clips / "b.mp4")  # whose views are others
    found = find_videos(["clips/deep", "clips/../clips/b.mp4", "clips", str(clips / "b.mp4")])
    assert found.videos == (*ALL[2:], "clips/../clips/b.mp4", "clips/a.MKV", "clips/link.mp4")
    assert found.repeated == 4
    assert "4 named more than once" in found.skipped


@pytest.mark.parametrize(
    "content", [b"clips/b.mp4\r\n\n  \nclips/deep\n", b"\xef\xbb\xbfclips/b.mp4\nclips/deep/*\nclips/deep"]
)
def test_a_list_holds_one_name_a_line(clips, monkeypatch, content):
    wanted = {"clips/b.mp4", "clips/deep/[1].mp4", "clips/deep/er/c.webm"}
    read(monkeypatch, content)
    assert set(find_videos(["-"]).videos) == wanted
    Path("list.txt").write_bytes(content)
    assert set(find_videos([], "list.txt").videos) == wanted
    read(monkeypatch, content)
    assert set(find_videos([], "-").videos) == wanted


def test_between_zero_bytes_a_name_may_hold_anything(clips, monkeypatch):
    odd = os.fsdecode(b"clips/line\nbreak \xff.mp4")
    Path(odd).touch()
    read(monkeypatch, os.fsencode(odd) + b"\0clips/b.mp4\0")
    assert find_videos(["-"]).videos == (odd, "clips/b.mp4")


@pytest.mark.parametrize(
    ("words", "listed", "said"),
    [
        (["clips/none.mp4"], None, "clips/none.mp4: no such file or folder"),
        (["clips/gone.mp4"], None, "clips/gone.mp4: no such file or folder (a link to nothing)"),
        (["clips/*.avi"], None, "as a pattern it matches no video"),
        (["clips/*.txt"], None, "as a pattern it matches no video; 1 files match that are none"),
        (["empty"], None, "empty: holds no videos (looked below it for .3gp"),
        (["empty/sub"], None, "1 other files, 1 hidden ones"),
        ([], "none.txt", "--list none.txt: cannot be read ("),
        ([], "clips", "--list clips: cannot be read"),
        ([], "blank.txt", "--list blank.txt: names no videos"),
        (["-"], None, "standard input: names no videos"),
    ],
)
def test_what_is_not_there_is_one_line(clips, monkeypatch, words, listed, said):
    read(monkeypatch, b"\n")
    (clips / "gone.mp4").symlink_to("nowhere.mp4")
    Path("empty").mkdir()
    if words == ["empty/sub"]:
        Path("empty/sub").mkdir()
        Path("empty/sub/readme.md").touch()
        Path("empty/sub/.x.mp4").touch()
    Path("blank.txt").write_text("\n \n")
    with pytest.raises(ConfigError) as raised:
        find_videos(words, listed)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_python_takes_folders_and_patterns_and_leaves_the_rest(clips):
    assert expanded("clips") == ALL
    assert expanded("clips/*.mp4") == ("clips/b.mp4",)
    assert [expanded(word) for word in ("none.mp4", "s3://b/c.mp4", "clips/b.mp4")] == [
        ("none.mp4",),
        ("s3://b/c.mp4",),
        ("clips/b.mp4",),
    ]


def test_a_folder_of_a_store_is_walked(clips):
    found = find_videos([f"file://{clips}/"])
    assert [Path(one).name for one in found.videos] == ["a.MKV", "b.mp4", "[1].mp4", "c.webm"]
    assert found.skipped == "2 hidden, 1 no videos"


@pytest.mark.parametrize("word", ["a.mp4", "x/*.bin", "-", "s3://b/c", "./clips", "*"])
def test_words_that_read_as_videos(clips, word):
    assert looks_like_videos(word)


@pytest.mark.parametrize("word", ["zar", "clips", "0.5", "1e-2", "a/missing", "ViT-B-16:openai"])
def test_words_that_do_not(clips, word):
    assert not looks_like_videos(word)
