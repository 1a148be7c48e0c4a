"""Layouts of CLIP's weights that other libraries save, under OpenAI's names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from zar_ray.errors import ModelError, reason_of

# What wrapping modules put before all names: DistributedDataParallel, torch.compile, Lightning.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_TOKENS = "token_embedding.weight"  # of which every CLIP has one
_PREFERRED = ("student", "model", "online")  # where a file holds several models, the one that was trained

# Hugging Face's `CLIPModel`: its names are our own otherwise said.
_HUGGING_FACE = (
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.(\w+)", r"ln_final.\1"),
    (r"text_projection\.weight", "text_projection"),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.(\w+)", r"visual.ln_pre.\1"),  # their spelling
    (r"vision_model\.post_layernorm\.(\w+)", r"visual.ln_post.\1"),
    (r"visual_projection\.weight", "visual.proj"),
)
_HUGGING_FACE_BLOCKS = (
    (r"layer_norm1\.(\w+)", r"ln_1.\1"),
    (r"layer_norm2\.(\w+)", r"ln_2.\1"),
    (r"mlp\.fc1\.(\w+)", r"mlp.c_fc.\1"),
    (r"mlp\.fc2\.(\w+)", r"mlp.c_proj.\1"),
    (r"self_attn\.out_proj\.(\w+)", r"attn.out_proj.\1"),
)
# What transformers takes where a config says nothing: ViT-B/32's.
_HUGGING_FACE_DEFAULTS: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "image_size": 224,
        "patch_size": 32,
    },
}
_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)")
_PROJECTION = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def without_wrappers(names: Mapping[str, str]) -> dict[str, str]:
    """For each name in a file the same without what wrapping modules put before all of them."""
    found = dict(names)

    def wraps(prefix: str) -> bool:
        return bool(found) and all(short.startswith(prefix) for short in found.values())

    while prefix := next(filter(wraps, _WRAPPERS), None):
        found = {name: short.removeprefix(prefix) for name, short in found.items()}
    return found


def one_model(names: Mapping[str, str], place: str) -> tuple[dict[str, str], dict[str, str]]:
    """Where a file holds several models, a teacher and a student, the names of one; a warning says which.

    Args:
        names: For each name in the file a shorter one.
        place: The file, for messages.

    Returns:
        Those of the one model, and of all others with why they are left out.
    """
    owners = {short.removesuffix(_TOKENS).split(".")[0] for short in names.values() if short.endswith(_TOKENS)}
    if len(owners) < 2 or "" in owners:
        return dict(names), {}
    own = next((one for one in _PREFERRED if one in owners), min(owners))
    warnings.warn(
        f"{place}: holds the models {', '.join(sorted(owners))}; {own} is read. Save another alone to have that",
        stacklevel=2,
    )
    chosen = {name: short.removeprefix(f"{own}.") for name, short in names.items() if short.startswith(f"{own}.")}
    left = {name: f"is of another model than {own}" for name in names if name not in chosen}
    return without_wrappers(chosen), left


def from_hugging_face(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A `CLIPModel`'s weights of Hugging Face's transformers under OpenAI's names; others as they are."""
    if "text_model.embeddings.token_embedding.weight" not in tensors:
        return dict(tensors)
    converted: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):  # 0, 1, 2, …
            continue
        if (block := _BLOCK.fullmatch(name)) is not None:
            tower, number, inner = block.groups()
            prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}."
            if (projection := _PROJECTION.fullmatch(inner)) is not None:
                parts.setdefault(f"{prefix}attn.in_proj_{projection[2]}", {})[projection[1]] = tensor
                continue
            converted[prefix + _renamed(inner, _HUGGING_FACE_BLOCKS)] = tensor
        else:
            new = _renamed(name, _HUGGING_FACE)
            converted[new] = tensor.T.contiguous() if new in ("text_projection", "visual.proj") else tensor
    for name, of_parts in parts.items():
        converted[name] = torch.cat([of_parts[part] for part in "qkv" if part in of_parts])
    return converted


def architecture_of_hugging_face(config: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    """The architecture, in open_clip's form, that a ``config.json`` of a `CLIPModel` tells; None of other models.

    What it leaves out has the value that transformers gives it.

    Raises:
        ModelError: It is one that open_clip's towers cannot follow; the message names the `place`.
    """
    if config.get("model_type") != "clip":
        return None
    try:
        text, vision = (_tower(config, name) for name in ("text", "vision"))
        activations = {str(tower["hidden_act"]) for tower in (text, vision)}
        if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
            raise ModelError(
                f"{place}: its towers' activations are {', '.join(sorted(activations))}, and open_clip's towers share"
                " quick_gelu or gelu"
            )
        for name, tower in (("text", text), ("vision", vision)):
            if tower["num_attention_heads"] < 1 or tower["hidden_size"] % tower["num_attention_heads"]:
                raise ModelError(f"{place}: {name}_config: num_attention_heads does not divide hidden_size")
        return {
            "embed_dim": int(config.get("projection_dim", 512)),
            "quick_gelu": activations == {"quick_gelu"},
            "vision_cfg": {
                "image_size": int(vision["image_size"]),
                "patch_size": int(vision["patch_size"]),
                "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                **_sizes(vision),
            },
            "text_cfg": {
                "context_length": int(text["max_position_embeddings"]),
                "vocab_size": int(text["vocab_size"]),
                "heads": int(text["num_attention_heads"]),
                **_sizes(text),
            },
        }
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{place}: is no config of a CLIPModel ({reason_of(error)})") from error


def _tower(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    # Older versions of transformers wrote some of them under the second name.
    usual = _HUGGING_FACE_DEFAULTS[name]
    said = (config.get(f"{name}_config"), config.get(f"{name}_config_dict"))
    return {**usual} | {key: value for one in said for key, value in (one or {}).items() if key in usual}


def _sizes(tower: Mapping[str, Any]) -> dict[str, Any]:
    width, eps = int(tower["hidden_size"]), float(tower["layer_norm_eps"])
    ratio = tower["intermediate_size"] / width
    return {
        "width": width,
        "layers": int(tower["num_hidden_layers"]),
        **({} if ratio == 4 else {"mlp_ratio": ratio}),
        **({} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}),
    }


def require_both_towers(tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Refuses an image tower alone.

    Raises:
        ModelError: It is one.
    """
    image = any(name.startswith(("visual.", "vision_model.", "conv1.", "patch_embed.")) for name in tensors)
    if image and not any(name.endswith(_TOKENS) or name.startswith(("text", "ln_final")) for name in tensors):
        raise ModelError(
            f"{place}: holds an image tower alone, and classes are read by a text tower; give the whole model's"
            " weights, or put it into the CLIP that it was trained from: zar checkpoint import FILE --base FILE"
        )


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        if (match := re.fullmatch(pattern, name)) is not None:
            return match.expand(new)
    return name
