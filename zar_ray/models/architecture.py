"""CLIP architectures as data: named, inferred from a checkpoint's tensors, and built.

An architecture is a mapping in the form of open_clip's model configs: ``embed_dim``, ``vision_cfg``, ``text_cfg``
and, for OpenAI's activation, ``quick_gelu``. What a published system adds to CLIP bears a word of its own beside
them, with its settings (`zar_ray.models.systems.base.System`); ``system`` is the system's name, and
``evaluation_scale`` what cosines are multiplied by where that is not what was learnt.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zar_ray.errors import ConfigError, ModelError, reason_of, suggestion
from zar_ray.models.formats import count_layers
from zar_ray.models.hub import hub_file
from zar_ray.models.model_folders import find_folder, is_self_described
from zar_ray.models.openclip import CLIPTextCfg, CLIPVisionCfg, open_clip
from zar_ray.models.systems.base import EVALUATION_SCALE, SYSTEM, System
from zar_ray.models.systems.registry import find_system, known_parts, known_systems
from zar_ray.options.layers import conf_dir, read_yaml

Architecture = Mapping[str, Any]
AnyClip = open_clip.CLIP | open_clip.CustomTextCLIP

QUICKGELU_SUFFIX = "-quickgelu"
HEAD_WIDTH = 64  # of every CLIP that OpenAI published

# Settings of open_clip's towers that change embeddings, and that no tensor tells.
_SILENT = {
    "text_cfg": (
        "act_kwargs",
        "eos_id",
        "hf_pooler_type",
        "no_causal_mask",
        "norm_kwargs",
        "pad_id",
        "pool_type",
        "tokenizer_kwargs",
        "tokenizer_mode",
    ),
    "vision_cfg": ("act_kwargs", "attentional_pool", "final_ln_after_pool", "norm_kwargs", "pool_type", "timm_pool"),
}


def named_architecture(name: str) -> dict[str, Any]:
    """The architecture of an open_clip model name, such as ``ViT-B-16-quickgelu``, or of one that describes itself.

    Raises:
        ModelError: open_clip knows no such model; the message suggests the nearest name, published systems' included.
            Or see `zar_ray.models.model_folders.find_folder`.
    """
    if is_self_described(name):
        return find_folder(name).architecture
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        system = find_system(name)
        if system is not None:
            raise ModelError(f'"{name}" is a published system, and a plain CLIP is to be named here, as {system.clip}')
        known = [*open_clip.list_models(), *known_systems()]
        near = suggestion(name, known) or "; zar models lists all"
        raise ModelError(f'no model is called "{name}"{near}')
    return config


def system_architecture(system: System) -> dict[str, Any]:
    """The architecture that a published system starts from: its CLIP's, with what it adds."""
    return {**named_architecture(system.clip), **system.additions, SYSTEM: system.name}


def load_architecture(name: str) -> Architecture:
    """An architecture by its name in conf/models or a system's, or by its file.

    A file has open_clip's form, or the name of one under ``clip`` and what is added to it.

    Raises:
        ConfigError: There is none, the file is not a YAML mapping, or ``clip`` is not a name.
        ModelError: It builds on a model that open_clip does not know.
    """
    system = find_system(name)
    if system is not None:
        return system_architecture(system)
    shipped = {path.stem: path for path in (conf_dir() / "models").glob("*.yaml")}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise ConfigError(
            f"--architecture {name}: no such name or file{suggestion(name, [*shipped, *known_systems()])}"
        )
    content = read_yaml(path)
    base = content.pop("clip", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"{path}: clip: must be the name of a model of open_clip's, such as ViT-B-16-quickgelu")
    return {**named_architecture(base), **content}


def model_name(architecture: Architecture) -> str | None:
    """The open_clip name of an architecture; None where it has none."""
    wanted = _settings(architecture)
    return next((name for name in open_clip.list_models() if _settings(named_architecture(name)) == wanted), None)


def architecture_difference(first: Architecture, second: Architecture) -> str | None:
    """See `difference`; what an architecture leaves out has open_clip's default."""
    return difference(_settings(first), _settings(second))


def difference(first: Mapping[str, object], second: Mapping[str, object]) -> str | None:
    """The first setting that differs, as ``NAME is ONE and OTHER``; None where there is none."""
    names = dict.fromkeys([*first, *second])
    differing = (name for name in names if first.get(name) != second.get(name))
    return next((f"{name} is {first.get(name)} and {second.get(name)}" for name in differing), None)


def infer_architecture(tensors: Mapping[str, torch.Tensor], place: str) -> dict[str, Any]:
    """Reads the architecture off the tensor shapes of a checkpoint in OpenAI's layout.

    Heads follow OpenAI's rule (width / 64), and the activation is OpenAI's QuickGELU: no tensor tells either. `place`
    is what the tensors come from, for messages.

    Raises:
        ModelError: The keys are not those of a CLIP.
    """
    resnet = "visual.attnpool.positional_embedding" in tensors
    needed = ["text_projection", "positional_embedding", "token_embedding.weight", "ln_final.weight"]
    needed += [] if resnet else ["visual.proj", "visual.conv1.weight", "visual.positional_embedding"]
    missing = [name for name in needed if name not in tensors]
    if missing:
        held = ", ".join(list(tensors)[:3]) or "no tensors"
        raise ModelError(f"{place}: not a CLIP checkpoint: it lacks {missing[0]} (it holds {held}, …)")
    try:
        text_width = tensors["ln_final.weight"].shape[0]
        return {
            "embed_dim": tensors["text_projection"].shape[1],
            "quick_gelu": True,
            "vision_cfg": _infer_resnet(tensors) if resnet else _infer_vit(tensors),
            "text_cfg": {
                "context_length": tensors["positional_embedding"].shape[0],
                "vocab_size": tensors["token_embedding.weight"].shape[0],
                "width": text_width,
                "heads": max(1, text_width // HEAD_WIDTH),
                "layers": count_layers(tensors, "transformer.resblocks."),
                **_mlp_ratio(tensors, "transformer", text_width),
            },
        }
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{place}: not a CLIP checkpoint: its tensors have other shapes than a CLIP's") from error


def require_layers(architecture: Architecture, tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Refuses an architecture of more layers than tensors: to build it, even without content, would take for ever.

    Raises:
        ModelError: It is one; the message names `place`.
    """
    layers = [
        value
        for part in (architecture, *architecture.values())
        if isinstance(part, Mapping)
        for name, many in part.items()
        if "layers" in name or "depth" in name
        for value in (many if isinstance(many, list | tuple) else [many])
    ]
    claimed = sum(value for value in layers if isinstance(value, int | float))
    if claimed > len(tensors):
        raise ModelError(f"{place}: claims to have {claimed} layers, and holds {len(tensors)} tensors; it is damaged")


def told_by_no_tensor(architecture: Architecture) -> dict[str, object]:
    """Settings of the towers that change embeddings, that differ from open_clip's defaults, and no tensor tells."""
    settings, usual = _settings(architecture), _settings({"vision_cfg": {}, "text_cfg": {}})
    names = [f"{tower}.{name}" for tower, own in _SILENT.items() for name in own]
    return {name: settings[name] for name in names if name in settings and settings[name] != usual.get(name)}


def build_clip(architecture: Architecture) -> AnyClip:
    """Builds a CLIP with freshly initialised weights (torch's default generator), float32, on the CPU.

    Of CoCa both towers are built, and not its decoder, which writes captions.

    Raises:
        ModelError: The mapping is not such a config, or what it names of Hugging Face's cannot be had.
    """
    config = copy.deepcopy(dict(architecture))
    # open_clip builds the same towers under other attribute names then
    config.pop("custom_text", None)
    config.pop("multimodal_cfg", None)
    for tower in ("vision_cfg", "text_cfg"):
        if isinstance(config.get(tower), dict):
            config[tower].pop("output_tokens", None)
    text = config.get("text_cfg")
    text = text if isinstance(text, dict) else {}
    system = config.get(SYSTEM)
    if system is not None and find_system(system) is None:
        raise ModelError(f'this model is of the system "{system}", which is not here; install the package that has it')
    parts = known_parts()
    added = {word: config.pop(word) for word in parts if word in config}
    for word in (SYSTEM, EVALUATION_SCALE):  # they build nothing
        config.pop(word, None)
    if (encoder := text.get("hf_model_name")) and not Path(encoder).is_dir():
        text["hf_model_name"] = str(hub_file(encoder, ("config.json",), f"its text tower {encoder}").parent)
    try:
        if encoder:
            text["hf_model_pretrained"] = False
            clip = open_clip.CustomTextCLIP(**config)
        else:
            clip = open_clip.CLIP(**config)
            _add_class_token(clip, text)
        for word, settings in added.items():
            parts[word](clip, **settings)
    except Exception as error:  # PyTorch raises many kinds
        raise ModelError(f"not an open_clip model config: {reason_of(error)}") from error
    return clip


def _add_class_token(clip: Any, text: Mapping[str, Any]) -> None:
    """The class token of CoCa's text tower, which open_clip's CLIP leaves out where it takes that tower apart."""
    if text.get("embed_cls"):
        clip.cls_emb = nn.Parameter(torch.randn(clip.positional_embedding.shape[1]) * 0.01)
        clip.pad_id = text.get("pad_id", 0)


def _infer_vit(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    width, _, _, patch = tensors["visual.conv1.weight"].shape
    grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "image_size": patch * grid,
        "layers": count_layers(tensors, "visual.transformer.resblocks."),
        "width": width,
        "patch_size": patch,
        "head_width": min(HEAD_WIDTH, width),
        **_mlp_ratio(tensors, "visual.transformer", width),
    }


def _infer_resnet(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    grid = round((tensors["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "image_size": grid * 32,
        "layers": [count_layers(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
        "patch_size": None,
    }


def _mlp_ratio(tensors: Mapping[str, torch.Tensor], tower: str, width: int) -> dict[str, float]:
    inner = tensors.get(f"{tower}.resblocks.0.mlp.c_fc.weight")
    ratio = 4.0 if inner is None else inner.shape[0] / width
    return {} if ratio == 4.0 else {"mlp_ratio": ratio}


def _settings(architecture: Architecture) -> dict[str, object]:
    towers = {"vision_cfg": asdict(CLIPVisionCfg()), "text_cfg": asdict(CLIPTextCfg())}
    settings: dict[str, object] = {"quick_gelu": False}
    for name, value in architecture.items():
        if name in towers:
            settings |= {f"{name}.{key}": inner for key, inner in {**towers[name], **value}.items()}
        elif name not in ("custom_text", SYSTEM):  # the same towers, under other attribute names or trained otherwise
            settings[name] = value
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
