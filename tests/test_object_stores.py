"""A folder in a bucket of a real S3 server is a folder as on a disk, also where the server fails now and then."""

import pickle

import pytest
from object_store import SECRET, object_store

from zar_ray.errors import RunError, StorageError
from zar_ray.storage import Storage

pytestmark = pytest.mark.process

_ODD = ["a b", "50% off #1", "ä日.mp4", "what?.txt", "x=1&region=2", "a+b", "%20"]


@pytest.fixture
def store(monkeypatch):
    with object_store(monkeypatch, share=0.15, seed=5) as store:
        store.bucket("zar-bucket")
        yield store


def test_files_of_any_name_are_written_read_listed_and_deleted_though_requests_fail(store):
    folder = Storage("s3://zar-bucket/some runs/100%/")
    for name in _ODD:
        folder.child("parts").write(name, name.encode() * 100)
    assert folder.names("parts") == sorted(_ODD)
    assert [folder.read(f"parts/{name}") for name in _ODD] == [name.encode() * 100 for name in _ODD]
    assert [one.name for one in folder.walk()] == sorted(f"parts/{name}" for name in _ODD)
    assert {one.size for one in folder.walk()} == {len(name.encode()) * 100 for name in _ODD}
    with folder.opened("parts/a b") as file:
        assert (file.seek(3), file.read(4), file.seek(-2, 2), file.read()) == (3, b"a ba", 298, b" b")
    assert folder.read_range("parts/a b", 298, 9) == b" b"
    assert folder.sizes("parts")["a b"] == 300
    assert pickle.loads(pickle.dumps(folder)).read("parts/a b") == b"a b" * 100
    assert [one and one.size for one in folder.states(["parts/a b", "nothing"])] == [300, None]
    folder.delete_many([f"parts/{name}" for name in (*_ODD[:3], "never was")])
    assert folder.names("parts") == sorted(_ODD[3:])
    folder.delete_folder()
    assert not folder.exists()
    assert sum(store.weather.faults.values()) > 3


def test_options_of_the_file_system_stay_with_what_is_below(store, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    folder = Storage(f"s3://zar-bucket/runs?endpoint_override={store.address}")
    folder.child("one").write("x", b"1")
    assert store.keys("zar-bucket") == ["runs/one/x"]
    assert folder.folders() == ["one"]
    where, name = Storage.of_file(folder.child("one").path("x"))
    assert (where.read(name), where.parent.location) == (b"1", folder.location)


def test_what_is_not_there_is_told_at_once_and_a_dead_server_after_some_patience(store, monkeypatch):
    store.weather.share = 0.0
    with pytest.raises(RunError, match="s3://zar-bucket/a/b: cannot be read") as caught:
        Storage("s3://zar-bucket/a").read("b")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(RunError, match=r"s3://no-such-bucket/b: cannot be written \(.*NO_SUCH_BUCKET"):
        Storage("s3://no-such-bucket").write("b", b"x")
    store.weather.share = 1.0
    monkeypatch.setenv("ZAR_STORAGE_PATIENCE", "0.2")
    with pytest.raises(StorageError, match=r"s3://zar-bucket/a/b: cannot be written \(.+\); tried \d+ times") as told:
        Storage("s3://zar-bucket/a").write("b", b"x")
    assert SECRET not in str(told.value)
