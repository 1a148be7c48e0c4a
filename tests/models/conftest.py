"""A tiny CLIP for the tests of models."""

from __future__ import annotations

import copy

import pytest
import torch

from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.video.transforms import Preprocessing

_TINY = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


@pytest.fixture
def architecture():
    """One that OpenAI's rules (64-wide heads, QuickGELU) describe, so that it can be inferred."""
    return copy.deepcopy(_TINY)


@pytest.fixture(scope="session")
def clip():
    torch.manual_seed(3)
    return build_clip(_TINY).eval()


@pytest.fixture(scope="session")
def model(clip):
    return ClipModel(clip, "tiny", Preprocessing(input_size=32), copy.deepcopy(_TINY))
