"""How much a model computes and holds, counted on weightless copies by PyTorch's own counter.

The unit is 1e9 multiplications with addition, which papers print as GFLOPs: 281 for the 16 frames that CLIP ViT-B/16
takes of a view. It is counted of all tokens of all blocks, although of the last block zar-ray computes what is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from zar_ray.data.class_texts import ClassPrompts, ContextFile
from zar_ray.models.architecture import Architecture, build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.learned_context import parse_context
from zar_ray.models.options import ClassPosition
from zar_ray.models.text import PromptedClasses
from zar_ray.video.transforms import Preprocessing

_OPERATIONS = 2e9  # that the counter finds in a GFLOP of the papers'
_WORD = "X"  # of one token, as every vector of a context is


def weightless(architecture: Architecture, name: str, preprocessing: Preprocessing) -> ClipModel:
    """A model of tensors without content, on the device ``meta``: for counting.

    Raises:
        ModelError: No CLIP can be built of the architecture.
    """
    with torch.device("meta"):
        clip = build_clip(architecture)
    return ClipModel(clip, name, preprocessing, architecture)


def counted(call: Callable[[], Any]) -> float:
    """The GFLOPs of what `call` does: its matrix products, convolutions and attention."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation, of which the counter knows nothing
    try:
        with FlopCounterMode(display=False) as counter, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a model warns of is said where it is used
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() / _OPERATIONS


def parameter_count(model: ClipModel) -> int:
    """All parameters of both towers and of what was added to them."""
    return sum(parameter.numel() for parameter in model.clip.parameters())


def view_gflops(model: ClipModel, frames: int) -> float:
    """What the image tower and a head compute for a view of so many frames as published: all tokens of all blocks."""
    pixels = _pixels(model, frames)
    with torch.no_grad():
        return counted(lambda: model.fuse(model.clip.visual(pixels)))


def image_gflops(model: ClipModel) -> float:
    """What an image takes of the image tower, counted as in `view_gflops`."""
    # Frames of a view may see each other: then a view is the least that can be encoded.
    frames = model.view_frames or 1
    pixels = _pixels(model, frames)
    with torch.no_grad():
        return counted(lambda: model.clip.visual(pixels)) / frames


def step_gflops(model: ClipModel, prompts: ClassPrompts, position: ClassPosition = "end") -> float:
    """What one step of tuning takes a video: a gradient back through the text tower, and a pass with the new context.

    The pass that the first gradient goes back through is the same for all videos, and made once. The model is one of
    `weightless`.

    Raises:
        ConfigError: No context of such prompts can be tuned.
    """
    if isinstance(prompts.context, ContextFile):
        # Its vectors are of a model with weights; as many words take the same place.
        vectors = parse_context(prompts.context.content, prompts.context.path).vectors
        prompts = replace(prompts, context=" ".join([_WORD] * len(vectors)))

    def step() -> None:
        classes = PromptedClasses.of(model, prompts, position)
        context = classes.initial_context.clone().requires_grad_()
        features = classes.features(context)
        torch.autograd.grad(features, context, torch.ones_like(features))

    return counted(step)


def _pixels(model: ClipModel, images: int) -> torch.Tensor:
    size = model.preprocessing.input_size
    return torch.empty(images, 3, size, size, device=model.device)
