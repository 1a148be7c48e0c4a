"""A tiny CLIP, and ZAR's reference numbers, for the tests of adaptation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zar_ray.adaptation.adapter import PlannedVideo
from zar_ray.adaptation.base import VideoFeatures, VideoPixels
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.packing import ImageSet, encode_packed
from zar_ray.models.text import PromptedClasses
from zar_ray.parity.recipe import recipe_digest, recipe_input, recipe_state_dict
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
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


SMALL = AdaptationOptions(views=ViewConfig(frames=2, eval_frames=3, views_per_rate=1, crops=1), encoder_batch=5)


def planned_video(seed: int, options: AdaptationOptions = SMALL) -> PlannedVideo:
    """A little video of noise, planned and decoded."""
    video_id = f"noise/{seed}.mp4"
    plan = plan_views(video_id, 31, 40, 56, options.views, Preprocessing(input_size=32), options.seed)
    shape = (len(plan.frames), plan.height, plan.width, 3)
    frames = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    frames.flags.writeable = False  # as Ray hands them over
    return PlannedVideo(plan, frames, video_id=video_id)


def pixel_video(model: ClipModel, seed: int, options: AdaptationOptions = SMALL) -> VideoFeatures:
    """The same as a method gets it: its features and its pixels."""
    video = planned_video(seed, options)
    plan = video.plan
    (embeddings,) = encode_packed(model, [ImageSet(video.frames, plan.images, plan.boxes)], 64)
    features = video_features(embeddings, plan)
    pixels = VideoPixels(video.video_id, video.frames, plan, embeddings)
    return VideoFeatures(features.views, features.evaluation, pixels)


@pytest.fixture(scope="session")
def small_options():
    """Options under which a video is a few images."""
    return SMALL


@pytest.fixture(scope="session")
def make_planned():
    return planned_video


@pytest.fixture(scope="session")
def make_pixels(tiny_model):
    return lambda seed, options=SMALL: pixel_video(tiny_model, seed, options)


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
