"""A URI names the object of the same name, whatever signs are in it, and never shows or takes a credential."""

import os
import re

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import PyFileSystem

from zar_ray import file_systems
from zar_ray.data.listing import list_folder
from zar_ray.errors import RunError, VideoError
from zar_ray.file_systems import Location
from zar_ray.storage import Storage
from zar_ray.video.files import VideoFile

_ODD = st.text(st.sampled_from("ab ä%#?&=+:@'\"é日/\\.~"), min_size=1, max_size=12)
_NAMES = _ODD.filter(lambda name: "//" not in name and name.strip("/") == name)
_OPTIONS = st.sampled_from(
    [
        "",
        "?endpoint_override=http://127.0.0.1:9000",
        "?region=eu-west-1&scheme=http",
        "?scheme=http&endpoint_override=localhost%3A9000&anonymous=true",
    ]
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(file_systems, "_s3_region", lambda bucket: "us-east-1")


@given(_NAMES, _NAMES, _OPTIONS, st.sampled_from(["", "/", "///"]))
def test_a_child_lies_below_whatever_the_names_hold(folder, name, options, slashes):
    place = Location.parse(f"s3://bucket/{folder}{slashes}{options}")
    child = place / name
    assert child.path == f"bucket/{folder}/{name}"
    assert str(child) == f"s3://bucket/{folder}/{name}{options}"
    assert Location.parse(str(child)) == child
    assert child.name == name.rpartition("/")[2]
    assert (place / "x").parent == place


@given(_NAMES, _OPTIONS)
def test_arrow_is_given_the_name_as_it_stands(name, options):
    system, path = Location.parse(f"s3://bucket/{name}{options}").open()
    assert (system.type_name, path) == ("s3", f"bucket/{name}")


@pytest.mark.parametrize("query", ["?", "?x=1", "?region", "?region=a&other=b", "?regions=a", "?region=a?"])
def test_a_question_mark_without_known_options_is_part_of_the_name(query):
    assert Location.parse(f"s3://bucket/what{query}").path == f"bucket/what{query}"


def test_a_bucket_is_a_folder():
    place = Location.parse("s3://bucket/?region=x")
    assert (place.path, str(place / "a")) == ("bucket", "s3://bucket/a?region=x")


def test_file_uris_are_decoded_and_local_paths_are_not(tmp_path):
    odd = tmp_path / "50% of #1 ä?region=x"
    assert Location.parse(odd.as_uri()).open()[1] == str(odd)
    assert Location.parse(str(odd)).open()[1] == str(odd)
    assert str(Location.parse(str(odd)) / "a") == f"{odd}/a"


@pytest.mark.parametrize(
    "location",
    [
        "s3://AKIAKEY:hunter2@bucket/runs",
        "gs://user:hunter2@bucket/runs",
        "http://me:hunter2@host/a.mp4",
        "https://hunter2@host/a.mp4",
        "https://host/a.mp4?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2",
        "https://host/a.mp4?sv=2022&sig=hunter2",
        "https://host/a.mp4?b=1&token=hunter2",
    ],
)
def test_credentials_are_refused_and_not_repeated(location):
    with pytest.raises(RunError) as caught:
        Location.parse(location)
    assert "hunter2" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["s3://", "s3:///", "gs://?region=x", "file://relative/x"])
def test_what_names_nothing_is_one_line(location):
    with pytest.raises(RunError, match=r"^\S+: (names no bucket or folder|must be absolute)"):
        Location.parse(location)


def test_azure_is_asked_for_the_account_that_is_named(monkeypatch):
    asked = []
    monkeypatch.setattr(file_systems, "_az_system", lambda account: asked.append(account) or "system")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "fromenvironment")
    assert Location.parse("az://videos/a b.mp4").open() == ("system", "videos/a b.mp4")
    for scheme in ("abfs", "abfss"):
        assert Location.parse(f"{scheme}://videos@mine.dfs.core.windows.net/x").open() == ("system", "videos/x")
    assert Location.parse("abfs://videos@mine").open() == ("system", "videos")
    assert asked == ["fromenvironment", "mine", "mine", "mine"]
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT")
    with pytest.raises(RunError, match=re.escape("az://videos: cannot be used (set AZURE_STORAGE_ACCOUNT)")):
        Location.parse("az://videos").open()


def test_what_fsspec_reads_is_listed_and_read_like_any_store(monkeypatch):
    memory = MemoryFileSystem()
    monkeypatch.setattr(file_systems, "_hf_system", lambda: PyFileSystem(file_systems._Fsspec(memory)))
    for name, content in (("walk/a #1.mp4", b"abcdef"), ("run/b.mp4", b"xyz"), (".git/c.mp4", b"")):
        memory.pipe_file(f"/datasets/me/videos/{name}", content)
    folder = Storage("hf://datasets/me/videos")
    assert [(one.name, one.size) for one in folder.walk()][1:] == [("run/b.mp4", 3), ("walk/a #1.mp4", 6)]
    assert folder.read_range("walk/a #1.mp4", 2, 3) == b"cde"
    found = [(row.video_id, row.path, row.class_name) for row in list_folder(folder.location).videos]
    assert found == [
        ("run/b.mp4", "hf://datasets/me/videos/run/b.mp4", "run"),
        ("walk/a #1.mp4", "hf://datasets/me/videos/walk/a #1.mp4", "walk"),
    ]
    with VideoFile(found[1][1]) as file, open(file, "rb") as stream:  # noqa: PTH123
        assert stream.read() == b"abcdef"
    with VideoFile("hf://datasets/me/videos/none.mp4") as file, pytest.raises(VideoError, match="no such file"):
        os.fspath(file)


def test_google_and_hugging_face_are_there():
    assert Location.parse("gs://bucket/a%20b#?.mp4?anonymous=true").open()[0].type_name == "gcs"
    assert Location.parse("gs://bucket/a%20b#?.mp4?anonymous=true").open()[1] == "bucket/a%20b#?.mp4"
    system, path = Location.parse("hf://datasets/me/videos/a b.mp4").open()
    assert (system.handler.fs.protocol, path) == ("hf", "datasets/me/videos/a b.mp4")
