"""From options to a model: a local checkpoint, an open_clip tag, or weights made up on purpose."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import constants as hub

from zar_ray.errors import ConfigError, ModelError, reason_of, suggestion
from zar_ray.models.architecture import (
    HEAD_WIDTH,
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
from zar_ray.models.fetching import one_at_a_time
from zar_ray.models.formats import TOKEN_EMBEDDING
from zar_ray.models.hub import cached_file, hub_problem
from zar_ray.models.layouts import require_both_towers
from zar_ray.models.model_folders import config_beside, find_folder, is_self_described, preprocessing_of
from zar_ray.models.openclip import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, download_pretrained, open_clip
from zar_ray.models.options import ModelOptions
from zar_ray.models.settings import (
    Settings,
    has_parts,
    of_parts,
    of_towers,
    parsed,
    told,
    tower_settings,
    with_settings,
)
from zar_ray.models.systems.base import SYSTEM, System
from zar_ray.models.systems.registry import find_system, known_parts
from zar_ray.options.places import at_home, file_of
from zar_ray.video.transforms import Preprocessing

ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
"""Endings of checkpoint files."""

RANDOM = "random"
RANDOM_SEED = 0

_NO_SETTINGS: Settings = MappingProxyType({})
_DEFAULT_MODEL, _DEFAULT_TAG = (ModelOptions.model_fields[name].default for name in ("model", "pretrained"))


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

    `settings` are what a checkpoint's tensors do not tell, and the sizes of a system's new weights. A warning says what
    of a system's file was assumed, and none of it where the user said it.

    A `model` that describes itself, ``local-dir:PATH`` or ``hf-hub:ORG/NAME``, brings its own weights, unless a
    `checkpoint` or random ones are asked for.

    Raises:
        ConfigError: A setting is none of the model's.
        ModelError: The weights cannot be found, fetched, read or used; no model has that name; or the device is not
            there or cannot be used.
    """
    settings = parsed(options.settings)
    target = pick_device(options.device if device is None else device)
    system = find_system(options.model)
    if system is None:
        # A file that describes itself would be read under any name, a misspelt one too.
        named_architecture(options.model)
    else:
        options = options.model_copy(update={"model": system.clip})
    if options.checkpoint is None and (named := settings if system is None else of_towers(settings)):
        raise ConfigError(
            f"--settings {next(iter(named))}: {options.model} says it itself; settings are for a --checkpoint, or for"
            " what a published system adds (docs/models.md)"
        )
    if options.checkpoint is not None:
        model = _from_file(options, system, settings)
    elif is_self_described(options.model) and options.pretrained != RANDOM:
        model = _from_folder(options)
    elif options.pretrained is None:
        raise ModelError(
            f"{options.model}: no weights are named; give --checkpoint FILE, or --pretrained TAG"
            f" ({_tags(options.model)})"
        )
    elif options.pretrained == RANDOM:
        model = _untrained(options)
    else:
        model = _from_tag(options, options.pretrained)
    return (model if system is None else _as_system(model, system, of_parts(settings))).to(target)


def weights_named(word: str | os.PathLike[str], pretrained: str | None) -> dict[str, Any]:
    """The options that one word for a model stands for.

    Args:
        word: A checkpoint's file or URI, ``NAME:TAG``, or a NAME, which has the tag `pretrained`.
        pretrained: That tag.
    """
    file = file_of(word)
    if isinstance(word, os.PathLike) or file.suffix in ENDINGS:
        return {"model": _DEFAULT_MODEL, "pretrained": pretrained, "checkpoint": at_home(file)}
    name, _, tag = (word, "", "") if is_self_described(word) else word.partition(":")
    return {"model": name, "pretrained": tag or pretrained, "checkpoint": None}


def load_source(source: str | os.PathLike[str]) -> ClipModel:
    """Loads a file that `load_model` reads, or open_clip's ``NAME:TAG``, such as ``ViT-B-16-quickgelu:openai``.

    The model is on the CPU.

    Raises:
        ModelError: There is no such file or tag, it cannot be loaded, or the weights are random.
    """
    name, colon, tag = str(source).rpartition(":")
    file = file_of(source)
    if file.is_file():
        return load_model(ModelOptions.model_validate({"checkpoint": file, "device": "cpu"}))
    if is_self_described(str(source)):
        return load_model(ModelOptions(model=str(source), device="cpu"))
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
    repository, _, name = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rpartition("/")
    return cached_file(repository, [name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]) if repository else None


def describe_checkpoint(
    checkpoint: Checkpoint, model: str | None = None, tag: str | None = None, settings: Settings = _NO_SETTINGS
) -> tuple[str, Architecture, Preprocessing]:
    """Name, architecture and preprocessing of a checkpoint; of one in OpenAI's layout a warning says what was assumed.

    A file that does not tell has the architecture of the open_clip name `model`; with None what a config beside it
    says, open_clip's or Hugging Face's, else OpenAI's, by its sizes. `settings` come before all of them. What it
    expects of pixels is what such a config says, else what the weights of that name share, or those called `tag`.

    Raises:
        ConfigError: A setting is none of the model's.
        ModelError: The architecture is unknown, not a CLIP's, or reads other pictures than square ones; or nothing
            says what it expects of pixels.
    """
    place = str(checkpoint.path)
    if checkpoint.architecture is not None and checkpoint.preprocessing is not None:
        require_layers(checkpoint.architecture, checkpoint.tensors, place)
        name = str(checkpoint.notes.get("name", checkpoint.path.stem))
        return name, with_settings(checkpoint.architecture, settings, place), checkpoint.preprocessing
    beside = config_beside(checkpoint.path)
    if model is not None:
        architecture = named_architecture(model)
        if checkpoint.origin == "openai":
            architecture["quick_gelu"] = True
    elif beside is not None:
        architecture = beside[0]
        require_layers(architecture, checkpoint.tensors, place)
    else:
        architecture = infer_architecture(checkpoint.tensors, place)
        assumed = [name for name in tower_settings(architecture) if name not in settings]
        if checkpoint.origin != "openai" and assumed:
            warnings.warn(
                f"{place}: read as OpenAI's CLIP, with QuickGELU and heads of width {HEAD_WIDTH}, which no tensor tells"
                f" ({told(architecture, assumed)}); if it was trained with plain GELU (as most of open_clip's were),"
                " name its architecture, such as --model ViT-B-16, or give --settings quick_gelu=false, or its features"
                " are wrong",
                stacklevel=4,
            )
    architecture = with_settings(architecture, settings, place)
    name, size = model_name(architecture) or checkpoint.path.stem, _input_size(architecture, place)
    if beside is not None and beside[1] is not None:
        return name, architecture, preprocessing_of(beside[1], size, place)
    if model is None or checkpoint.origin == "openai":
        return name, architecture, Preprocessing(input_size=size)
    return name, architecture, _pixels_by_name(model, tag, size, place)


def warn_of_assumed(checkpoint: Checkpoint, settings: Settings) -> None:
    """Warns of what a published system's file was taken to have as no tensor tells it, and no setting either."""
    if untold := [name for name in checkpoint.assumed if name not in settings]:
        assumed = told(checkpoint.architecture or {}, untold)
        warnings.warn(
            f"{checkpoint.path}: a {checkpoint.title} file, taken to have {assumed}, which it does not tell; if it was"
            " trained otherwise, say so with --settings NAME=VALUE, or its features are wrong",
            stacklevel=4,
        )


def _from_file(options: ModelOptions, system: System | None, settings: Settings) -> ClipModel:
    checkpoint = read_checkpoint(options.checkpoint)  # type: ignore[arg-type] # load_model saw that it is given
    place = str(checkpoint.path)
    require_both_towers(checkpoint.tensors, place)
    warn_of_assumed(checkpoint, settings)
    # Of a system's new weights the sizes come later.
    plain = system is not None and not has_parts(checkpoint.architecture or {})
    name, architecture, preprocessing = describe_checkpoint(
        checkpoint,
        options.model if options.model != _DEFAULT_MODEL else None,
        options.pretrained if options.pretrained != _DEFAULT_TAG else None,
        of_towers(settings) if plain else settings,
    )
    tensors = checkpoint.tensors
    if find_system(checkpoint.origin) is not None and TOKEN_EMBEDDING not in tensors:
        tensors = {**tensors, TOKEN_EMBEDDING: _token_embedding(options, checkpoint)}
    clip = clip_with(architecture, tensors, place)
    return ClipModel(clip, name, preprocessing, architecture, options.precision)


def _as_system(model: ClipModel, system: System, settings: Settings) -> ClipModel:
    """A model of a published system: itself, or a plain CLIP with new weights for what the system adds, of settings."""
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
        if settings and not own:
            with_settings({}, settings, f"{system.name} without weights of its own")
        model.architecture = {**model.architecture, SYSTEM: system.name}
        return model
    additions = with_settings(system.additions, settings, system.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        before = len(model.clip.state_dict())
        for word in additions:
            if word in parts:
                parts[word](model.clip, **additions[word])
    pixels = model.preprocessing
    return ClipModel(
        model.clip,
        system.name,
        system.preprocessing(pixels.input_size) if system.preprocessing is not None else pixels,
        {**model.architecture, **additions, SYSTEM: system.name},
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
    size = _input_size(architecture, options.model)
    preprocessing = _pixels_by_name(options.model, None, size, options.model, strict=False)
    return ClipModel(clip, options.model, preprocessing, architecture, options.precision, random_weights=True)


def _from_folder(options: ModelOptions) -> ClipModel:
    if options.pretrained not in (None, _DEFAULT_TAG):
        raise ModelError(
            f"--pretrained {options.pretrained}: {options.model} brings its own weights; leave --pretrained away"
        )
    found = find_folder(options.model)
    size = _input_size(found.architecture, options.model)
    preprocessing = preprocessing_of(found.pixels or {}, size, options.model)
    clip = clip_with(found.architecture, read_checkpoint(found.weights()).tensors, options.model)
    return ClipModel(clip, found.name, preprocessing, found.architecture, options.precision)


def _pixels_by_name(model: str, tag: str | None, size: int, place: str, strict: bool = True) -> Preprocessing:
    """What weights of a name expect of pixels, or those that are called `tag`; CLIP's where there are none.

    Where not all expect the same, `strict` asks which it is.
    """
    if is_self_described(model):
        return preprocessing_of(find_folder(model).pixels or {}, size, model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    of_tags = {one: preprocessing_of(open_clip.get_pretrained_cfg(model, one), size, model) for one in tags}
    if tag in of_tags:
        return of_tags[tag]
    distinct = dict.fromkeys(of_tags.values())
    if len(distinct) > 1 and strict:
        raise ModelError(
            f"{place}: weights of {model} differ in what they expect of pixels, and this file does not say; name those"
            f" that are like it with --pretrained ({', '.join(tags)}), or put their open_clip_config.json beside it"
        )
    return next(iter(distinct), Preprocessing(size))


def _from_tag(options: ModelOptions, tag: str) -> ClipModel:
    architecture = named_architecture(options.model)
    config = open_clip.get_pretrained_cfg(options.model, tag)
    if not config and Path(tag).is_file():
        raise ModelError(f"--pretrained {tag}: is a file, and a tag is wanted here; give files with --checkpoint")
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(options.model)
        raise ModelError(f'{options.model} has no weights called "{tag}"{suggestion(tag, [*tags, RANDOM])}')
    # The activation is the weights' own. open_clip only warns when name and weights differ, and goes by the name.
    quick_gelu = bool(config.get("quick_gelu"))
    architecture["quick_gelu"] = quick_gelu
    name = options.model.removesuffix(QUICKGELU_SUFFIX) + (QUICKGELU_SUFFIX if quick_gelu else "")
    place = f"{options.model} {tag}"
    preprocessing = preprocessing_of(config, _input_size(architecture, options.model), place)
    weights = read_checkpoint(_weights_file(options.model, tag, config)).tensors
    clip = clip_with(architecture, weights, place)
    return ClipModel(clip, name, preprocessing, architecture, options.precision)


def _weights_file(model: str, tag: str, config: dict[str, Any]) -> Path:
    # A node's workers all begin at once; one downloads, and the others find it in the cache.
    with contextlib.nullcontext() if cached_weights(model, tag) is not None else one_at_a_time(f"{model} {tag}"):
        return cached_weights(model, tag) or _downloaded(model, tag, config)


def _downloaded(model: str, tag: str, config: dict[str, Any]) -> Path:
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
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ModelError(f"{place}: names {size} for the size of pictures, and it is a number of pixels, or two")
    height, width = sides
    if height != width:
        raise ModelError(f"{place}: reads pictures of {width}×{height}, and zar-ray makes square ones")
    return height


def _tags(model: str) -> str:
    return ", ".join([*open_clip.list_pretrained_tags_by_model(model), RANDOM])
