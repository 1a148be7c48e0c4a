"""What both sides of the bench read: made-up class names, seeded plans and frames, and view features."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zar_ray.adaptation.adapter import PlannedVideo
from zar_ray.adaptation.base import VideoFeatures
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import ViewPlan, plan_views
from zar_ray.video.transforms import Preprocessing

# Of a source frame, as common benchmarks store them.
HEIGHT, WIDTH = 256, 340
VIEWS = 48  # of a default plan

_VERBS = (
    *("washing", "painting", "folding", "throwing", "lifting", "riding", "cutting", "stacking"),
    *("polishing", "chasing", "tying", "peeling", "rolling", "catching", "juggling", "hammering"),
)
_THINGS = (
    *("apples", "bicycles", "blankets", "ropes", "horses", "paper"),
    *("barrels", "windows", "kites", "ladders", "umbrellas", "drums"),
)
MOST_CLASSES = len(_VERBS) * len(_THINGS)

_GRID = (6, 8)  # coloured points a key picture has down and across
_KEY_FRAMES = 12
_FRAMES_AT_ONCE = 32
_NOISE = 0.3


def made_up_names(count: int) -> list[str]:
    """`count` different names of two words, at most `MOST_CLASSES`."""
    # 48 is the least common multiple of 16 and 12: after it the pairs would come again
    return [f"{_VERBS[i % 16]} {_THINGS[(i + i // 48) % 12]}" for i in range(count)]


def make_plan(number: int, frames: int, preprocessing: Preprocessing, seed: int) -> ViewPlan:
    """The default views of the bench's video of that number, which has so many frames."""
    return plan_views(f"bench/{frames}/{number}.mp4", frames, HEIGHT, WIDTH, ViewConfig(), preprocessing, seed)


def make_video(number: int, frames: int, preprocessing: Preprocessing, seed: int) -> PlannedVideo:
    """A plan with its resized frames: coloured clouds that change from frame to frame."""
    plan = make_plan(number, frames, preprocessing, seed)
    generator = torch.Generator().manual_seed((seed * 100_000 + frames) * 100_000 + number)
    keys = torch.rand(3 * _GRID[0] * _GRID[1], 1, _KEY_FRAMES, generator=generator)
    moments = F.interpolate(keys, size=frames, mode="linear", align_corners=True)[:, 0].T.reshape(frames, 3, *_GRID)
    moments = moments[torch.from_numpy(plan.frames)]
    pictures = torch.empty(len(moments), plan.height, plan.width, 3, dtype=torch.uint8)
    for first in range(0, len(moments), _FRAMES_AT_ONCE):
        part = moments[first : first + _FRAMES_AT_ONCE]
        grown = F.interpolate(part, size=(plan.height, plan.width), mode="bilinear", align_corners=True)
        pictures[first : first + len(part)] = (grown * 255).to(torch.uint8).permute(0, 2, 3, 1)
    return PlannedVideo(plan, pictures)


def make_features(number: int, text_features: torch.Tensor, seed: int, views: int) -> VideoFeatures:
    """View features for the text tower alone: near one class each, so that entropies differ from view to view.

    Args:
        number: The video's.
        text_features: float32 (K, D), of the classes.
        seed: Of the run.
        views: V.

    Returns:
        Features on the device of `text_features`.
    """
    generator = torch.Generator().manual_seed(seed * 100_000 + number)
    # Untrained text features nearly coincide; what tells them apart is how they differ from their mean.
    directions = F.normalize((text_features - text_features.mean(dim=0)).cpu(), dim=-1)
    picked = directions[torch.randint(len(directions), (views + 1,), generator=generator)]
    noise = F.normalize(torch.randn(picked.shape, generator=generator), dim=-1)
    strength = _NOISE + torch.rand(len(picked), 1, generator=generator)
    features = F.normalize(picked + strength * noise, dim=-1).to(text_features.device)
    return VideoFeatures(features[:-1], features[-1])
