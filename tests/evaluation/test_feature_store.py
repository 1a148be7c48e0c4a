"""Stored features are what was written, or they are not used; whatever happens to the store's files."""

import hashlib
import json
import os
import pickle
import re
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.errors import RunError, VideoError
from zar_ray.evaluation.feature_store import (
    FeatureStore,
    ImageKey,
    Stored,
    VideoFacts,
    feature_space,
    image_keys,
)
from zar_ray.evaluation.packs import RECORD, DamagedError
from zar_ray.storage import Storage
from zar_ray.video.files import VideoFile
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import Preprocessing

SPACE = {
    **{"model": "weights", "precision": "fp32", "decoder": "auto", "decord": "0.6.0", "pyav": "18.1.0"},
    **{"input_size": 224, "mean": [0.5, 0.25, 0.125], "std": [0.1, 0.2, 0.3], "interpolation": "bicubic"},
    **{"resize": "pil", "layout": 1},
}
KEY = "57d2d40997e5"
FACTS = VideoFacts("decord", "the end is cut off", 95, 320, 240)
VIDEO = "ab" * 16
KEYS = tuple(ImageKey(frame, 224, 0, left, 224) for frame in (0, 3, 94) for left in (0, 37, 74))


def some_embeddings(count=9, dimensions=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)


def store_at(folder, space=SPACE):
    return FeatureStore(Storage(str(folder)), space, "tiny")


@pytest.fixture
def store(tmp_path):
    return store_at(tmp_path / "store")


@pytest.fixture
def entry(store, tmp_path):
    """The one pack that is stored, of one video."""
    write(store, KEYS, some_embeddings())
    (pack,) = (tmp_path / "store" / KEY).glob("*.pack")
    return pack


def write(store, keys, embeddings, facts=FACTS, video=VIDEO, file=None):
    store.write([(video, file, Stored(tuple(keys), embeddings, facts))])


def assert_stored(found, embeddings, facts=FACTS):
    assert isinstance(found, Stored)
    assert found.facts == facts
    assert (found.embeddings.dtype, found.embeddings.shape) == (np.float32, embeddings.shape)
    assert found.embeddings.tobytes() == embeddings.tobytes()


def assert_damaged(store, what):
    with pytest.raises(DamagedError, match=re.escape(what)) as caught:
        store.read(VIDEO, KEYS)
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back_to_the_bit(store):
    embeddings = some_embeddings()
    embeddings[0, :4] = [-0.0, np.float32(1e-45), np.finfo(np.float32).max, np.pi]
    write(store, KEYS, embeddings)
    assert_stored(store.read(VIDEO, KEYS), embeddings)
    assert_stored(pickle.loads(pickle.dumps(store)).read(VIDEO, KEYS), embeddings)


frames = st.integers(0, 2**31 - 1)
pixels = st.integers(0, 4000)
some_keys = st.lists(st.builds(ImageKey, frames, pixels, pixels, pixels, pixels), max_size=12, unique=True)
floats = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_keys_are_found_in_any_order(data):
    keys = data.draw(some_keys)
    rows = st.lists(floats, min_size=2, max_size=2)
    values = data.draw(st.lists(rows, min_size=len(keys), max_size=len(keys)))
    embeddings = np.array(values, dtype=np.float32).reshape(-1, 2)
    wanted = data.draw(st.lists(st.sampled_from(range(len(keys))), max_size=15)) if keys else []
    with tempfile.TemporaryDirectory() as folder:
        store = store_at(folder)
        write(store, keys, embeddings)
        assert_stored(store.read(VIDEO, keys), embeddings)
        assert_stored(store.read(VIDEO, [keys[row] for row in wanted]), embeddings[wanted])


def test_the_images_of_a_smaller_plan_are_found_among_those_of_a_larger_one(store):
    def plan(**views):
        return plan_views("v.avi", 95, 240, 320, ViewConfig(**views), Preprocessing(224), seed=0)

    large, small = plan(), plan(rates=(1.0, 0.5), views_per_rate=2, crops=1)
    keys = image_keys(large)
    assert len(set(keys)) == len(large.images)
    frame, box = large.images[-1]
    crop = large.boxes[box]
    assert keys[-1] == ImageKey(int(large.frames[frame]), 224, crop.top, crop.left, crop.size)

    embeddings = some_embeddings(len(keys))
    write(store, keys, embeddings)
    rows = [keys.index(key) for key in image_keys(small)]
    assert 0 < len(rows) < len(keys)
    assert_stored(store.read(VIDEO, image_keys(small)), embeddings[rows])
    assert_stored(store.read(VIDEO, image_keys(small.evaluation_only())), embeddings[np.array(rows)[small.evaluation]])
    assert store.read(VIDEO, image_keys(plan(crops=5))) is None


def test_a_video_is_found_only_with_all_its_images(store):
    assert store.read(VIDEO, KEYS) is None
    write(store, KEYS[:4], some_embeddings(4))
    assert store.read(VIDEO, KEYS) is None
    assert store.read("cd" * 16, KEYS) is None


def test_writes_add_up_and_the_last_of_an_image_stands(store):
    first, second = some_embeddings(6, seed=1), some_embeddings(6, seed=2)
    write(store, KEYS[:6], first)
    write(store, KEYS[3:], second, FACTS._replace(warning=None))
    assert_stored(store.read(VIDEO, KEYS), np.concatenate([first[:3], second]))
    other = FACTS._replace(warning="the picture stands still")
    write(store, KEYS[:1], first[:1], other)
    assert_stored(store.read(VIDEO, KEYS), np.concatenate([first[:3], second]), other)


@pytest.mark.parametrize("change", [{"decoder": "pyav"}, {"frames": 94}, {"width": 318}, {"height": 238}])
def test_features_of_two_ways_of_decoding_are_not_mixed(store, change):
    facts = FACTS._replace(**change)
    write(store, KEYS, some_embeddings())
    write(store, KEYS[:2], some_embeddings(2, seed=1), facts)
    assert_stored(store.read(VIDEO, KEYS[:2]), some_embeddings(2, seed=1), facts)
    assert store.read(VIDEO, KEYS) is None


OTHER_SPACES = [
    {"model": "other"},
    {"precision": "bf16"},
    {"decoder": "pyav"},
    {"decord": "none"},
    {"pyav": "19.0.0"},
    {"input_size": 336},
    {"mean": [0.5, 0.25, 0.126]},
    {"std": [0.1, 0.2, 0.4]},
    {"interpolation": "bilinear"},
    {"resize": "torch 2.15.0"},
    {"layout": 2},
]


def test_every_part_of_a_space_is_tried_here():
    ours = feature_space("weights", "bf16", "auto", Preprocessing(224))
    assert [name for change in OTHER_SPACES for name in change] == list(SPACE) == list(ours)


@pytest.mark.parametrize("change", OTHER_SPACES, ids=lambda change: next(iter(change)))
def test_another_space_does_not_see_the_entry(store, entry, tmp_path, change):
    other = store_at(tmp_path / "store", {**SPACE, **change})
    assert other.read(VIDEO, KEYS) is None
    # nor does it take a file that was moved to where its own would be
    moved = tmp_path / "store" / other.key / entry.name
    moved.parent.mkdir(parents=True)
    moved.write_bytes(entry.read_bytes())
    assert_damaged(other, str(moved))
    assert_stored(store.read(VIDEO, KEYS), some_embeddings())


def test_the_space_of_a_run_is_the_same_everywhere_and_names_the_decoders(tmp_path):
    space = feature_space("weights", "bf16", "auto", Preprocessing(224))
    assert space == feature_space("weights", "bf16", "auto", Preprocessing(224, short_side=256))
    assert space["pyav"][0].isdigit()
    assert store_at(tmp_path).key == KEY


def test_a_space_describes_itself(store, tmp_path):
    store.prepare()
    written = tmp_path / "store" / KEY / "space.json"
    assert json.loads(written.read_text()) == {**SPACE, "called": "tiny"}


DAMAGE = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-1],
    "cut in the middle": lambda content: content[:900],
    "longer": lambda content: content + b"x",
    "not a pack": lambda content: b"features\n" * 99,
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_pack_that_is_damaged_is_as_if_it_were_not_there_and_is_said(store, entry, damage):
    entry.write_bytes(DAMAGE[damage](entry.read_bytes()))
    assert store.read(VIDEO, KEYS) is None
    (line,) = store.pin()
    assert str(entry) in line
    assert "\n" not in line
    mend = store_at(store.storage.location)
    write(mend, KEYS[:2], some_embeddings(2))
    assert_stored(mend.read(VIDEO, KEYS[:2]), some_embeddings(2))
    assert mend.read(VIDEO, KEYS) is None


def test_a_changed_byte_anywhere_is_found(store, entry):
    content = entry.read_bytes()
    for position in (*range(0, len(content), 17), *range(len(content) - RECORD.itemsize, len(content))):
        # One of its bits or, now and then, all of them.
        changed = bytes([content[position] ^ (0xFF if position % 9 == 0 else 1 << position % 8)])
        entry.write_bytes(content[:position] + changed + content[position + 1 :])
        fresh = store_at(store.storage.location)
        if position < len(content) - RECORD.itemsize:
            assert_damaged(fresh, str(entry))
        else:
            assert fresh.read(VIDEO, KEYS) is None
    entry.write_bytes(content)
    assert_stored(store.read(VIDEO, KEYS), some_embeddings())


def test_damage_after_the_index_was_read_is_found(store, entry):
    store.pin()
    entry.write_bytes(entry.read_bytes()[:500])
    assert_damaged(store, str(entry))


def keep(store, video):
    """Stores a file's features, as a run does; returns its content."""
    content = store.content(VideoFile(video))
    write(store, KEYS, some_embeddings(), video=content.hash, file=content.file)
    return content


def test_a_file_is_hashed_anew_only_when_it_changed(store, tmp_path, monkeypatch):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    os.utime(video, ns=(0, 1_000_000_001))
    first = keep(store, video)
    assert (len(first.hash), first.stale, first.known) == (32, False, False)

    def fail(*_):
        raise AssertionError("the file is read")

    with monkeypatch.context() as patched:
        patched.setattr("hashlib.file_digest", fail)
        assert store.content(VideoFile(video)) == first._replace(known=True)
        monkeypatch.chdir(tmp_path)
        assert store.content(VideoFile("a.mp4")) == first._replace(known=True)
        os.utime(video, ns=(0, 1_000_000_002))
        with pytest.raises(AssertionError, match="is read"):
            store.content(VideoFile(video))
    assert store.content(VideoFile(video)).hash == first.hash

    video.write_bytes(b"two")
    os.utime(video, ns=(0, 1_000_000_003))
    second = keep(store, video).hash
    assert second != first.hash
    video.write_bytes(b"longer")
    os.utime(video, ns=(0, 1_000_000_003))
    assert store.content(VideoFile(video)).hash not in (first.hash, second)


def test_a_file_that_is_written_to_while_it_is_hashed_has_no_state(store, tmp_path, monkeypatch):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    real = hashlib.file_digest

    def slow(stream, kind):
        found = real(stream, kind)
        video.write_bytes(b"three")
        return found

    monkeypatch.setattr("hashlib.file_digest", slow)
    assert store.content(VideoFile(video)).file is None


def test_files_that_features_are_stored_of_are_told_by_their_names(store, tmp_path):
    paths = [tmp_path / f"{name}.mp4" for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    keep(store, paths[1])
    assert store.has(map(VideoFile, paths)).tolist() == [False, True, False]
    assert store.has([]).tolist() == []


def test_the_same_bytes_elsewhere_are_the_same_video(store, tmp_path):
    for name, content in (("a.mp4", b"one"), ("b.mp4", b"one"), (os.fsdecode(b"\xff.mp4"), b"one"), ("c.mp4", b"two")):
        (tmp_path / name).write_bytes(content)
    hashes = [store.content(VideoFile(path)).hash for path in sorted(tmp_path.glob("*.mp4"))]
    assert len(hashes) == 4
    assert len(set(hashes)) == 2


def test_a_changed_file_with_stored_features_is_stale_until_they_are_computed(store, tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    keep(store, video)
    video.write_bytes(b"other")
    changed = store.content(VideoFile(video))
    assert changed.stale
    assert store.read(changed.hash, KEYS) is None
    keep(store, video)
    assert not store.content(VideoFile(video)).stale


def test_a_copy_that_was_hashed_once_is_not_read_again(store, tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).write_bytes(b"one")
    keep(store, tmp_path / "a")
    copy = store.content(VideoFile(tmp_path / "b"))
    assert not copy.known
    assert store.read(copy.hash, KEYS) is not None
    store.write([(copy.hash, copy.file, None)])
    monkeypatch.setattr("hashlib.file_digest", None)
    assert store.content(VideoFile(tmp_path / "b")) == copy._replace(known=True)
    assert store.read(copy.hash, KEYS) is not None


def test_what_another_store_has_hashed_is_not_read_again(store, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"one")
    first = store_at(tmp_path / "store", {**SPACE, "model": "other"}).content(VideoFile(tmp_path / "a"))
    monkeypatch.setattr("hashlib.file_digest", None)
    assert store.content(VideoFile(tmp_path / "a"), first) == first


def test_a_video_that_cannot_be_read_is_its_own_failure(store, tmp_path):
    with pytest.raises(VideoError, match="no such file") as caught:
        store.content(VideoFile(tmp_path / "gone.mp4"))
    assert caught.value.stage == "open"
    with pytest.raises(VideoError, match="cannot be read: Is a directory"):
        store.content(VideoFile(tmp_path))


def test_a_store_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    store = store_at(tmp_path / "file")
    for attempt in (store.prepare, lambda: write(store, KEYS, some_embeddings())):
        with pytest.raises(RunError, match="cannot be written") as caught:
            attempt()
        assert "\n" not in str(caught.value)
