"""What can be loaded by name: every pair of a model and a tag that open_clip knows, and the published systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from zar_ray.models.architecture import named_architecture, system_architecture
from zar_ray.models.cost import weightless
from zar_ray.models.loading import cached_weights
from zar_ray.models.model_folders import preprocessing_of
from zar_ray.models.openclip import open_clip
from zar_ray.models.systems.registry import find_system, known_systems
from zar_ray.video.transforms import Preprocessing

# Whose a model is, by what its name or its tag has; the first that fits.
_FAMILIES = {
    "siglip2": "SigLIP2",
    "siglip": "SigLIP",
    "pe-core": "PE-Core",
    "mobileclip": "MobileCLIP",
    "coca": "CoCa",
    "clipa": "CLIPA",
    "worldwide": "MetaCLIP 2",
    "nllb": "NLLB-CLIP",
    "eva": "EVA-CLIP",
    "vitamin": "ViTamin",
    "convnext": "ConvNeXt",
    "roberta": "RoBERTa",
    "metaclip": "MetaCLIP",
    "dfn": "DFN",
    "datacomp": "DataComp",
    "openai": "OpenAI",
}


@dataclass(frozen=True)
class KnownModel:
    """What a name, with a tag, stands for.

    Attributes:
        model: For ``--model``.
        tag: For ``--pretrained``; of a system "-".
        family: Whose it is.
        input: Side of its input in pixels, with what becomes of a frame's shape where that is not kept.
        text: Its text tower, in a few words.
        tuned: Whether ZAR can tune a context: "yes", how where that takes longer, or why not.
        stored: Whether the weights lie in the local cache.
        architecture: As open_clip's model configs.
    """

    model: str
    tag: str
    family: str
    input: str
    text: str
    tuned: str
    stored: bool
    architecture: Mapping[str, Any]

    @property
    def words(self) -> str:
        """What it can be found by, folded."""
        stored = "stored" if self.stored else "fetched"
        parts = (self.model, self.tag, self.family, self.input, self.text, self.tuned, stored)
        return " ".join(parts).casefold()


def known_models() -> tuple[KnownModel, ...]:
    """All models, the systems first."""
    return (*map(_of_system, known_systems()), *(_of_pair(*pair) for pair in open_clip.list_pretrained()))


def _of_pair(model: str, tag: str) -> KnownModel:
    architecture = _architecture(model)
    size = architecture["vision_cfg"].get("image_size", 224)
    pixels = preprocessing_of(open_clip.get_pretrained_cfg(model, tag), size, f"{model} {tag}")
    shape = "" if pixels.resize_mode == "shortest" else f" {pixels.resize_mode}"
    text = architecture["text_cfg"]
    name = f"{model} {tag}".casefold()
    family = next((title for sign, title in _FAMILIES.items() if sign in name), "OpenCLIP")
    stored = cached_weights(model, tag) is not None
    return KnownModel(model, tag, family, f"{size}{shape}", _text_tower(text), _tuned(text), stored, architecture)


def _of_system(name: str) -> KnownModel:
    system = find_system(name)
    assert system is not None  # it is known by that name
    architecture = system_architecture(system)
    model = weightless(architecture, name, Preprocessing(architecture["vision_cfg"]["image_size"]))
    return KnownModel(
        model=name,
        tag="-",
        family=system.title,
        input=str(architecture["vision_cfg"]["image_size"]),
        text=_text_tower(architecture["text_cfg"]),
        tuned="no: no words stand in front of class names" if model.reads_names_alone else "yes",
        stored=False,
        architecture=architecture,
    )


def _text_tower(text: Mapping[str, Any]) -> str:
    tokens = text.get("context_length", 77)
    if "hf_model_name" in text:
        return f"{str(text['hf_model_name']).rpartition('/')[2]}, {tokens} tokens"
    order = "sees ahead" if text.get("no_causal_mask") else "causal"
    return f"{text.get('layers', 12)}×{text.get('width', 512)} {order}, {tokens} tokens"


def _tuned(text: Mapping[str, Any]) -> str:
    whole = any(text.get(one) for one in ("hf_model_name", "no_causal_mask", "embed_cls", "proj_bias"))
    return "whole prompts" if whole or text.get("pool_type") in ("first", "last") else "yes"


@cache
def _architecture(name: str) -> Mapping[str, Any]:
    return named_architecture(name)
