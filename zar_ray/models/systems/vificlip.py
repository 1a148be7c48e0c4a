"""ViFi-CLIP: a plain CLIP, fine-tuned as a whole, or frozen with prompt vectors in the layers of both towers.

Rasheed et al., "Fine-tuned CLIP Models are Efficient Video Learners", CVPR 2023; the mean of the frames is the video.
Its second training's vectors are `zar_ray.models.deep_prompts`, which ``--trains prompts`` gives to any such model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from zar_ray.errors import ModelError
from zar_ray.models.deep_prompts import attach_deep_prompts
from zar_ray.models.formats import Converted, SavedWeights, of_towers
from zar_ray.models.parts import DEEP_PROMPTS
from zar_ray.models.systems.base import System
from zar_ray.video.transforms import imagenet_preprocessing

# Where a tower's prompt vectors enter in the file, under OpenAI's names of towers; further layers' are their blocks'
# `VPT_shallow`.
_ENTRIES = {"visual.": "visual.VPT", "": "prompt_learner.ctx"}


def recognise(saved: SavedWeights) -> Converted | None:
    """ViFi-CLIP's own files have the image tower under ``image_encoder.`` and no token embedding.

    Raises:
        ModelError: The towers have other numbers of prompt vectors, or a layer lacks its own.
    """
    if not any(name.startswith("image_encoder.") for name in saved.tensors):
        return None
    left_out = saved.class_buffers()
    weights = {of_towers(name): tensor for name, tensor in saved.tensors.items() if name not in left_out}
    stacks = {f"{tower}{DEEP_PROMPTS}": found for tower in _ENTRIES if (found := _vectors(weights, tower))}
    prompts = {name: _stacked(found, saved.place) for name, found in stacks.items()}
    if len({stack.shape[:2] for stack in prompts.values()}) > 1 or len(prompts) == 1:
        sizes = ", ".join(f"{len(stack)} layers of {stack.shape[1]} in {name}" for name, stack in prompts.items())
        raise ModelError(f"{saved.place}: has prompt vectors in {sizes}, and zar-ray has as many in both towers")
    if not prompts:
        return Converted(weights, {}, left_out)
    depth, vectors, _ = prompts[DEEP_PROMPTS].shape
    stacked = {name for found in stacks.values() for name, _ in found.values()}
    weights = {name: tensor for name, tensor in weights.items() if name not in stacked}
    return Converted(weights | prompts, {DEEP_PROMPTS: {"vectors": vectors, "depth": depth}}, left_out)


def _vectors(weights: Mapping[str, torch.Tensor], tower: str) -> dict[int, tuple[str, torch.Tensor]]:
    """A tower's prompt vectors (n, W) in the file, by layer, with their names."""
    pattern = re.compile(re.escape(tower) + r"transformer\.resblocks\.(\d+)\.VPT_shallow")
    found = {int(match[1]): (name, one) for name, one in weights.items() if (match := pattern.fullmatch(name))}
    entry = _ENTRIES[tower]
    return found | ({0: (entry, weights[entry])} if entry in weights else {})


def _stacked(found: Mapping[int, tuple[str, torch.Tensor]], place: str) -> torch.Tensor:
    if sorted(found) != list(range(len(found))) or len({one.shape for _, one in found.values()}) > 1:
        names = sorted(name for name, _ in found.values())
        raise ModelError(f"{place}: its prompt vectors are not whole: {', '.join(names)}")
    return torch.stack([found[layer][1] for layer in sorted(found)])


SYSTEM = System(
    name="vificlip",
    title="ViFi-CLIP",
    parts={DEEP_PROMPTS: attach_deep_prompts},
    optional=(DEEP_PROMPTS,),
    recognise=recognise,
    preprocessing=imagenet_preprocessing,
    context="a photo of a",
    reference="rasheed2023vificlip",
)
