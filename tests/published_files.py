"""Files as the published systems' own code saves them, made of our models: the inverse of what their import does."""

from __future__ import annotations

from typing import Any

import torch

# Vita-CLIP's names of an image tower's parts.
_VITA = {"class_embedding": "cls_token", "positional_embedding": "pos_embed", "conv1": "patch_embed.proj"}
_VITA |= {"ln_1": "norm1", "ln_2": "norm2", "c_fc": "fc1", "c_proj": "fc2", "transformer.resblocks": "blocks"}
OF_BASE = ("vificlip", "tcclip")  # whose files hold no token embedding


def _apart(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Queries, keys and values under names of their own, where a tensor is of all three."""
    place, sign, kind = name.partition("in_proj_")
    return (
        {f"{place}{one}_proj.{kind}": part for one, part in zip("qkv", tensor.chunk(3), strict=True)}
        if sign
        else {name: tensor}
    )


def _towers(state: dict[str, torch.Tensor], apart: bool) -> dict[str, torch.Tensor]:
    """ViFi-CLIP's and TC-CLIP's names."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name == "token_embedding.weight":
            continue
        if name.startswith("visual."):
            named = name.replace("visual.", "image_encoder.", 1)
            found |= _apart(named, tensor) if apart else {named: tensor}
        elif name == "fusion.ctx":
            found["prompt_learner.ctx"] = tensor
        else:
            found[name if name == "logit_scale" else f"text_encoder.{name.removeprefix('fusion.')}"] = tensor
    return {f"module.{name}": tensor for name, tensor in found.items()}


def _vitaclip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name == "own_context":
            found["prompt_learner.ctx"] = tensor
        elif name.startswith("visual."):
            for ours, theirs in _VITA.items():
                name = name.replace(ours, theirs)
            found |= _apart(name, tensor)
        else:
            found[name if name == "logit_scale" else f"textual.{name}"] = tensor
    return found


def published(system: str, clip: Any) -> dict[str, Any]:
    """What the file of a system holds."""
    state = {name: tensor.detach().clone() for name, tensor in clip.state_dict().items()}
    bare = {name.removeprefix("fusion."): tensor for name, tensor in state.items()}
    of_head = {name.removeprefix("fusion."): tensor for name, tensor in state.items() if name.startswith("fusion.")}
    of_clip = {name: tensor for name, tensor in state.items() if not name.startswith("fusion.")}
    if system == "a5":
        named = {f"clipmodel.{name}": tensor for name, tensor in of_clip.items() if name != "learned_texts"}
        return {"state_dict": {**named, "embedding.weight": state["learned_texts"], **of_head}, "iteration": 9}
    if system == "actionclip":
        head = {f"module.{name}": tensor for name, tensor in of_head.items()}
        return {"epoch": 1, "model_state_dict": of_clip, "fusion_model_state_dict": head}
    if system == "openvclip":
        return {"model_state": {f"model.{name}": tensor for name, tensor in state.items()}}
    if system == "vitaclip":
        return {"model": _vitaclip(state), "next_step": 3}
    if system in OF_BASE:
        return {"model": _towers(state, system == "tcclip"), "epoch": 9}
    return {"ezclip": {"model_state_dict": bare}, "xclip": {"model": bare}}[system]
