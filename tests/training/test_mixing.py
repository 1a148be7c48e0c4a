"""Mixed videos and soft targets: a micro-batch's targets say what its pixels show."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from zar_ray.training.augmentation import mix
from zar_ray.training.options import AugmentConfig

alphas = st.sampled_from([0.0, 0.1, 0.8, 1.0, 5.0])
options_drawn = st.builds(
    AugmentConfig, mixup=alphas, cutmix=alphas, cutmix_share=st.floats(0, 1), label_smoothing=st.floats(0, 0.9)
)
seeds = st.integers(0, 9999)


def numbered(videos, size=(20, 28)):
    """Videos whose every pixel is the video's number, each of a class of its own."""
    pixels = torch.arange(videos, dtype=torch.float32).view(-1, 1, 1, 1, 1).expand(videos, 2, 3, *size)
    return pixels.clone(), torch.arange(videos)


@given(st.integers(1, 6), st.integers(1, 9), options_drawn, seeds)
def test_every_target_is_a_distribution(videos, classes, options, seed):
    pixels = torch.zeros(videos, 1, 3, 8, 8)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, videos))
    mixed, targets = mix(pixels, labels, classes, options, np.random.default_rng(seed))
    assert mixed.shape == pixels.shape
    assert mixed.dtype == targets.dtype == torch.float32
    assert targets.shape == (videos, classes)
    assert (targets >= 0).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(videos))


@given(options_drawn, seeds)
def test_the_generator_settles_everything_and_nothing_else_does(options, seed):
    pixels, labels = numbered(5)
    before = pixels.clone()
    results = []
    for other in (1, 2):
        torch.manual_seed(other)
        np.random.seed(other)
        state = torch.get_rng_state()
        results.append(mix(pixels, labels, 5, options, np.random.default_rng(seed)))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(pixels, before)


def test_without_options_nothing_is_done_nor_drawn():
    pixels, labels = numbered(4)
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    mixed, targets = mix(pixels, labels, 6, AugmentConfig(), rng)
    assert mixed is pixels
    assert torch.equal(targets, torch.eye(6)[:4])
    assert rng.bit_generator.state == state


@given(st.floats(0, 0.9), st.integers(2, 8))
def test_label_smoothing_is_pytorchs(share, classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, classes, generator=generator)
    labels = torch.tensor([0, 1, 1, 0])
    options = AugmentConfig(label_smoothing=share)
    _, targets = mix(torch.zeros(4, 1, 3, 2, 2), labels, classes, options, np.random.default_rng(0))
    ours, theirs = cross_entropy(logits, targets), cross_entropy(logits, labels, label_smoothing=share)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@given(st.integers(2, 6), seeds)
def test_mixups_targets_are_the_shares_of_its_pixels(videos, seed):
    pixels, labels = numbered(videos)
    mixed, targets = mix(pixels, labels, videos, AugmentConfig(mixup=0.8), np.random.default_rng(seed))
    # A pixel is the mean of the numbers of the two videos in it, by their shares.
    shown = targets @ torch.arange(videos, dtype=torch.float32)
    torch.testing.assert_close(mixed, shown.view(-1, 1, 1, 1, 1).expand_as(mixed), atol=1e-5, rtol=1e-5)
    # One lambda for all: the share that videos with a partner keep.
    kept = {round(float(targets[i, i]), 5) for i in range(videos) if targets[i, i] < 1}
    assert len(kept) <= 1


@given(st.integers(2, 6), st.sampled_from([(20, 28), (16, 16), (7, 5)]), seeds)
def test_cutmixs_targets_are_the_areas_of_its_pixels(videos, size, seed):
    """Also where the rectangle was cut off at the frame's edge."""
    pixels, labels = numbered(videos, size)
    mixed, targets = mix(pixels, labels, videos, AugmentConfig(cutmix=1.0), np.random.default_rng(seed))
    for video in range(videos):
        for other in range(videos):
            area = (mixed[video] == other).float().mean().item()
            assert targets[video, other].item() == pytest.approx(area, abs=1e-6)


@given(seeds)
def test_cutmix_replaces_one_rectangle_in_all_frames_and_videos(seed):
    pixels, labels = numbered(4)
    mixed, _ = mix(pixels, labels, 4, AugmentConfig(cutmix=1.0), np.random.default_rng(seed))
    foreign = mixed != pixels
    assume(foreign.any())
    patterns = [one for one in foreign if one.any()]
    first = patterns[0][0, 0]
    assert all(torch.equal(one, first.expand_as(one)) for one in patterns)
    rows, columns = first.any(dim=1).nonzero().flatten(), first.any(dim=0).nonzero().flatten()
    assert first[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert first.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)


def kinds(options, micro_batches=600):
    """How many of some micro-batches were cut, and how many blended."""
    cut = blended = 0
    for seed in range(micro_batches):
        pixels, labels = numbered(2, (8, 8))
        mixed, _ = mix(pixels, labels, 2, options, np.random.default_rng(seed))
        if (mixed != mixed.round()).any():
            blended += 1
        elif (mixed != pixels).any():
            cut += 1
    return cut, blended


def test_one_kind_alone_is_all_there_is():
    cut, blended = kinds(AugmentConfig(mixup=1.0), 100)
    assert cut == 0 < blended
    cut, blended = kinds(AugmentConfig(cutmix=1.0), 100)
    assert blended == 0 < cut


def test_cutmix_takes_its_share_of_the_micro_batches():
    cut, blended = kinds(AugmentConfig(mixup=1.0, cutmix=1.0, cutmix_share=0.0))
    assert cut == 0
    # Half of them have videos that are their own partners, and rectangles may be empty.
    mixups = blended
    cut, blended = kinds(AugmentConfig(mixup=1.0, cutmix=1.0, cutmix_share=0.75))
    assert blended == pytest.approx(mixups / 4, rel=0.3)
    assert cut > blended


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_lambda_has_the_spread_of_its_beta_distribution(alpha):
    kept = []
    for seed in range(1500):
        _, targets = mix(*numbered(2, (2, 2)), 2, AugmentConfig(mixup=alpha), np.random.default_rng(seed))
        if targets[0, 0] < 1:
            kept.append(float(targets[0, 0]))
    assert np.var(kept) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)
    assert np.mean(kept) == pytest.approx(0.5, abs=0.05)
