"""Which videos and frames a step sees is settled by the seed alone, whatever the workers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.data.index import index_folder
from zar_ray.training.samples import TrainingVideos, frames_drawn, generator, videos_of_step
from zar_ray.video.transforms import Preprocessing


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_sees_every_video_once_and_batches_are_full(videos, batch_size, first_step, seed):
    steps = [videos_of_step(step, batch_size, videos, seed) for step in range(first_step + 60)]
    assert all(len(step) == batch_size for step in steps)
    samples = [sample for step in steps for sample in step]
    for epoch in range(len(samples) // videos):
        seen = samples[epoch * videos : (epoch + 1) * videos]
        assert {e for e, _ in seen} == {epoch}
        assert sorted(number for _, number in seen) == list(range(videos))
    # A step asked for alone, as after a resumption, is the same step.
    assert videos_of_step(first_step, batch_size, videos, seed) == steps[first_step]


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


@pytest.mark.parametrize("cache_frames", [0, 6])
def test_workers_share_a_batch_without_changing_it(video_folder, cache_frames):
    videos = list(index_folder(video_folder).rows())

    def batches(rank, workers, first=0):
        source = TrainingVideos(videos, Preprocessing(32), frames=3, seed=1, cache_frames=cache_frames)
        try:
            return list(source.batches(range(first, 4), batch_size=8, rank=rank, workers=workers))
        finally:
            source.close()

    whole, shares = batches(0, 1), [batches(0, 2), batches(1, 2)]
    assert len(whole) == 4
    for step, batch in enumerate(whole):
        assert batch.pixels.shape == (8, 3, 3, 32, 32)
        for rank in range(2):
            assert torch.equal(batch.pixels[rank::2], shares[rank][step].pixels)
            assert torch.equal(batch.labels[rank::2], shares[rank][step].labels)
    resumed = batches(0, 1, first=2)
    assert torch.equal(resumed[0].pixels, whole[2].pixels)
    assert not torch.equal(whole[0].pixels, whole[1].pixels)
