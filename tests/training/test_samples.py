"""Which videos and frames a step sees is settled by the seed alone, whatever the workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.data.datasets import list_dataset
from zar_ray.data.probing import probe_listing
from zar_ray.training.options import TrainConfig
from zar_ray.training.samples import (
    Sample,
    SampleReader,
    decoded_batches,
    decoder_threads,
    frames_drawn,
    generator,
    micro_batches,
    samples_of_step,
)
from zar_ray.video.transforms import Preprocessing


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


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 4))
def test_workers_take_whole_micro_batches_and_every_one_once(videos, micro_batch, turns, workers, first_step):
    steps = range(first_step, first_step + 3)
    config = TrainConfig(batch_size=micro_batch * turns * workers, micro_batch=micro_batch, seed=1)
    whole = list(micro_batches(steps, videos, config))
    shares = [list(micro_batches(steps, videos, config, rank, workers)) for rank in range(workers)]
    assert {(one.step, one.number): one for share in shares for one in share} == {
        (one.step, one.number): one for one in whole
    }
    assert all(len(share) == len(steps) * turns for share in shares)
    for step in steps:
        samples = [sample for one in whole if one.step == step for sample in one.samples]
        assert samples == samples_of_step(step, videos, config)


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 2**32))
def test_frames_are_drawn_one_from_each_part(frames, count, seed):
    drawn = frames_drawn(frames, count, np.random.default_rng(seed))
    assert len(drawn) == count
    assert (np.diff(drawn) >= 0).all()
    for part, frame in enumerate(drawn):
        assert int(part * frames / count) <= frame <= min((part + 1) * frames / count, frames - 1)


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
