"""From options to a model: a local checkpoint, an open_clip tag, or weights made up on purpose."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained

from zar_ray.errors import ModelError, reason_of, suggestion
from zar_ray.models.architecture import (
    QUICKGELU_SUFFIX,
    Architecture,
    build_clip,
    infer_architecture,
    model_name,
    named_architecture,
    require_layers,
)
from zar_ray.models.checkpoints import Checkpoint, clip_with, read_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.devices import pick_device
from zar_ray.models.formats import TOKEN_EMBEDDING
from zar_ray.models.options import ModelOptions
from zar_ray.models.systems.base import SYSTEM, System
from zar_ray.models.systems.registry import find_system, known_parts
from zar_ray.video.transforms import Preprocessing

RANDOM = "random"
RANDOM_SEED = 0
REACH_SECONDS = 10.0

_DEFAULT_MODEL = ModelOptions.model_fields["model"].default


def load_model(options: ModelOptions, device: torch.device | str | None = None) -> ClipModel:
    """Loads the model that the options name.

    `checkpoint` comes before `pretrained`. zar-ray's own files describe themselves, and those of published systems are
    known. For others `model` names the architecture; while it is left at its default, a file in OpenAI's layout is
    taken for OpenAI's: sizes from its tensors, and QuickGELU. No file tells its activation, so a warning says what was
    assumed unless the file bears OpenAI's own marks. Of a system's file without a token embedding, that of `model` and
    `pretrained` is used.

    A `model` that is a published system's name (`zar_ray.models.systems`) is the CLIP that it builds on with what it
    adds: a checkpoint's own, or new weights where the checkpoint or the tag is a plain CLIP, as training starts from.
    Of a system that adds nothing that its checkpoints must have, the plain CLIP is taken as it is.

    Raises:
        ModelError: The weights cannot be found, fetched, read or used; no model has that name; or the device is not
            there or cannot be used.
    """
    target = pick_device(options.device if device is None else device)
    system = find_system(options.model)
    if system is None:
        # A file that describes itself would be read under any name, a misspelt one too.
        named_architecture(options.model)
    else:
        options = options.model_copy(update={"model": system.clip})
    if options.checkpoint is not None:
        model = _from_file(options)
    elif options.pretrained is None:
        raise ModelError(
            f"{options.model}: no weights are named; give --checkpoint FILE, or --pretrained TAG"
            f" ({_tags(options.model)})"
        )
    elif options.pretrained == RANDOM:
        model = _untrained(options)
    else:
        model = _from_tag(options, options.pretrained)
    return (model if system is None else _as_system(model, system)).to(target)


def load_source(source: str | os.PathLike[str]) -> ClipModel:
    """Loads a file that `load_model` reads, or open_clip's ``NAME:TAG``, such as ``ViT-B-16-quickgelu:openai``.

    The model is on the CPU.

    Raises:
        ModelError: There is no such file or tag, it cannot be loaded, or the weights are random.
    """
    name, colon, tag = str(source).rpartition(":")
    if Path(source).is_file():
        return load_model(ModelOptions(checkpoint=Path(source), device="cpu"))
    if not colon or "/" in name:
        raise ModelError(
            f"{source}: no such checkpoint file; open_clip's weights are named NAME:TAG, such as"
            " ViT-B-16-quickgelu:openai"
        )
    if tag == RANDOM:
        raise ModelError(f"{source}: random weights are of no use here; name trained ones")
    return load_model(ModelOptions(model=name, pretrained=tag, device="cpu"))


def cached_weights(model: str, tag: str) -> Path | None:
    """The file of a tag's weights in the Hugging Face cache; None where they have not been downloaded."""
    repository = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rpartition("/")
    names = [repository[2]] if repository[2] else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    found = (try_to_load_from_cache(repository[0], name) for name in names if repository[0])
    return next((Path(file) for file in found if isinstance(file, str)), None)


def hub_problem(seconds: float = REACH_SECONDS) -> str | None:
    """Why weights cannot be downloaded now; None where the model hub answers.

    Asked before a download, because the hub's own client tries again for most of a minute.
    """
    if hub.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(hub.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return None  # an answer is an answer
    except (OSError, ValueError) as error:
        return f"{hub.ENDPOINT} does not answer: {reason_of(getattr(error, 'reason', error))}"
    return None


def describe_checkpoint(checkpoint: Checkpoint, model: str | None = None) -> tuple[str, Architecture, Preprocessing]:
    """Name, architecture and preprocessing of a checkpoint; a warning says what had to be assumed.

    A file that does not tell has the architecture of the open_clip name `model`; with None OpenAI's, by its sizes.

    Raises:
        ModelError: The architecture is unknown, not a CLIP's, or reads other pictures than square ones.
    """
    place = str(checkpoint.path)
    if checkpoint.architecture is not None and checkpoint.preprocessing is not None:
        require_layers(checkpoint.architecture, checkpoint.tensors, place)
        name = str(checkpoint.notes.get("name", checkpoint.path.stem))
        return name, checkpoint.architecture, checkpoint.preprocessing
    if model is not None:
        architecture = named_architecture(model)
        if checkpoint.origin == "openai":
            architecture["quick_gelu"] = True
    else:
        architecture = infer_architecture(checkpoint.tensors, place)
        if checkpoint.origin != "openai":
            warnings.warn(
                f"{place}: read as OpenAI's CLIP, with QuickGELU; if it was trained with plain GELU (as most of"
                " open_clip's were), name its architecture, such as --model ViT-B-16, or its features are wrong",
                stacklevel=4,
            )
    name = model_name(architecture) or checkpoint.path.stem
    return name, architecture, Preprocessing(input_size=_input_size(architecture, place))


def _from_file(options: ModelOptions) -> ClipModel:
    checkpoint = read_checkpoint(options.checkpoint)  # type: ignore[arg-type] # load_model saw that it is given
    place = str(checkpoint.path)
    name, architecture, preprocessing = describe_checkpoint(
        checkpoint, options.model if options.model != _DEFAULT_MODEL else None
    )
    tensors = checkpoint.tensors
    if find_system(checkpoint.origin) is not None and TOKEN_EMBEDDING not in tensors:
        tensors = {**tensors, TOKEN_EMBEDDING: _token_embedding(options, checkpoint)}
    clip = clip_with(architecture, tensors, place)
    return ClipModel(clip, name, preprocessing, architecture, options.precision)


def _as_system(model: ClipModel, system: System) -> ClipModel:
    """A model of a published system: itself, or a plain CLIP with new weights for what the system adds."""
    parts, named = known_parts(), model.architecture.get(SYSTEM, system.name)
    own, wanted = ({word for word in parts if word in one} for one in (model.architecture, system.additions))
    fits = wanted.difference(system.optional) <= own <= wanted.union(system.optional)
    if own and not (fits and named == system.name):
        other = f"is of the system {named}" if fits else f"has {', '.join(sorted(own))}"
        raise ModelError(
            f"{model.name}: {other}, which --model {system.name} {'is' if fits else 'has'} not; leave --model away: the"
            " checkpoint says what it is"
        )
    if fits:
        model.architecture = {**model.architecture, SYSTEM: system.name}
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        before = len(model.clip.state_dict())
        for word in system.additions:
            if word in parts:
                parts[word](model.clip, **system.additions[word])
    pixels = model.preprocessing
    return ClipModel(
        model.clip,
        system.name,
        system.preprocessing(pixels.input_size) if system.preprocessing is not None else pixels,
        {**model.architecture, **system.additions, SYSTEM: system.name},
        model.precision,
        random_weights=model.random_weights or len(model.clip.state_dict()) > before,
    )


def _token_embedding(options: ModelOptions, checkpoint: Checkpoint) -> torch.Tensor:
    """That of the pretrained model that the options name beside a checkpoint without one."""
    lacks = f"{options.checkpoint}: a {checkpoint.title} file, which holds no token embedding"
    way_out = f"make it whole with: zar checkpoint import {options.checkpoint} --base FILE or NAME:TAG"
    if options.pretrained in (None, RANDOM):
        raise ModelError(f"{lacks}, and no pretrained model is named to take it from; {way_out}")
    try:
        return _from_tag(options, options.pretrained).clip.token_embedding.weight.detach()
    except ModelError as error:
        raise ModelError(
            f"{lacks}, and that of {options.model} {options.pretrained} cannot be had ({error}); {way_out}"
        ) from error


def _untrained(options: ModelOptions) -> ClipModel:
    architecture = named_architecture(options.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        clip = build_clip(architecture)
    preprocessing = Preprocessing(input_size=_input_size(architecture, options.model))
    return ClipModel(clip, options.model, preprocessing, architecture, options.precision, random_weights=True)


def _from_tag(options: ModelOptions, tag: str) -> ClipModel:
    architecture = named_architecture(options.model)
    config = open_clip.get_pretrained_cfg(options.model, tag)
    if not config and Path(tag).is_file():
        raise ModelError(f"--pretrained {tag}: is a file, and a tag is wanted here; give files with --checkpoint")
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(options.model)
        raise ModelError(f'{options.model} has no weights called "{tag}"{suggestion(tag, [*tags, RANDOM])}')
    if config.get("resize_mode", "shortest") != "shortest":
        raise ModelError(
            f"{options.model} {tag}: was trained on pictures squeezed into a square, and zar-ray crops; choose other"
            f" weights ({_tags(_DEFAULT_MODEL)} for {_DEFAULT_MODEL})"
        )
    # The activation is the weights' own. open_clip only warns when name and weights differ, and goes by the name.
    quick_gelu = bool(config.get("quick_gelu"))
    architecture["quick_gelu"] = quick_gelu
    name = options.model.removesuffix(QUICKGELU_SUFFIX) + (QUICKGELU_SUFFIX if quick_gelu else "")
    preprocessing = Preprocessing(
        input_size=_input_size(architecture, options.model),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config.get("interpolation", "bicubic"),
    )
    weights = read_checkpoint(_weights_file(options.model, tag, config)).tensors
    clip = clip_with(architecture, weights, f"{options.model} {tag}")
    return ClipModel(clip, name, preprocessing, architecture, options.precision)


def _weights_file(model: str, tag: str, config: dict[str, Any]) -> Path:
    cached = cached_weights(model, tag)
    if cached is not None:
        return cached
    problem = hub_problem()
    if problem is None:
        try:
            return Path(download_pretrained(config))
        except (OSError, RuntimeError) as error:
            problem = reason_of(error)
    raise ModelError(
        f"{model} {tag}: the weights are not in the cache and cannot be downloaded ({problem}); give a local file with"
        f" --checkpoint FILE, or download them where there is a network and bring that machine's {hub.HF_HUB_CACHE}"
    )


def _input_size(architecture: Architecture, place: str) -> int:
    size = architecture["vision_cfg"].get("image_size", 224)
    if not isinstance(size, int):
        height, width = size
        if height != width:
            raise ModelError(f"{place}: reads pictures of {width}×{height}, and zar-ray makes square ones")
        size = height
    return size


def _tags(model: str) -> str:
    return ", ".join([*open_clip.list_pretrained_tags_by_model(model), RANDOM])
