"""The step that training repeats: its learning rate, its loss's gradient, its model's features."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from zar_ray.config import TrainConfig
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.training.recipe import VideoTextModel, learning_rate
from zar_ray.video.transforms import Preprocessing

ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ClipModel(build_clip(ARCHITECTURE), "tiny", Preprocessing(32), ARCHITECTURE)


@given(st.integers(1, 300), st.integers(0, 100), st.floats(0, 1))
def test_the_learning_rate_warms_up_and_follows_the_cosine(steps, warmup, last):
    config = TrainConfig(steps=steps, warmup_steps=warmup, lr=2.0, final_lr=last)
    rates = [learning_rate(step, config) for step in range(steps)]
    assert all(0 <= rate <= 2.0 + 1e-9 for rate in rates)
    for step, rate in enumerate(rates):
        if step < warmup:
            assert rate == pytest.approx(2.0 * (step + 1) / warmup)
        else:
            share = (step - warmup) / (steps - warmup)
            assert rate == pytest.approx(2.0 * last + 2.0 * (1 - last) * (1 + math.cos(math.pi * share)) / 2)


def test_training_sees_the_logits_that_evaluation_sees(model):
    names = ["spinning red star", "rising blue square"]
    pixels = torch.randn(3, 2, 3, 32, 32)
    classes = PromptedClasses(model, names)
    with torch.no_grad():
        videos = torch.stack([model.encode_images(one).mean(dim=0) for one in pixels])
        expected = classes.logits(torch.nn.functional.normalize(videos, dim=-1), classes.initial_features)
        logits = VideoTextModel(model)(pixels, classes.token_ids)
    assert torch.allclose(logits, expected, atol=1e-4)


def test_every_parameter_takes_part(model):
    network = VideoTextModel(model)
    ids = model.tokenize(["a video of a star.", "a video of a square."])
    network(torch.randn(2, 2, 3, 32, 32), ids)[:, 0].sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # The class token's key moves no attention in a softmax over one shift, so only its bias may be without gradient.
    assert not [name for name in without if "in_proj_bias" not in name]


def test_the_video_is_the_mean_of_its_frames_embeddings(model):
    network = VideoTextModel(model)
    ids = model.tokenize(["a video of a star.", "a video of a square."])
    frame = torch.randn(1, 1, 3, 32, 32)
    with torch.no_grad():
        once, thrice = network(frame, ids), network(frame.expand(1, 3, -1, -1, -1), ids)
    assert cosine_similarity(once, thrice).item() == pytest.approx(1, abs=1e-5)
