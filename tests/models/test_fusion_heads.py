"""ActionCLIP's heads where their numbers do not tell everything: new weights, lengths, and what is refused."""

from __future__ import annotations

import pytest
import torch

from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.video.transforms import Preprocessing

ALL = [
    {"head": "meanP"},
    {"head": "LSTM"},
    {"head": "Conv_1D"},
    {"head": "Transf"},
    {"head": "Transf_cls", "frames": 4},
]


def with_head(architecture, **settings):
    torch.manual_seed(1)
    architecture = {**architecture, "fusion": settings}
    return ClipModel(build_clip(architecture), "tiny", Preprocessing(32), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ALL, ids=lambda settings: settings["head"])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0,)])
def test_any_number_of_views_is_fused(architecture, settings, leading):
    model = with_head(architecture, **settings)
    frames = torch.randn(*leading, 4, 24)
    with torch.no_grad():
        fused = model.fuse(frames)
        assert fused.shape == (*leading, 24)
        for place in torch.cartesian_prod(*map(torch.arange, leading)).reshape(-1, len(leading)) if leading else ():
            assert torch.allclose(fused[tuple(place)], model.fuse(frames[tuple(place)]), atol=1e-5)


def test_a_new_shift_moves_a_quarter_each_way(architecture):
    model = with_head(architecture, head="Conv_1D", transposes=True)
    frames = torch.randn(4, 24)
    shifted = model.clip.fusion.added(frames[None])[0]
    assert torch.equal(shifted[1:, :6], frames[:-1, :6])
    assert torch.equal(shifted[:, 6:18], frames[:, 6:18])
    assert torch.equal(shifted[:-1, 18:], frames[1:, 18:])
    assert not shifted[0, :6].any()
    assert not shifted[-1, 18:].any()


def test_transposing_is_another_model(architecture):
    published, right = (with_head(architecture, head="Conv_1D", transposes=one) for one in (False, True))
    frames = torch.randn(2, 4, 24)
    assert not torch.allclose(published.fuse(frames), right.fuse(frames), atol=1e-3)
    assert published.fingerprint != right.fingerprint


def test_only_a_class_token_fixes_the_number_of_frames(architecture):
    assert [with_head(architecture, **settings).view_frames for settings in ALL] == [None] * 4 + [4]
    with_head(architecture, head="Transf").require_frames(77, "--frames")
    with pytest.raises(ConfigError, match="reads views of up to 77 frames; give --frames 77 or fewer"):
        with_head(architecture, head="Transf").require_frames(78, "--frames")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "mean"}, 'no fusion head is called "mean"; there are meanP, LSTM, Conv_1D, Transf, Transf_cls'),
        ({"head": "Transf_cls"}, "has positions for so many frames: say how many"),
        ({"head": "LSTM", "depth": 2}, "not an open_clip model config: .*depth"),
    ],
)
def test_settings_that_are_none(architecture, settings, message):
    with pytest.raises(ModelError, match=message) as caught:
        with_head(architecture, **settings)
    assert "\n" not in str(caught.value)
