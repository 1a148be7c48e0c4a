"""What tuning a context costs in the text tower, counted without doing it."""

from __future__ import annotations

from dataclasses import replace

import torch

from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import ClassPrompts, ContextFile
from zar_ray.models.clip import ClipModel
from zar_ray.models.cost import counted
from zar_ray.models.learned_context import parse_context
from zar_ray.models.options import ClassPosition
from zar_ray.models.text import PromptedClasses

_WORD = "X"  # of one token, as every vector of a context is


def step_gflops(model: ClipModel, prompts: ClassPrompts, position: ClassPosition = "end") -> float:
    """What one step of tuning takes a video: a gradient back through the text tower, and a pass with the new context.

    The pass that the first gradient goes back through is the same for all videos, and made once.

    Args:
        model: The model, from `zar_ray.models.cost.weightless`.
        prompts: The candidate classes' prompts.
        position: Where a class's name stands.

    Returns:
        GFLOPs, as papers count.

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


def steps_of(method: str, options: AdaptationOptions) -> int:
    """Steps a video by which a method tunes a context; 0 where it tunes none."""
    return getattr(options.own(method), "steps", 0) if get_method(method).updates == "context" else 0
