"""A tiny CLIP, and ZAR's reference numbers, for the tests of adaptation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.parity.recipe import recipe_digest, recipe_input, recipe_state_dict
from zar_ray.video.transforms import Preprocessing

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("red circle", "green square", "blue_bar", "yellow star moving left", "dot")


@pytest.fixture(scope="session")
def tiny_model():
    torch.manual_seed(11)
    architecture = {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"width": 16, "heads": 2, "layers": 1},
    }
    clip = build_clip(architecture)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:  # the usual initial weights tell the classes hardly apart
                parameter.mul_(4)
    return ClipModel(clip, "tiny", Preprocessing(input_size=32), architecture)


@pytest.fixture(scope="session")
def classes(tiny_model):
    return PromptedClasses(tiny_model, NAMES)


@dataclass(frozen=True, eq=False)
class Golden:
    """ZAR's steps as the official implementation of TPT computes them on made-up weights."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    model: ClipModel

    def input(self, case: str) -> torch.Tensor:
        frames = recipe_input(self.facts["cases"][case]["input_shape"], self.facts["seed"])
        assert recipe_digest({"frames": frames}) == self.facts["digests"][case]
        return torch.from_numpy(frames)


@pytest.fixture(scope="session")
def golden():
    facts = json.loads((GOLDEN / "zar_steps.json").read_text())
    with np.load(GOLDEN / "zar_steps.npz") as file:
        arrays = dict(file)
    clip = build_clip(facts["architecture"])
    weights = recipe_state_dict({name: t.shape for name, t in clip.state_dict().items()}, facts["seed"])
    assert recipe_digest(weights) == facts["digests"]["weights"]
    clip.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    size = facts["architecture"]["vision_cfg"]["image_size"]
    return Golden(facts, arrays, ClipModel(clip, "golden", Preprocessing(input_size=size), facts["architecture"]))
