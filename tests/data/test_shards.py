"""Videos in tar files: found with their labels, read by their bytes, and of a broken file one line."""

import io
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.data.listing import list_csv, list_folder
from zar_ray.data.manifest import read_manifest, write_manifest
from zar_ray.data.probing import probe_listing
from zar_ray.errors import ManifestError, VideoError
from zar_ray.video.decoding import decode_video
from zar_ray.video.files import VideoFile
from zar_ray.video.shards import read_shard

pytestmark = pytest.mark.usefixtures("probes_here")


def pack(place, files, **how):
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w", **how) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return place


@pytest.fixture(scope="module")
def video(make_video, tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("one") / "v.mp4", frames=17, seed=3)


_PARTS = st.text(st.sampled_from("ab .ä日#%é_"), min_size=1, max_size=60).filter(lambda part: part.strip(". ") == part)
_NAMES = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)


@settings(max_examples=20)
@given(
    st.dictionaries(_NAMES, st.binary(max_size=1500), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_every_member_is_found_at_its_bytes(tmp_path_factory, files, layout):
    place = pack(tmp_path_factory.mktemp("any") / "a.tar", files.items(), format=layout)
    shard = read_shard(str(place), lambda name: True)
    assert shard.error is None
    assert shard.notes == files
    packed = place.read_bytes()
    assert {one.name: packed[one.offset : one.offset + one.size] for one in shard.members} == files
    for one in shard.members:
        with VideoFile(place, one.name, one.offset, one.size) as known, VideoFile(place, one.name) as searched:
            for file in (known, searched):
                with open(file, "rb") as stream:  # noqa: PTH123
                    assert stream.read() == files[one.name]


@pytest.mark.parametrize(
    ("notes", "classes", "label"),
    [
        ({"cls": b"1\n"}, ("walk", "run"), "run"),
        ({"cls": b"1"}, None, "1"),
        ({"cls": b"jump high"}, None, "jump high"),
        ({"json": b'{"label": "swim"}', "cls": b"7"}, None, "swim"),
        ({"json": b'{"label": 0}'}, ("walk", "run"), "walk"),
        ({"json": b'{"caption": "a man"}', "txt": "fly ä".encode()}, None, "fly ä"),
        ({"json": b"not json", "txt": b"fly"}, None, "fly"),
        ({"txt": b"x" * 999}, None, "folder"),
        ({}, None, "folder"),
    ],
)
def test_a_label_stands_beside_a_video_or_is_its_folder(tmp_path, notes, classes, label):
    files = [(f"folder/000.{kind}", content) for kind, content in notes.items()]
    pack(tmp_path / "s" / "a.tar", [*files[:1], ("folder/000.mp4", b"x"), *files[1:], ("folder/000.jpg", b"y")])
    (row,) = list_folder(tmp_path / "s", classes).videos
    assert (row.class_name, row.video_id, row.member) == (label, "a.tar/folder/000.mp4", "folder/000.mp4")


def test_folders_around_a_shard_are_splits_and_classes(tmp_path):
    for split, name in (("train", "walk/a"), ("train", "b"), ("test", "walk/c")):
        inside = "run/1.mp4" if name == "b" else "1.mp4"
        pack(tmp_path / split / f"{name}.tar", [(inside, b"x"), ("._2.mp4", b"hidden")])
    found = {row.video_id: (row.split, row.class_name) for row in list_folder(tmp_path).videos}
    assert found == {
        "train/walk/a.tar/1.mp4": ("train", "walk"),
        "train/b.tar/run/1.mp4": ("train", "run"),
        "test/walk/c.tar/1.mp4": ("test", "walk"),
    }


def test_a_number_that_is_no_class_is_one_line(tmp_path):
    pack(tmp_path / "a.tar", [("1.mp4", b"x"), ("1.cls", b"2")])
    with pytest.raises(ManifestError, match=r"a\.tar, 1\.mp4: is of class 2, and 2 class names are given"):
        list_folder(tmp_path, ("walk", "run"))


def test_a_shard_is_indexed_and_decoded_as_its_videos_are(tmp_path, video, make_video):
    other = make_video(tmp_path / "plain" / "run" / "w.mp4", frames=9, seed=5)
    long = f"run/{'x' * 120}.mp4"
    pack(tmp_path / "shards" / "a.tar", [("walk/v.mp4", video.read_bytes()), (long, other.read_bytes())])
    manifest = probe_listing(list_folder(tmp_path / "shards"), workers=1)
    write_manifest(manifest, tmp_path / "m.parquet")
    rows = {row.member: row for row in read_manifest(tmp_path / "m.parquet").rows()}
    assert {name: (row.frames, row.class_name, row.error) for name, row in rows.items()} == {
        "walk/v.mp4": (17, "walk", None),
        long: (9, "run", None),
    }
    assert rows["walk/v.mp4"].size == video.stat().st_size

    class Plan:
        frames, short_side = np.array([0, 5, 8]), 32

    with rows[long].file() as file:
        assert (decode_video(file, lambda info: Plan).frames == decode_video(other, lambda info: Plan).frames).all()
        place = os.fspath(file)
    with rows[long].file() as again:
        assert str(again) == f"{tmp_path}/shards/a.tar#{long}"
    assert list((tmp_path / "shards").iterdir()) == [tmp_path / "shards" / "a.tar"]
    assert place.startswith("/proc/")


def test_broken_shards_are_one_line_each_and_the_rest_is_there(tmp_path, video):
    content = video.read_bytes()
    whole = pack(tmp_path / "s" / "whole.tar", [("1.mp4", content)]).read_bytes()
    two = pack(tmp_path / "s" / "cut.tar", [("1.mp4", content), ("2.mp4", content)])
    two.write_bytes(two.read_bytes()[: 512 + len(content)])
    pack(tmp_path / "s" / "odd.tar", [("1.mp4", content)])
    (tmp_path / "s" / "odd.tar").write_bytes(whole[: 512 - len(content) // -512 * 512] + b"garbage" * 200)
    (tmp_path / "s" / "junk.tar").write_bytes(b"junk" * 999)
    (tmp_path / "s" / "empty.tar").write_bytes(b"")
    (tmp_path / "s" / "packed.tar").write_bytes(b"\x1f\x8b" + b"x" * 999)
    manifest = probe_listing(list_folder(tmp_path / "s"), workers=1)
    errors = {row.video_id: row.error for row in manifest.rows() if row.error is not None}
    assert sorted(errors) == ["cut.tar", "empty.tar", "junk.tar", "odd.tar", "packed.tar"]
    assert all("tar file" in error or "packed with gzip" in error for error in errors.values())
    assert not [error for error in errors.values() if "\n" in error]
    assert sum(row.error is None for row in manifest.rows()) == 3


def test_a_list_names_members_and_finds_where_they_are(tmp_path, video):
    pack(tmp_path / "a.tar", [("x/1.mp4", video.read_bytes()), ("2.mp4", video.read_bytes())])
    (tmp_path / "list.csv").write_text("path,member,label\na.tar,x/1.mp4,walk\na.tar,2.mp4,run\na.tar,no.mp4,run\n")
    rows = {row.member: row for row in probe_listing(list_csv(tmp_path / "list.csv"), workers=1).rows()}
    assert rows["x/1.mp4"].video_id == "a.tar/x/1.mp4"
    assert (rows["x/1.mp4"].offset, rows["2.mp4"].frames) == (512, 17)
    assert rows["no.mp4"].error == "the tar file has no member no.mp4"
    (tmp_path / "list.csv").write_text("path,member\na.tar,2.mp4\na.tar,2.mp4\n")
    with pytest.raises(ManifestError, match=r"a\.tar, 2\.mp4, is already in"):
        list_csv(tmp_path / "list.csv")


def test_a_shard_that_was_written_anew_is_found_out(tmp_path, video):
    place = pack(tmp_path / "a.tar", [("1.mp4", video.read_bytes())])
    (member,) = read_shard(str(place)).members
    pack(place, [("0.txt", b"x"), ("1.mp4", video.read_bytes())])
    file = VideoFile(place, member.name, member.offset, member.size)
    with file, pytest.raises(VideoError, match="the tar file has changed; index the data set again"):
        os.fspath(file)
