"""Whose checkpoint a state dict is, told by its keys, and its tensors under OpenAI's names.

Which keys each system saves, and which of them it makes anew when it loads, is read off the official repositories
(openai/CLIP, mlfoundations/open_clip, muzairkhattak/ViFi-CLIP, sallymmx/ActionCLIP, Shahzadnit/EZ-CLIP).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from zar_ray.errors import ModelError
from zar_ray.models.architecture import EVALUATION_SCALE
from zar_ray.models.cross_frames import CROSS_FRAMES
from zar_ray.models.deep_prompts import SIZES
from zar_ray.models.fusion_heads import FUSION, fusion_settings
from zar_ray.models.learned_texts import LEARNED_TEXTS
from zar_ray.models.temporal_adapters import ADAPTERS, PROMPTS
from zar_ray.models.view_prompts import OWN_CONTEXT, VIEW_PROMPTS
from zar_ray.video.transforms import Preprocessing

Origin = Literal["zar-ray", "openai", "clip", "vificlip", "actionclip", "ezclip", "a5", "vitaclip", "xclip"]

ORIGIN_NAMES: Mapping[Origin, str] = {
    "zar-ray": "zar-ray",
    "openai": "OpenAI",
    "clip": "OpenAI's layout (OpenAI or open_clip)",
    "vificlip": "ViFi-CLIP",
    "actionclip": "ActionCLIP",
    "ezclip": "EZ-CLIP",
    "a5": "A5",
    "vitaclip": "Vita-CLIP",
    "xclip": "X-CLIP",
}
# The one tensor of CLIP that ViFi-CLIP does not save.
TOKEN_EMBEDDING = "token_embedding.weight"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Besides weights, OpenAI's archives hold these three numbers, and only they do.
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
# Where training scripts keep the weights in what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_FUSION = "fusion_model_state_dict"
_UNREAD = "its fusion head does not read it"
A5_PARTS = ("clipmodel.", "embedding.weight", "temporalEmbedding.weight", "temporalModelling.")
"""What an A5 checkpoint calls its CLIP, its vectors around class names, and its positions of and layers over frames."""
_A5_CLIP, _A5_TEXTS, _A5_POSITIONS, _A5_LAYERS = A5_PARTS
_A5_AROUND = 16  # vectors on each side of a name in the published checkpoints; no tensor tells
_A5_SCALE = 1 / 0.07
# Vita-CLIP's names of an image tower's parts, besides queries, keys and values, which it keeps apart.
_VITA_VISUAL = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj.weight": "conv1.weight",
}
_VITA_BLOCK = {"norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_VITA_PATCHES, _VITA_CONTEXT = "visual.patch_embed.proj.bias", "prompt_learner.ctx"
_A_CONTEXT_EACH = "holds a context for each class that it was trained with, and is made for no others"
_XCLIP_HEAD = ("mit.", "prompts_generator.", "prompts_visual_ln.", "prompts_visual_proj")
_XCLIP_POSITIONS = "mit.positional_embedding"
_PUBLISHED_SCALE = 100  # of cosines in ActionCLIP's and EZ-CLIP's evaluations, whatever was learnt
# ViFi-CLIP's names of the towers; what is left of the others' names is the same.
_VIFICLIP_TOWERS = {"image_encoder.": "visual.", "text_encoder.": ""}
# Where a tower's prompt vectors enter in ViFi-CLIP's file, under `_VIFICLIP_TOWERS`' names, and what holds all of them
# here; further layers' are its blocks' `VPT_shallow`.
_DEEP_PROMPTS = {
    "visual.": ("visual.VPT", f"visual.{SIZES}"),
    "": ("prompt_learner.ctx", SIZES),
}
_VIFICLIP_BUFFERS = ("complete_text_embeddings", "token_prefix", "token_suffix")

_FROM_SIZES = "follows from the sizes"
_FROM_CLASSES = "embeds the class names it was trained with, and is made anew for others"


@dataclass(frozen=True, eq=False)
class Recognised:
    """A state dict whose system is known.

    Attributes:
        origin: Whose it is.
        tensors: The weights under OpenAI's names, float32 where floating. What belongs to no CLIP keeps its own name.
        left_out: What is not among them, by the name in the file, and why.
        epoch: The epoch written down beside the weights, as that system counts; None where there is none.
        additions: What its architecture has beside the CLIP that it builds on.
    """

    origin: Origin
    tensors: dict[str, torch.Tensor]
    left_out: dict[str, str]
    epoch: int | None = None
    additions: Mapping[str, Any] = field(default_factory=dict)


def recognise(content: object, place: str) -> Recognised:
    """Tells the system of a file's content by its keys, and names its weights as OpenAI does.

    Args:
        content: What was read: a state dict, or a mapping that holds one.
        place: Where it was read, for messages.

    Raises:
        ModelError: It holds no state dict, or one that is not whole.
    """
    state = content
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors = _tensors_in(state)
    if not tensors:
        raise ModelError(f"{place}: holds no state dict: no tensors by name at its top or under {', '.join(_WRAPPERS)}")
    epoch = content.get("epoch") if isinstance(content, Mapping) else None
    epoch = epoch if isinstance(epoch, int) else None
    names = _without_prefixes(tensors)

    if any(name.startswith("image_encoder.") for name in names.values()):
        return _vificlip(tensors, names, epoch, place)
    if _A5_TEXTS in names.values() and any(name.startswith(_A5_CLIP) for name in names.values()):
        return _a5(openai_layout(tensors), epoch)
    if "visual.global_prompts" in names.values() and any(name.startswith("textual.") for name in names.values()):
        return _vitaclip(tensors, names, epoch, place)
    left_out = {name: _FROM_SIZES for name, short in names.items() if _is_derived(short)}
    fusion = content.get(_FUSION) if isinstance(content, Mapping) else None
    if isinstance(fusion, Mapping):
        head = openai_layout(_tensors_in(fusion))
        settings, unread = fusion_settings(head)
        left_out |= {f"{_FUSION}/{name}": _UNREAD for name in fusion if name.removeprefix("module.") in unread}
        weights = {f"{FUSION}.{name}": tensor for name, tensor in head.items() if name not in unread}
        additions = {FUSION: settings, EVALUATION_SCALE: _PUBLISHED_SCALE}
        return Recognised("actionclip", openai_layout(tensors) | weights, left_out, epoch, additions)
    if _XCLIP_POSITIONS in names.values():
        return _xclip(openai_layout(tensors), left_out, epoch)
    prompts = openai_layout(tensors).get(f"visual.transformer.{PROMPTS}")
    if prompts is not None:
        additions = {ADAPTERS: {"frames": prompts.shape[1]}, EVALUATION_SCALE: _PUBLISHED_SCALE}
        return Recognised("ezclip", openai_layout(tensors), left_out, epoch, additions)
    origin = "openai" if set(_OPENAI_MARKS) <= set(names.values()) else "clip"
    return Recognised(origin, openai_layout(tensors), left_out, epoch)


def openai_layout(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's layout, in float32: without wrappers' prefixes, buffers that follow from the sizes, and marks."""
    names = _without_prefixes(tensors)
    return {short: as_float32(tensors[name]) for name, short in names.items() if not _is_derived(short)}


def published_preprocessing(origin: str, input_size: int) -> Preprocessing | None:
    """What a system's published evaluation does to pixels; None where the system is not one with its own.

    A5's and Vita-CLIP's are taken to be CLIP's own. The others resize the short side to 256/224 of the input,
    truncated. ViFi-CLIP and X-CLIP then normalise as ImageNet classifiers do and resize bilinearly; ActionCLIP, and
    EZ-CLIP with it, keep CLIP's statistics and filter.

    Args:
        origin: Whose checkpoint it is, or the system's name.
        input_size: R, side of the square input in pixels.
    """
    side = input_size * 256 // 224
    if origin in ("vificlip", "xclip"):
        return Preprocessing(input_size, IMAGENET_MEAN, IMAGENET_STD, "bilinear", short_side=side)
    if origin in ("actionclip", "ezclip"):
        return Preprocessing(input_size, short_side=side)
    if origin in ("a5", "vitaclip"):
        return Preprocessing(input_size)
    return None


def as_float32(tensor: torch.Tensor) -> torch.Tensor:
    """A floating tensor in float32; others as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _tensors_in(state: object) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping):
        return {}
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _without_prefixes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """For each name the same without what wrapping modules put before it."""
    names = {name: name for name in tensors}
    while names and all(name.startswith("module.") for name in names.values()):  # saved under DistributedDataParallel
        names = {name: short.removeprefix("module.") for name, short in names.items()}
    if f"text.{TOKEN_EMBEDDING}" in names.values():  # open_clip's CustomTextCLIP
        names = {name: short.removeprefix("text.") for name, short in names.items()}
    return names


def _is_derived(short: str) -> bool:
    return short in _OPENAI_MARKS or short.rpartition(".")[2] == "attn_mask"


def _vificlip(
    tensors: Mapping[str, torch.Tensor], names: Mapping[str, str], epoch: int | None, place: str
) -> Recognised:
    weights: dict[str, torch.Tensor] = {}
    left_out: dict[str, str] = {}
    for name, short in names.items():
        learner, _, buffer = short.rpartition(".")
        tower = next((prefix for prefix in _VIFICLIP_TOWERS if short.startswith(prefix)), "")
        ours = _VIFICLIP_TOWERS.get(tower, "") + short.removeprefix(tower)
        if learner == "prompt_learner" and buffer in _VIFICLIP_BUFFERS:
            left_out[name] = _FROM_CLASSES
        elif _is_derived(ours):
            left_out[name] = _FROM_SIZES
        else:
            weights[ours] = as_float32(tensors[name])
    return Recognised("vificlip", _with_deep_prompts(weights, place), left_out, epoch)


def _a5(tensors: dict[str, torch.Tensor], epoch: int | None) -> Recognised:
    layers = {name.split(".")[2] for name in tensors if name.startswith(_A5_LAYERS)}
    weights, left_out = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(_A5_CLIP):
            weights |= openai_layout({name.removeprefix(_A5_CLIP): tensor})
        elif name == _A5_TEXTS:
            weights[LEARNED_TEXTS] = tensor
        elif layers and (name == _A5_POSITIONS or name.startswith(_A5_LAYERS)):
            weights[f"{FUSION}.{name}"] = tensor
        elif name == _A5_POSITIONS:
            left_out[name] = _UNREAD
        else:
            weights[name] = tensor
    additions: dict[str, Any] = {
        LEARNED_TEXTS: {"prefix": _A5_AROUND, "postfix": _A5_AROUND},
        EVALUATION_SCALE: _A5_SCALE,
    }
    if layers:
        additions[FUSION] = {"head": "A5", "layers": len(layers), "frames": len(tensors[_A5_POSITIONS])}
    return Recognised("a5", weights, left_out, epoch, additions)


def _xclip(tensors: dict[str, torch.Tensor], left_out: dict[str, str], epoch: int | None) -> Recognised:
    weights = {f"{FUSION}.{name}" if name.startswith(_XCLIP_HEAD) else name: one for name, one in tensors.items()}

    def count(stack: str) -> int:
        return len({name.removeprefix(stack).split(".")[0] for name in tensors if name.startswith(stack)})

    sizes = {
        "frames": tensors[_XCLIP_POSITIONS].shape[1],
        "layers": count("mit.resblocks."),
        "prompt_layers": count("prompts_generator.decoder."),
    }
    return Recognised("xclip", weights, left_out, epoch, {CROSS_FRAMES: sizes})


def _vitaclip(saved: Mapping[str, torch.Tensor], names: Mapping[str, str], epoch: int | None, place: str) -> Recognised:
    given = {short: name for name, short in names.items()}
    tensors = {short: as_float32(saved[name]) for short, name in given.items()}
    weights: dict[str, torch.Tensor] = {}
    left_out = {name: _FROM_CLASSES for name in tensors if name.rpartition(".")[2] in _VIFICLIP_BUFFERS}
    left_out |= {name: _FROM_SIZES for name in tensors if _is_derived(name)}
    apart: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"visual\.blocks\.(\d+)\.(.+)", name)
        if name in left_out or name == _VITA_PATCHES:
            continue
        if name == _VITA_CONTEXT and tensor.ndim == 3:
            left_out[name] = _A_CONTEXT_EACH
        elif name == _VITA_CONTEXT:
            weights[OWN_CONTEXT] = tensor
        elif name.startswith("textual."):
            weights[name.removeprefix("textual.")] = tensor
        elif block is None:
            short = name.removeprefix("visual.")
            weights[f"visual.{_VITA_VISUAL[short]}" if short in _VITA_VISUAL else name] = tensor
        elif split := re.fullmatch(r"attn\.([qkv])_proj\.(weight|bias)", block[2]):
            apart.setdefault(f"visual.transformer.resblocks.{block[1]}.attn.in_proj_{split[2]}", {})[split[1]] = tensor
        else:
            part = next((old for old in _VITA_BLOCK if block[2].startswith(f"{old}.")), "")
            weights[
                f"visual.transformer.resblocks.{block[1]}.{_VITA_BLOCK.get(part, '')}{block[2].removeprefix(part)}"
            ] = tensor
    for name, parts in apart.items():
        if parts.keys() != set("qkv"):
            raise ModelError(f"{place}: has queries, keys or values alone for {name}")
        weights[name] = torch.cat([parts[one] for one in "qkv"])
    if _VITA_PATCHES in tensors and "visual.positional_embedding" in weights:
        # CLIP's patches have no bias; added to each patch's position it does the same.
        positions = weights["visual.positional_embedding"].clone()
        positions[1:] += tensors[_VITA_PATCHES]
        weights["visual.positional_embedding"] = positions
    times = tensors.get("visual.time_embed")
    if times is None:
        raise ModelError(f"{place}: a Vita-CLIP checkpoint without visual.time_embed")
    context = weights.get(OWN_CONTEXT)
    sizes = {
        "frames": len(times),
        "global_prompts": tensors["visual.global_prompts"].shape[1],
        "context": None if context is None else len(context),
    }
    left_out = {given[name]: why for name, why in left_out.items()}
    return Recognised("vitaclip", weights, left_out, epoch, {VIEW_PROMPTS: sizes})


def _with_deep_prompts(weights: dict[str, torch.Tensor], place: str) -> dict[str, torch.Tensor]:
    """The weights with each tower's prompt vectors, one tensor a layer in the file, as `deep_prompts` has them."""
    stacks = {}
    for tower, (entry, target) in _DEEP_PROMPTS.items():
        pattern = re.compile(re.escape(tower) + r"transformer\.resblocks\.(\d+)\.VPT_shallow")
        layers = {int(match[1]): name for name in weights if (match := pattern.fullmatch(name))}
        if entry in weights:
            layers[0] = entry
        if layers:
            parts = [weights[layers[layer]] for layer in sorted(layers)]
            if sorted(layers) != list(range(len(layers))) or len({part.shape for part in parts}) > 1:
                raise ModelError(f"{place}: its prompt vectors are not whole: {', '.join(sorted(layers.values()))}")
            stacks[target] = torch.stack(parts)
            weights = {name: tensor for name, tensor in weights.items() if name not in layers.values()}
    if len({stack.shape[:2] for stack in stacks.values()}) > 1 or len(stacks) == 1:
        sizes = ", ".join(f"{len(stack)} layers of {stack.shape[1]} in {name}" for name, stack in stacks.items())
        raise ModelError(f"{place}: has prompt vectors in {sizes}, and zar-ray has as many in both towers")
    return {**weights, **stacks}
