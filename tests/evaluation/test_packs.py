"""Many writers, readers, merges and deletions on one folder of features: nothing is lost, nothing is half."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from zar_ray.commands.main import main
from zar_ray.errors import ConfigError, RunError
from zar_ray.evaluation import packs
from zar_ray.evaluation.feature_folder import FeatureKeeping, prune, stores_in
from zar_ray.evaluation.feature_store import FeatureStore, ImageKey, Stored, VideoFacts, feature_space
from zar_ray.evaluation.spec import STATUS_SCHEMA
from zar_ray.storage import Storage
from zar_ray.video.files import VideoFile
from zar_ray.video.transforms import Preprocessing

SPACE = feature_space("0123456789ab", "bf16", "auto", Preprocessing(64))
FACTS = VideoFacts("pyav", None, 95, 320, 240)
KEYS = [ImageKey(frame, 64, 0, left, 64) for frame in (0, 7) for left in (0, 5, 90)]
DIMENSIONS = 4


class WholeObjects(Storage):
    """A folder where, as in a bucket, a file can only be put as a whole: nothing is renamed, and nothing appended."""

    def __init__(self, location):
        super().__init__(location)
        self._fs, self.is_local = SubTreeFileSystem("/", LocalFileSystem()), False


def video(number):
    return f"{number:032x}"


def features(number, keys):
    """What the images of a video are encoded as."""
    keys = tuple(keys)
    rows = [[number, key.frame, key.left, KEYS.index(key)] for key in keys]
    return Stored(keys, np.array(rows, np.float32).reshape(-1, DIMENSIONS), FACTS)


def store_at(folder, storage=Storage):
    return FeatureStore(storage(str(folder)), SPACE, "tiny")


def write(store, number, keys, facts=FACTS):
    made = features(number, keys)
    store.write([(video(number), None, Stored(made.keys, made.embeddings, facts))])


def assert_found(store, number, keys=KEYS):
    found = store.read(video(number), keys)
    assert found is not None
    assert found.embeddings.tobytes() == features(number, keys).embeddings.tobytes()


def names(folder):
    return sorted(path.name for path in Path(folder).rglob("*.pack"))


def _race(folders, part, barrier):
    """A worker that writes its part of every video's images, at the same moments as another."""
    stores = [store_at(folder, kind) for folder, kind in folders]
    for number in range(50):
        barrier.wait(60)
        for store in stores:
            write(store, number, KEYS[part])


@pytest.mark.process
def test_of_two_processes_that_write_one_videos_images_at_once_neither_loses_any(tmp_path):
    folders = [(tmp_path / "local", Storage), (tmp_path / "objects", WholeObjects)]
    for folder, kind in folders:
        store_at(folder, kind).prepare()
        (folder / store_at(folder).key).mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    writers = [spawn.Process(target=_race, args=(folders, part, barrier)) for part in (slice(0, 3), slice(2, None))]
    for writer in writers:
        writer.start()
    readers = [store_at(*one) for one in folders]
    while any(writer.is_alive() for writer in writers):
        for reader in readers:
            reader.read(video(0), KEYS)
        time.sleep(0.2)
    assert [writer.exitcode for writer in writers] == [0, 0]
    for folder, kind in folders:
        for store in (store_at(folder, kind), *readers[:1]):
            for number in range(50):
                assert_found(store, number)
        assert len(names(folder)) < 50
        assert not [path for path in folder.rglob(".*") if path.is_file()]


numbers, subsets = st.integers(0, 3), st.lists(st.sampled_from(KEYS), min_size=1, unique=True)
steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), numbers, subsets),
    st.tuples(st.just("together"), st.integers(0, 1), st.lists(st.tuples(numbers, subsets), min_size=1, max_size=4)),
    st.tuples(st.just("merge")),
    st.tuples(st.just("pin")),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, max_size=12))
def test_whatever_is_written_and_merged_in_any_order_is_read(chosen):
    with tempfile.TemporaryDirectory() as folder:
        writers, expected = [store_at(folder), store_at(folder)], {}
        reader, pinned = store_at(folder), None
        for name, *told in chosen:
            if name == "write":
                write(writers[told[0]], told[1], told[2])
                expected.setdefault(told[1], set()).update(told[2])
            elif name == "together":
                writers[told[0]].write([(video(number), None, features(number, keys)) for number, keys in told[1]])
                for number, keys in told[1]:
                    expected.setdefault(number, set()).update(keys)
            elif name == "merge":
                reader.merge(math.inf)
            else:
                pinned, seen = store_at(folder), {number: set(keys) for number, keys in expected.items()}
                pinned.pin()
                pinned = pickle.loads(pickle.dumps(pinned))
        for number in range(4):
            assert (reader.read(video(number), KEYS) is not None) == (expected.get(number) == set(KEYS))
            if keys := sorted(expected.get(number, ())):
                assert_found(reader, number, keys)
            if pinned is not None and (keys := sorted(seen.get(number, ()))):
                assert_found(pinned, number, keys)


def test_at_every_moment_of_a_merge_all_is_there_for_all_readers(tmp_path, monkeypatch):
    for number in range(4):
        write(store_at(tmp_path), number, KEYS)
    pinned, live, looks = store_at(tmp_path), store_at(tmp_path), []
    pinned.pin()

    def watched(name):
        real = getattr(Storage, name)

        def run(storage, *told):
            look_at_all()
            done = real(storage, *told)
            look_at_all()
            return done

        monkeypatch.setattr(Storage, name, run)

    def look_at_all():
        looks.append(None)
        for reader in (pinned, live, store_at(tmp_path)):
            monkeypatch.setattr("zar_ray.evaluation.feature_store._LOOK_AGAIN", 0)
            for number in range(4):
                assert_found(reader, number)

    for name in ("write", "delete"):
        watched(name)
    assert store_at(tmp_path).merge(math.inf) == 3
    assert len(looks) > 8
    assert len(names(tmp_path)) == 1


def test_two_that_merge_at_once_lose_nothing(tmp_path, monkeypatch):
    for number in range(4):
        write(store_at(tmp_path), number, KEYS)
    other, real = store_at(tmp_path), Storage.write

    def interposed(storage, *told):
        monkeypatch.setattr(Storage, "write", real)
        other.merge(math.inf)
        return real(storage, *told)

    monkeypatch.setattr(Storage, "write", interposed)
    store_at(tmp_path).merge(math.inf)
    for number in range(4):
        assert_found(store_at(tmp_path), number)
    assert len(names(tmp_path)) == 1


def test_a_merge_that_is_killed_before_it_deletes_costs_room_alone(tmp_path, monkeypatch):
    for number in range(3):
        write(store_at(tmp_path), number, KEYS)
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store_at(tmp_path).merge(math.inf)
    assert len(names(tmp_path)) == 4
    store_at(tmp_path).merge(math.inf)
    assert len(names(tmp_path)) == 1
    for number in range(3):
        assert_found(store_at(tmp_path), number)


def test_a_merge_drops_what_is_damaged_and_keeps_the_rest(tmp_path):
    for number in range(3):
        write(store_at(tmp_path), number, KEYS)
    first, second, _ = (path for path in sorted(tmp_path.rglob("*.pack"), key=lambda path: path.stat().st_mtime_ns))
    first.write_bytes(b"x" + first.read_bytes()[1:])
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    store_at(tmp_path).merge(math.inf)
    assert_found(store_at(tmp_path), 2)
    assert store_at(tmp_path).read(video(0), KEYS) is None
    assert store_at(tmp_path).read(video(1), KEYS) is None


def test_features_of_the_newest_way_of_decoding_alone_stay(tmp_path):
    store = store_at(tmp_path)
    write(store, 1, KEYS, FACTS._replace(decoder="decord"))
    write(store, 1, KEYS[:2])
    for _ in range(2):
        assert store.read(video(1), KEYS) is None
        assert_found(store, 1, KEYS[:2])
        store.merge(math.inf)


def test_files_are_still_known_after_a_merge(tmp_path):
    store, files = store_at(tmp_path), {}
    for number, content in enumerate((b"one", b"one", b"other")):
        (tmp_path / f"{number}.mp4").write_bytes(content)
        found = store.content(VideoFile(tmp_path / f"{number}.mp4"))
        files[number] = found.hash
        store.write([(found.hash, found.file, features(7, KEYS) if number != 1 else None)])
    store.merge(math.inf)
    for number, value in files.items():
        content = store.content(VideoFile(tmp_path / f"{number}.mp4"))
        assert (content.hash, content.known, content.stale) == (value, True, False)
    assert len(names(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bound", [1, 3000, 10**9])
def test_a_process_leaves_few_small_packs_however_many_it_writes(tmp_path, monkeypatch, bound):
    monkeypatch.setattr(packs, "PACK_BYTES", bound)
    store, written = store_at(tmp_path), 40
    for number in range(written):
        write(store, number, KEYS)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.pack")]
    assert sum(size < bound for size in sizes) <= 16
    assert len(sizes) <= max(16, written if bound == 1 else written // 2)
    for number in range(written):
        assert_found(store_at(tmp_path), number)


def test_merging_stops_at_its_limit_and_leaves_large_packs_alone(tmp_path, monkeypatch):
    for number in range(6):
        write(store_at(tmp_path), number, KEYS)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.pack")]
    assert store_at(tmp_path).merge(sum(sizes[:3]) + 9) == 2
    monkeypatch.setattr(packs, "PACK_BYTES", 10)
    assert store_at(tmp_path).merge(math.inf) == 0


def test_a_writer_whose_merge_fails_keeps_what_is_written(tmp_path, monkeypatch):
    store, real, fails = store_at(tmp_path), packs.Packs.add, itertools.count(1)

    def add(own, entries, *told):
        if len(entries) > 1:
            next(fails)
            raise RunError("the disk is full")
        return real(own, entries, *told)

    monkeypatch.setattr(packs.Packs, "add", add)
    for number in range(20):
        try:
            write(store, number, KEYS)
        except RunError:
            continue
    assert next(fails) == 2
    for number in range(20):
        assert_found(store_at(tmp_path), number)


# Eviction.


@pytest.fixture
def aged(tmp_path, monkeypatch):
    """Packs of videos 0 to 3, written 40, 30, 20 and 10 days ago, in two spaces."""
    other, real = FeatureStore(Storage(str(tmp_path)), {**SPACE, "model": "ba9876543210"}, "large"), time.time
    for number in range(4):
        monkeypatch.setattr(time, "time", lambda days=40 - 10 * number: real() - 86400 * days)
        write(store_at(tmp_path) if number % 2 == 0 else other, number, KEYS)
    monkeypatch.setattr(time, "time", real)
    for store in (store_at(tmp_path), other):
        store.prepare()
    return {0: store_at(tmp_path), 1: other, 2: store_at(tmp_path), 3: other}


def kept(aged):
    return {number for number, store in aged.items() if store.read(video(number), KEYS) is not None}


def test_what_was_not_used_for_longest_is_evicted_first_over_all_models(aged, tmp_path):
    sizes = [pack.size for store in (aged[0], aged[1]) for pack in store.packs.list()]
    assert kept(aged) == {0, 1, 2, 3}
    stores = stores_in(str(tmp_path))
    assert prune(stores, sum(sizes) - 1, dry_run=True).packs == 1
    assert kept(aged) == {0, 1, 2, 3}
    assert prune(stores, sum(sizes) - 1).packs == 1
    assert kept(aged) == {1, 2, 3}
    aged[1].packs.touch(aged[1].packs.list()[0].name)
    assert prune(stores, max(sizes)).entries == 2
    assert kept(aged) == {1}
    assert prune(stores, 0).left == 0
    assert not list(tmp_path.rglob("*.pack*"))


@pytest.mark.parametrize(("days", "left"), [(45, {0, 1, 2, 3}), (35, {1, 2, 3}), (15, {3}), (0, set())])
def test_what_is_older_is_evicted(aged, tmp_path, days, left):
    pruned = prune(stores_in(str(tmp_path)), older_than=days * 86400)
    assert kept(aged) == left
    assert pruned.packs == 4 - len(left)


def test_packs_of_about_the_same_age_are_merged_and_keep_it(tmp_path, monkeypatch):
    real = time.time
    for number, hours in enumerate((90, 80, 70, 5)):
        monkeypatch.setattr(time, "time", lambda hours=hours: real() - 3600 * hours)
        write(store_at(tmp_path), number, KEYS)
    monkeypatch.setattr(time, "time", real)
    store = store_at(tmp_path)
    assert store.merge(math.inf) == 2
    assert [round((time.time() - pack.used) / 3600) for pack in store.packs.list()] == [70, 5]
    assert prune([store], older_than=71 * 3600).packs == 0
    assert prune([store], older_than=69 * 3600).entries == 3
    assert_found(store, 3)


def test_a_run_notes_what_it_reads_and_keeps_within_the_bound(aged, tmp_path):
    said, store = [], aged[0]
    size = max(pack.size for pack in store.packs.list())
    with FeatureKeeping([store], 2 * size + 9, said.append) as keeping:
        read = store.read(video(0), KEYS)
        rows = [{"video_id": str(n), "failed": False, "feature_packs": list(read.packs)} for n in range(3)]
        for row in rows:
            keeping.see(pa.Table.from_pylist([row], schema=STATUS_SCHEMA))
    assert not said
    assert kept(aged) == {0, 3}


def test_a_bound_without_a_folder_is_refused_and_a_folder_that_breaks_is_told(aged, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--features-max-bytes: .* --features"):
        FeatureKeeping([None], 5, print)
    said = []
    with FeatureKeeping([aged[0]], 5, said.append):
        monkeypatch.setattr(Storage, "delete_many", lambda *_: (_ for _ in ()).throw(RunError("x: cannot be deleted")))
    assert said[-1] == "image features: x: cannot be deleted"


def test_videos_whose_features_are_stored_are_not_to_be_decoded(tmp_path):
    store, paths = store_at(tmp_path), [str(tmp_path / f"{n}.mp4") for n in range(3)]
    Path(paths[1]).write_bytes(b"x")
    content = store.content(VideoFile(paths[1]))
    store.write([(content.hash, content.file, features(1, KEYS))])
    videos = pa.table({"path": paths, "member": pa.nulls(3, pa.string())})
    assert FeatureKeeping([store], None, print).unstored(videos)["path"].to_pylist() == [paths[0], paths[2]]
    assert FeatureKeeping([store, None], None, print).unstored(videos) == videos
    assert FeatureKeeping([None], None, print).unstored(videos) == videos


# The commands.


def test_show_tells_models_videos_bytes_and_ages(aged, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["features", "show", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith(f"{tmp_path}: features of 4 videos, ")
    (tiny,) = (line.split() for line in lines if "tiny" in line)
    assert tiny[:6] == ["tiny", "0123456789ab", "bf16", "auto", "2", "2"]
    assert tiny[-4:] == ["40", "d", "20", "d"]


@pytest.mark.parametrize(
    ("words", "left", "said"),
    [
        (["--older-than", "25d"], {2, 3}, "deleted 2 entries in 2 files"),
        (["--older-than", "25d", "--dry-run"], {0, 1, 2, 3}, "would delete 2 entries in 2 files"),
        (["--max-bytes", "0.001kB"], set(), "0 stay"),
        (["--max-bytes", "1TiB"], {0, 1, 2, 3}, "0 files fewer"),
        (["--max-bytes", "9" * 400], {0, 1, 2, 3}, "0 files fewer"),
        ([], {0, 1, 2, 3}, "0 files fewer"),
    ],
)
def test_prune_deletes_what_it_is_told_to(aged, tmp_path, capsys, words, left, said):
    assert main(["features", "prune", str(tmp_path), *words]) == 0
    assert said in capsys.readouterr().out
    assert kept(aged) == left


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "FOLDER/none"], "none: no image features here"),
        (["prune", "FOLDER/none"], "none: no image features here"),
        (
            ["prune", "FOLDER", "--max-bytes", "12 apples"],
            "--max-bytes: ['12 apples']. '12 apples' is no number of bytes",
        ),
        (["prune", "FOLDER", "--older-than", "-3d"], "'-3d' is no number of seconds; units are s, m, h, d, w"),
        (["show", "nowhere://x"], "nowhere://x"),
        (["show"], "Missing from zar features show: STR"),
    ],
)
def test_mistakes_are_one_line(aged, tmp_path, capsys, words, said):
    assert main(["features", *(word.replace("FOLDER", str(tmp_path)) for word in words)]) in (1, 2)
    out, err = capsys.readouterr()
    assert said in err
    assert (out, err.count("\n")) == ("", 1)
    assert kept(aged) == {0, 1, 2, 3}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_description_is_one_line(aged, tmp_path, content):
    (tmp_path / aged[1].key / "space.json").write_text(content)
    with pytest.raises(RunError, match="damaged; delete it"):
        stores_in(str(tmp_path))
