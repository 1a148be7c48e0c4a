"""Gradients pass recurrent layers as cuDNN would have it: never through its own kernels in evaluation mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.models.architecture import build_clip
from zar_ray.models.attention import class_relevance
from zar_ray.models.clip import ClipModel
from zar_ray.training.network import VideoTextModel
from zar_ray.training.options import TrainConfig
from zar_ray.video.options import ViewConfig
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square")
VIEWS = ViewConfig(frames=2, eval_frames=3, views_per_rate=1, crops=1)
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


class RecurrentHead(nn.Module):
    """A head over frames as another system may bring it: any layer, dropout between its parts included."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.layer = KINDS[kind](width, width, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return (frames + self.layer(frames)[0]).mean(dim=1)


def make_model(kind: str) -> ClipModel:
    torch.manual_seed(5)
    architecture = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"width": 16, "heads": 2, "layers": 1},
    }
    if kind == "ActionCLIP":
        architecture["fusion"] = {"head": "LSTM"}
    clip = build_clip(architecture)
    if kind != "ActionCLIP":
        clip.add_module("fusion", RecurrentHead(kind, 16))
    return ClipModel(clip, "tiny", Preprocessing(input_size=32), architecture)


@pytest.fixture(params=["ActionCLIP", *KINDS])
def model(request):
    return make_model(request.param)


@pytest.fixture
def passes(monkeypatch):
    """Every pass of a recurrent layer: whether its gradient was wanted, and whether cuDNN would have run it.

    The flag that is watched is the one by which PyTorch chooses cuDNN; cuDNN itself refuses the backward of a pass in
    evaluation mode, as this does.
    """
    seen: list[bool] = []
    for kind in KINDS.values():
        forward = kind.forward

        def watched(self, *inputs, forward=forward):
            cudnn, output = torch.backends.cudnn.enabled, forward(self, *inputs)
            if output[0].requires_grad:
                assert not cudnn or self.training, "cudnn RNN backward can only be called in training mode"
            seen.append(output[0].requires_grad)
            return output

        monkeypatch.setattr(kind, "forward", watched)
    yield seen
    assert torch.backends.cudnn.enabled, "it is put back"


@pytest.mark.parametrize("method", ["memo", "tent", "tpt"])
def test_methods_that_move_weights(model, make_planned, passes, method):
    options = AdaptationOptions(views=VIEWS, method=(method,), encoder_batch=5)
    adapter = VideoAdapter(model, prompts_of([NAMES], options), options.method, options)
    video: PlannedVideo = make_planned(3)
    (outcome,) = adapter.predict([video])
    assert torch.isfinite(outcome.cases[0].decision.logits_after).all()
    assert False in passes
    assert (True in passes) == (method != "tpt"), "where it does not pass the head, none is wanted"


def test_explanations(model, passes):
    class_relevance(model, torch.randn(3, 3, 32, 32), torch.randn(2, 16))
    assert True in passes


@pytest.mark.parametrize("trains", ["both", "image"])
def test_training(model, passes, trains):
    config = TrainConfig(trains=trains, micro_batch=2, frames=3)
    network = VideoTextModel(model, prompts_of([NAMES], config)[0], config)
    network(torch.randn(2, 3, 3, 32, 32)).sum().backward()
    head = model.clip.fusion
    assert all(weight.grad is not None for weight in head.parameters())
    assert passes == [True]
    with torch.no_grad():
        network(torch.randn(2, 3, 3, 32, 32))
    assert passes == [True, False]


def test_values_and_gradients_are_those_of_evaluation_mode(model):
    """Dropout between a layer's parts would change both in training mode."""
    head = model.clip.fusion
    (layer,) = (one for one in head.modules() if isinstance(one, nn.RNNBase))
    plain = type(layer)(16, 16, num_layers=layer.num_layers, dropout=layer.dropout, batch_first=True).eval()
    plain.load_state_dict(layer.state_dict())
    frames = torch.randn(2, 3, 4, 16)
    ours, theirs = frames.clone().requires_grad_(), frames.clone().requires_grad_()
    fused = model.fuse(ours)
    expected = (theirs + plain(theirs.flatten(0, 1))[0].unflatten(0, (2, 3))).mean(dim=2)
    weights = torch.randn_like(fused)
    (fused * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_cudnn_is_as_it_was_whatever_happens(model, before):
    torch.backends.cudnn.enabled = before
    try:
        for again in (model, copy.deepcopy(model), ClipModel(model.clip, "again", model.preprocessing, {})):
            again.fuse(torch.randn(2, 3, 16, requires_grad=True))
            assert torch.backends.cudnn.enabled == before
            with pytest.raises((RuntimeError, ValueError)):
                again.fuse(torch.randn(2, 3, 15, requires_grad=True))
            assert torch.backends.cudnn.enabled == before
    finally:
        torch.backends.cudnn.enabled = True
