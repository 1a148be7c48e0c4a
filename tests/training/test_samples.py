"""Which videos and frames a step sees is settled by the seed alone, whatever the workers."""

import pickle
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.data.datasets import list_dataset
from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.probing import probe_listing
from zar_ray.errors import ConfigError
from zar_ray.training import videos
from zar_ray.training.job import settled
from zar_ray.training.options import TrainConfig
from zar_ray.training.samples import (
    Sample,
    SampleReader,
    decoded_batches,
    decoder_threads,
    frames_drawn,
    generator,
    micro_batches,
    patience,
    samples_of_step,
)
from zar_ray.training.videos import VideoTable, usable_videos
from zar_ray.video.sampling import drawn_frames
from zar_ray.video.transforms import Preprocessing

pytestmark = pytest.mark.usefixtures("probes_here")


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_sees_every_video_once_and_batches_are_full(videos, batch_size, first_step, seed):
    config = TrainConfig(batch_size=batch_size, seed=seed)
    steps = [samples_of_step(step, videos, config) for step in range(first_step + 60)]
    assert all(len(step) == batch_size for step in steps)
    samples = [sample for step in steps for sample in step]
    for epoch in range(len(samples) // videos):
        seen = samples[epoch * videos : (epoch + 1) * videos]
        assert {sample.epoch for sample in seen} == {epoch}
        assert sorted(sample.video for sample in seen) == list(range(videos))
    # A step asked for alone, as after a resumption, is the same step.
    assert samples_of_step(first_step, videos, config) == steps[first_step]


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(0, 4))
def test_workers_take_whole_micro_batches_and_every_one_once(videos, micro_batch, each_step, workers, first_step):
    steps = range(first_step, first_step + 3)
    config = TrainConfig(batch_size=micro_batch * each_step, micro_batch=micro_batch, seed=1)
    whole = list(micro_batches(steps, videos, config))
    shares = [list(micro_batches(steps, videos, config, rank, workers)) for rank in range(workers)]
    assert {(one.step, one.number): one for share in shares for one in share} == {
        (one.step, one.number): one for one in whole
    }
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= len(steps), "one of a step's more than another at most"
    for step in steps:
        samples = [sample for one in whole if one.step == step for sample in one.samples]
        assert samples == samples_of_step(step, videos, config)


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 2**32))
def test_frames_are_drawn_one_from_each_part(frames, count, seed):
    drawn = frames_drawn(frames, TrainConfig(frames=count), np.random.default_rng(seed))
    assert len(drawn) == count
    assert (np.diff(drawn) >= 0).all()
    for part, frame in enumerate(drawn):
        assert int(part * frames / count) <= frame <= min((part + 1) * frames / count, frames - 1)


@given(st.integers(1, 200), st.integers(1, 40), st.sampled_from(["segments", "ticks", "stride", "dense"]))
def test_other_ways_of_sampling_take_their_draws_from_the_samples_own(frames, count, sampling):
    config = TrainConfig(frames=count, sampling=sampling, stride=3)
    one, same = (frames_drawn(frames, config, np.random.default_rng(5)) for _ in range(2))
    again = np.random.default_rng(5)
    draw = lambda below: int(again.integers(below))  # noqa: E731
    assert one.tolist() == same.tolist() == drawn_frames(sampling, count, frames, draw, 3).tolist()


def test_generators_differ_by_key_and_not_by_run():
    assert generator(0, "order", 1).integers(2**60) == generator(0, "order", 1).integers(2**60)
    assert generator(0, "order", 1).integers(2**60) != generator(0, "order", 2).integers(2**60)


def reader(videos, **changes):
    return SampleReader(videos, Preprocessing(32), TrainConfig(**{"frames": 3, "seed": 1, **changes}))


@pytest.mark.parametrize("cache_frames", [0, 6])
def test_a_sample_depends_on_its_key_alone(video_folder, cache_frames):
    videos = list(probe_listing(list_dataset(video_folder)).rows())
    first, other = reader(videos, cache_frames=cache_frames), reader(videos, cache_frames=cache_frames)
    other.read(Sample(3, 4))
    pixels = first.read(Sample(1, 2))
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32, 3), np.uint8)
    assert np.array_equal(pixels, other.read(Sample(1, 2)))
    assert np.array_equal(pixels, first.read(Sample(1, 2)))
    assert not np.array_equal(pixels, first.read(Sample(2, 2)))
    assert not np.array_equal(pixels, reader(videos, cache_frames=cache_frames, seed=2).read(Sample(1, 2)))


def test_decoding_ahead_keeps_the_order(video_folder):
    videos = list(probe_listing(list_dataset(video_folder)).rows())
    source = reader(videos)
    wanted = list(micro_batches(range(2, 5), len(videos), TrainConfig(batch_size=8, micro_batch=2, seed=1)))
    with decoder_threads(reader(videos), threads=3) as submit:
        decoded = list(decoded_batches(wanted, submit))
    assert [which for which, _ in decoded] == wanted
    for which, pixels in decoded:
        assert np.array_equal(pixels.numpy(), np.stack([source.read(sample) for sample in which.samples]))


def test_decode_workers_whose_cpu_is_gone_are_not_waited_for_for_ever():
    batches = micro_batches(range(3), 9, TrainConfig(batch_size=2, micro_batch=2))
    with pytest.raises(TimeoutError, match="no video was decoded for 0 s: a decode worker waits for a CPU"):
        next(decoded_batches(batches, lambda sample: Future(), patience=0.05))
    assert patience(TrainConfig(decode_workers=2, decode_timeout=30)) == 150
    assert patience(TrainConfig()) is None


def test_a_table_in_rays_store_is_sent_as_a_reference(video_folder, monkeypatch):
    manifest = probe_listing(list_dataset(video_folder))
    store = {}
    monkeypatch.setattr(videos.ray, "put", lambda table: store.setdefault("there", table) and "there")
    monkeypatch.setattr(videos.ray, "get", store.__getitem__)
    own = VideoTable.of(manifest)
    shared = own.shared()
    assert len(pickle.dumps(shared)) < 300 < len(pickle.dumps(own))
    for table in (own, pickle.loads(pickle.dumps(own)), pickle.loads(pickle.dumps(shared))):
        assert [table[number] for number in range(len(table))] == list(manifest.rows())
    with pytest.raises(IndexError):
        own[len(own)]


def test_videos_of_a_split_keep_their_order_and_have_its_labels(video_folder):
    manifest = probe_listing(list_dataset(video_folder))
    rows = list(manifest.rows())
    chosen = VideoTable.of(manifest).labelled([(rows[7].video_id, 5), (rows[2].video_id, 0)])
    assert [(row.path, row.label_id) for row in map(chosen.__getitem__, range(2))] == [
        (rows[7].path, 5),
        (rows[2].path, 0),
    ]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_only_labelled_videos_that_can_be_read_are_trained_on(kinds):
    made = [
        VideoRow(str(n), f"/{n}", *((0, "a") if label else (None, None)), frames=1, width=1, height=1, error=error)
        for n, (label, broken) in enumerate(kinds)
        for error in ["broken" if broken else None]
    ]
    kept = usable_videos(Manifest.of(made, ["a"], "/", "made up"))
    assert [row.video_id for row in kept.rows()] == [str(n) for n, kind in enumerate(kinds) if kind == (True, False)]


@pytest.mark.parametrize("sampling", ["stride", "dense"])
def test_kept_frames_are_no_video_to_take_neighbours_of(sampling):
    config = TrainConfig(dataset="mine.parquet", output=Path("/o.safetensors"), sampling=sampling)
    assert settled(config).sampling == sampling
    with pytest.raises(
        ConfigError, match=f"--cache-frames 9: .* --sampling {sampling} takes neighbours; leave it away"
    ):
        settled(config.model_copy(update={"cache_frames": 9}))
    assert settled(config.model_copy(update={"cache_frames": 9, "sampling": "ticks"})).cache_frames == 9
