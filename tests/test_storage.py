"""Results are written whole or not at all, and a location means the same as a path and as a URI."""

import pytest

from zar_ray.errors import RunError
from zar_ray.storage import Storage, is_uri


@pytest.mark.parametrize("as_uri", [False, True])
def test_what_is_written_is_read_back(tmp_path, as_uri):
    storage = Storage(f"file://{tmp_path}/run" if as_uri else str(tmp_path / "run"))
    storage.write("parts/a.bin", b"one")
    storage.write("parts/a.bin", b"two")
    assert storage.read("parts/a.bin") == b"two"
    assert storage.names("parts") == ["a.bin"]
    assert storage.names() == []
    assert (tmp_path / "run" / "parts" / "a.bin").read_bytes() == b"two"


def test_a_half_written_file_is_never_listed(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.write("a", b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(RunError, match=r"a: cannot be written \(disk full\)"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_deleting_a_folder_leaves_its_neighbours(tmp_path):
    Storage(str(tmp_path / "a")).write("x", b"1")
    Storage(str(tmp_path / "ab")).write("x", b"1")
    Storage(str(tmp_path / "a")).delete_folder()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ab"]
    Storage(str(tmp_path / "never")).delete_folder()


def test_an_unknown_scheme_is_one_line():
    with pytest.raises(RunError, match=r"gopher://x: no such kind of place; known: abfs, .*, s3$") as caught:
        Storage("gopher://x")
    assert "\n" not in str(caught.value)


def test_only_schemes_make_uris():
    assert is_uri("s3://bucket/runs")
    assert not is_uri("runs")
    assert not is_uri("/data/a:b")


def test_what_cannot_be_deleted_is_one_line(tmp_path):
    (tmp_path / "run" / "parts").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(RunError, match=r"/run/parts: cannot be deleted \(.+\)$"):
        Storage(str(tmp_path / "run")).delete("parts")
    with pytest.raises(RunError, match=r"/file: cannot be deleted \(.+\)$"):
        Storage(str(tmp_path / "file")).delete_folder()
    assert (tmp_path / "run" / "parts").is_dir()
    assert (tmp_path / "file").read_bytes() == b"x"
