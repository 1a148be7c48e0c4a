"""Stored features are what was written, or they are not used; whatever happens to the store's files."""

import json
import multiprocessing
import os
import pickle
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.errors import RunError, VideoError
from zar_ray.evaluation.feature_store import (
    DamagedError,
    FeatureStore,
    ImageKey,
    Stored,
    VideoFacts,
    feature_space,
    image_keys,
)
from zar_ray.storage import Storage
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
    return FeatureStore(Storage(str(folder)), space)


@pytest.fixture
def store(tmp_path):
    return store_at(tmp_path / "store")


@pytest.fixture
def entry(store, tmp_path):
    """The one stored video's file."""
    write(store, KEYS, some_embeddings())
    return tmp_path / "store" / KEY / VIDEO[:2] / f"{VIDEO}.features"


def write(store, keys, embeddings, facts=FACTS, video=VIDEO):
    store.write(video, Stored(tuple(keys), embeddings, facts))


def assert_stored(found, embeddings, facts=FACTS):
    assert isinstance(found, Stored)
    assert found.facts == facts
    assert (found.embeddings.dtype, found.embeddings.shape) == (np.float32, embeddings.shape)
    assert found.embeddings.tobytes() == embeddings.tobytes()


def assert_damaged(store, video=VIDEO):
    with pytest.raises(DamagedError, match=video) as caught:
        store.read(video, KEYS)
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
    moved = tmp_path / "store" / other.key / VIDEO[:2] / entry.name
    moved.parent.mkdir(parents=True)
    moved.write_bytes(entry.read_bytes())
    assert_damaged(other)
    assert_stored(store.read(VIDEO, KEYS), some_embeddings())


def test_the_space_of_a_run_is_the_same_everywhere_and_names_the_decoders(tmp_path):
    space = feature_space("weights", "bf16", "auto", Preprocessing(224))
    assert space == feature_space("weights", "bf16", "auto", Preprocessing(224, short_side=256))
    assert space["pyav"][0].isdigit()
    assert store_at(tmp_path).key == KEY


def test_a_space_describes_itself(store, tmp_path):
    write(store, KEYS, some_embeddings())
    written = tmp_path / "store" / KEY / "space.json"
    assert json.loads(written.read_text()) == SPACE
    written.unlink()
    store.prepare()
    assert json.loads(written.read_text()) == SPACE


def test_an_entry_of_another_video_is_not_taken(store, entry):
    other = "ac" * 16
    target = entry.parent.parent / "ac" / f"{other}.features"
    target.parent.mkdir()
    target.write_bytes(entry.read_bytes())
    assert_damaged(store, other)


DAMAGE = {
    "empty": lambda entry: entry.write_bytes(b""),
    "cut off": lambda entry: entry.write_bytes(entry.read_bytes()[:-1]),
    "cut in the middle": lambda entry: entry.write_bytes(entry.read_bytes()[:900]),
    "not Parquet": lambda entry: entry.write_text("features\n" * 99),
    "zeros": lambda entry: entry.write_bytes(bytes(len(entry.read_bytes()))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_said_with_its_file_and_mended_by_the_next_write(store, entry, damage):
    DAMAGE[damage](entry)
    with pytest.raises(DamagedError, match=re.escape(str(entry))):
        store.read(VIDEO, KEYS)
    write(store, KEYS[:2], some_embeddings(2))
    assert_stored(store.read(VIDEO, KEYS[:2]), some_embeddings(2))
    assert store.read(VIDEO, KEYS) is None


def test_a_changed_byte_anywhere_is_found(store, entry):
    content = entry.read_bytes()
    for position in range(len(content)):
        # One of its bits or, now and then, all of them.
        changed = bytes([content[position] ^ (0xFF if position % 9 == 0 else 1 << position % 8)])
        entry.write_bytes(content[:position] + changed + content[position + 1 :])
        assert_damaged(store)
    entry.write_bytes(content)
    assert_stored(store.read(VIDEO, KEYS), some_embeddings())


def test_a_file_is_hashed_anew_only_when_it_changed(store, tmp_path, monkeypatch):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    os.utime(video, ns=(0, 1_000_000_001))
    first = store.content(video)
    assert (len(first.hash), first.stale) == (32, False)

    def fail(*_):
        raise AssertionError("the file is read")

    with monkeypatch.context() as patched:
        patched.setattr("hashlib.file_digest", fail)
        assert store.content(video) == first
        monkeypatch.chdir(tmp_path)
        assert store.content("a.mp4") == first
        os.utime(video, ns=(0, 1_000_000_002))
        with pytest.raises(AssertionError, match="is read"):
            store.content(video)
    assert store.content(video) == first

    video.write_bytes(b"two")
    os.utime(video, ns=(0, 1_000_000_003))
    second = store.content(video).hash
    assert second != first.hash
    video.write_bytes(b"longer")
    os.utime(video, ns=(0, 1_000_000_003))
    assert store.content(video).hash not in (first.hash, second)


def test_the_same_bytes_elsewhere_are_the_same_video(store, tmp_path):
    for name, content in (("a.mp4", b"one"), ("b.mp4", b"one"), (os.fsdecode(b"\xff.mp4"), b"one"), ("c.mp4", b"two")):
        (tmp_path / name).write_bytes(content)
    hashes = [store.content(path).hash for path in sorted(tmp_path.glob("*.mp4"))]
    assert len(hashes) == 4
    assert len(set(hashes)) == 2


def test_a_changed_file_with_stored_features_is_stale_once(store, tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    write(store, KEYS, some_embeddings(), video=store.content(video).hash)
    video.write_bytes(b"other")
    changed = store.content(video)
    assert changed.stale
    assert store.read(changed.hash, KEYS) is None
    assert not store.content(video).stale
    video.write_bytes(b"yet another")
    assert not store.content(video).stale


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"size": 3}', None])
def test_a_damaged_hash_is_taken_anew(store, tmp_path, damage):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    content = store.content(video)
    [cached] = (tmp_path / "store" / "hashes").glob("*/*.json")
    good = cached.read_text()
    cached.write_text(good.replace(content.hash, "../../x") if damage is None else damage)
    assert store.content(video) == content
    assert cached.read_text() == good


def test_a_video_that_cannot_be_read_is_its_own_failure(store, tmp_path):
    with pytest.raises(VideoError, match="no such file") as caught:
        store.content(tmp_path / "gone.mp4")
    assert caught.value.stage == "open"
    with pytest.raises(VideoError, match="cannot be read: Is a directory"):
        store.content(tmp_path)


def test_a_store_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    store = store_at(tmp_path / "file")
    for attempt in (store.prepare, lambda: write(store, KEYS, some_embeddings())):
        with pytest.raises(RunError, match="cannot be written") as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.process
def test_workers_that_write_at_once_leave_a_readable_entry(store, tmp_path):
    embeddings = some_embeddings()
    rounds, parts = 10, [slice(0, 3), slice(3, 6)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(write, store, KEYS[part], embeddings[part]) for _ in range(rounds) for part in parts]
        while not all(job.done() for job in jobs):
            store.read(VIDEO, KEYS[:6])
    for job in jobs:
        job.result()
    found = [store.read(VIDEO, KEYS[part]) for part in parts]
    # one writer may have lost the other's images, but its own are there, and all that is there is right
    assert any(found)
    for one, part in zip(found, parts, strict=True):
        if one is not None:
            assert_stored(one, embeddings[part])
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
