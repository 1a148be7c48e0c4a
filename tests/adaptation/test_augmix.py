from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.adaptation.augmix import _DISTORTIONS, Draws, augmix


@given(key=st.tuples(st.integers(), st.text(max_size=5)), low=st.floats(-9, 9), span=st.floats(0, 9))
def test_draws_are_within_their_range_and_repeat(key, low, span):
    ours, again = Draws(*key), Draws(*key)
    numbers = [ours.uniform(low, low + span) for _ in range(20)]
    assert numbers == [again.uniform(low, low + span) for _ in range(20)]
    assert all(low <= number <= low + span for number in numbers)
    assert {Draws(*key).below(1) for _ in range(9)} == {0}


def test_draws_are_uniform_and_do_not_change_with_the_library():
    numbers = np.array([Draws("x", n).uniform() for n in range(2000)])
    assert numbers.mean() == pytest.approx(0.5, abs=0.03)
    assert np.histogram(numbers, 10, (0, 1))[0].min() > 140
    assert {Draws(n).below(3) for n in range(99)} == {0, 1, 2}
    assert [round(Draws(0, "a/b.mp4").uniform(), 6), round(Draws(1).uniform(), 6)] == DRAWN


DRAWN = [0.395909, 0.135219]


def test_a_mixture_is_the_same_for_all_frames_and_stays_an_image():
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(4, -1, -1, -1)
    for key in range(20):
        mixed = augmix(pixels, Draws(key))
        assert mixed.dtype == torch.float32
        assert mixed.min() >= -1e-3
        assert mixed.max() <= 255.001
        assert torch.allclose(mixed, mixed[:1].expand(4, -1, -1, -1), atol=1e-3)


@pytest.mark.parametrize("distortion", _DISTORTIONS)
def test_distortions_are_slight(distortion):
    """At severity 1 a picture is still the picture."""
    ramp = torch.linspace(10, 255, 64)[None, None, None, :].expand(1, 3, 64, 64).to(torch.uint8).contiguous()
    ramp[..., 30:34, :] = 90
    changed = [distortion(ramp, Draws(key)) for key in range(30)]
    assert all(one.shape == ramp.shape and one.dtype == torch.uint8 for one in changed)
    differences = [(one.float() - ramp.float()).abs().mean() for one in changed]
    assert max(differences) < 60
    assert max(differences) > 0
