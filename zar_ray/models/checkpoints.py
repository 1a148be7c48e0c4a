"""Checkpoint files: zar-ray's own, and those of OpenAI, open_clip and the published systems.

zar-ray's own format is a safetensors file of float32 tensors in OpenAI's layout (which open_clip's CLIP shares), with
one metadata entry, ``zar_ray``, of JSON: format version, architecture, preprocessing and free notes. No file is ever
unpickled beyond tensors and plain values, and no code inside a file is run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from zar_ray.errors import ModelError, reason_of
from zar_ray.models.architecture import AnyClip, Architecture, build_clip, infer_architecture, require_layers
from zar_ray.models.fetching import on_this_node
from zar_ray.models.formats import (
    FROM_SIZES,
    OPENAI_MARKS,
    TOKEN_EMBEDDING,
    SavedWeights,
    as_float32,
    openai_layout,
    own_notes,
)
from zar_ray.models.systems.base import SYSTEM
from zar_ray.models.systems.registry import find_system, recognise
from zar_ray.models.tokens import clip_tokenizer
from zar_ray.models.unpickling import read_pickled
from zar_ray.options.places import AnyFile, RemoteFile, file_of
from zar_ray.storage import Storage
from zar_ray.untrusted import stand_in
from zar_ray.video.transforms import Preprocessing

METADATA_KEY = "zar_ray"
FORMAT_VERSION = 1

_TITLES = {"zar-ray": "zar-ray", "openai": "OpenAI", "clip": "OpenAI's layout (OpenAI or open_clip)"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: The file.
        origin: ``zar-ray``, ``openai`` (surely: the file bears OpenAI's marks), ``clip`` (OpenAI's layout, which
            open_clip shares; the file does not say which activation it was trained with), or a system's name.
        tensors: The state dict in OpenAI's layout, float32 where floating, on the CPU. A system's may lack the token
            embedding, as ViFi-CLIP's does.
        architecture: As open_clip's model configs; None where neither the file nor its system tells.
        preprocessing: None where neither the file nor its system tells.
        notes: What was written down when it was saved.
        left_out: Tensors of the file that are not among `tensors`, and why, by their names in the file.
        epoch: The epoch written down beside the weights, if any.
        assumed: Names of the architecture's settings that the file does not tell, see `zar_ray.models.settings`.
    """

    path: AnyFile
    origin: str
    tensors: dict[str, torch.Tensor]
    architecture: dict[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    epoch: int | None = None
    assumed: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What people call its origin."""
        system = find_system(self.origin)
        return _TITLES[self.origin] if system is None else system.title


def save_checkpoint(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    architecture: Architecture,
    preprocessing: Preprocessing,
    path: str | os.PathLike[str],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes zar-ray's own checkpoint format, a ``.safetensors`` file or object, atomically; its folder is made.

    The model is an open_clip CLIP, or its state dict in OpenAI's layout, and saved as float32. Notes are anything worth
    keeping that JSON can hold, such as the training run; `name` names the model.

    Raises:
        ValueError: The path does not end in ``.safetensors``.
        RunError: It cannot be written.
    """
    path = file_of(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: zar-ray's checkpoints end in .safetensors")
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    # safetensors refuses tensors that share memory
    tensors = {name: as_float32(tensor.detach()).cpu().contiguous().clone() for name, tensor in state.items()}
    content = {
        "format": FORMAT_VERSION,
        "architecture": dict(architecture),
        "preprocessing": asdict(preprocessing),
        "notes": dict(notes or {}),
    }
    with appearing(path) as unfinished:
        save_file(tensors, unfinished, metadata={METADATA_KEY: json.dumps(content, sort_keys=True), "format": "pt"})


def require_file(path: str | os.PathLike[str]) -> AnyFile:
    """A checkpoint's place.

    Raises:
        ModelError: No file is there.
    """
    file = file_of(path)
    if not file.is_file():
        raise ModelError(f"{file}: no such checkpoint file")
    return file


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint: safetensors, a PyTorch file or OpenAI's TorchScript archive.

    Its system is told by its keys. Weights may lie under ``state_dict``, ``model_state_dict`` or ``model`` and bear
    the prefix ``module.``; half precision becomes float32. PyTorch files are read with ``weights_only=True``; of a
    TorchScript archive only the tensors are read, none of its code is run. Of what lies on a shared file system a node
    makes one copy, see `zar_ray.models.fetching`.

    Raises:
        ModelError: There is no such file, it is damaged, holds something other than weights, or those of a model that
            is not here.
    """
    path = require_file(path)
    try:
        here = on_this_node(path if isinstance(path, Path) else str(path))
        with here.open("rb") as file:
            instead = stand_in(file.read(512))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read as a checkpoint ({reason_of(error)})") from error
    if instead is not None:
        raise ModelError(f"{path}: {instead}")
    if path.suffix == ".safetensors":
        return _read_safetensors(here, path)
    return _foreign(_unpickled(here, path), path)


def _unpickled(here: Path, path: AnyFile) -> object:
    try:
        return read_pickled(here)
    except ModelError as error:
        # What the user named, and not the copy.
        raise ModelError(str(error).replace(str(here), str(path))) from error


def clip_with(architecture: Architecture, tensors: Mapping[str, torch.Tensor], place: str) -> AnyClip:
    """Builds a CLIP with a state dict in OpenAI's layout, which comes from `place`; every tensor must fit.

    What a file says of sizes costs nothing before its tensors have shown to be of these.

    Raises:
        ModelError: The architecture is none, or a tensor is missing, unknown or of another shape.
    """
    require_layers(architecture, tensors, place)
    if "multimodal_cfg" in architecture:  # the decoder of CoCa writes captions, and is not built
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("text_decoder.")}
    with _Undrawn():
        with torch.device("meta"):
            _fitting(build_clip(architecture), tensors, place)
        clip = build_clip(architecture)
    load_weights(clip, tensors, place)
    return clip


_WITHOUT_CHANCE: dict[Any, Any] = {torch.randn: torch.zeros, torch.randn_like: torch.zeros_like}


class _Undrawn(TorchFunctionMode):
    """Draws no weights at random, all of which are about to be loaded: of a ViT-B/16 that takes a second."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Of an initialiser of PyTorch's that is called here, no mode would see what it calls.
        if getattr(function, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if function in (torch.Tensor.normal_, torch.Tensor.uniform_):
            # Some draw again until all lie within bounds, as the middle does.
            return args[0].fill_(kwargs.get("mean", 0.0) if len(args) < 2 else args[1])
        if function in _WITHOUT_CHANCE:
            kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
        return _WITHOUT_CHANCE.get(function, function)(*args, **kwargs)


def load_weights(clip: AnyClip, tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Puts a state dict in OpenAI's layout, which comes from `place`, into a model; every tensor must fit.

    Raises:
        ModelError: A tensor is missing, unknown or of another shape.
    """
    try:
        clip.load_state_dict(_fitting(clip, tensors, place))
    except RuntimeError as error:
        raise ModelError(f"{place}: its tensors cannot be read as weights ({reason_of(error)})") from error


def _fitting(clip: AnyClip, tensors: Mapping[str, torch.Tensor], place: str) -> dict[str, torch.Tensor]:
    wanted = clip.state_dict()
    given = dict(tensors)
    for name in ("logit_scale", "logit_bias"):
        value = given.get(name)
        if value is not None and name in wanted and value.numel() == 1:  # one number, or a vector of one
            given[name] = value.reshape(wanted[name].shape)
    if "logit_bias" in wanted and "logit_bias" not in given and "logit_scale" in given:  # as open_clip: it had none
        given["logit_bias"] = torch.zeros_like(given["logit_scale"]).reshape(wanted["logit_bias"].shape)
    # older versions of transformers saved a buffer of 0, 1, 2, …
    given = {name: tensor for name, tensor in given.items() if name in wanted or not name.endswith(".position_ids")}
    wrong = [
        f"{name} is {shape_of(given[name])} and should be {shape_of(wanted[name])}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    wrong += [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} does not belong to it" for name in given if name not in wanted]
    if wrong:
        others = f" (and {len(wrong) - 1} more tensors do not fit)" if len(wrong) > 1 else ""
        raise ModelError(f"{place}: {wrong[0]}{others}; name the checkpoint's own architecture with --model")
    return given


def _read_safetensors(here: Path, path: AnyFile) -> Checkpoint:
    try:
        with safe_open(here, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # of Rust's library, or PyTorch's own
        raise ModelError(f"{path}: cannot be read as safetensors ({reason_of(error)})") from error
    if METADATA_KEY not in metadata:
        return _foreign(tensors, path)
    try:
        content = own_notes(metadata[METADATA_KEY], FORMAT_VERSION, str(path))
        pixels = content["preprocessing"]
        preprocessing = Preprocessing(**{**pixels, "mean": tuple(pixels["mean"]), "std": tuple(pixels["std"])})
        architecture, notes = dict(content["architecture"]), dict(content["notes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its zar-ray metadata is damaged ({reason_of(error)})") from error
    return Checkpoint(path, "zar-ray", openai_layout(tensors), architecture, preprocessing, notes)


def _foreign(content: object, path: AnyFile) -> Checkpoint:
    """What other code saved. The published systems build on OpenAI's CLIP, so their files tell everything."""
    saved = SavedWeights.of(content, str(path))
    try:
        found = recognise(saved)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its tensors are named as a known system's and have other shapes") from error
    left_out = {saved.given[name]: FROM_SIZES for name in saved.derived} | dict(saved.others)
    if found is None:
        origin = "openai" if set(OPENAI_MARKS) <= set(saved.derived) else "clip"
        return Checkpoint(path, origin, saved.tensors, left_out=left_out, epoch=saved.epoch)
    system, converted = found
    left_out |= {saved.given.get(name, name): why for name, why in converted.left_out.items()}
    tensors = dict(converted.tensors)
    if TOKEN_EMBEDDING not in tensors and "ln_final.weight" in tensors:  # one of CLIP's vocabulary, of no values
        shape = (clip_tokenizer().size, len(tensors["ln_final.weight"]))
        tensors[TOKEN_EMBEDDING] = torch.empty(shape, device="meta")
    clip = infer_architecture(tensors, str(path))
    return Checkpoint(
        path,
        system.name,
        converted.tensors,
        {**clip, **converted.additions, SYSTEM: system.name},
        (system.preprocessing or Preprocessing)(clip["vision_cfg"]["image_size"]),
        {"name": path.stem},
        left_out,
        saved.epoch,
        converted.assumed,
    )


def shape_of(tensor: torch.Tensor) -> str:
    """A tensor's shape, as messages have it."""
    return "×".join(map(str, tensor.shape)) or "one number"


def free_path(output: str | os.PathLike[str], *endings: str) -> AnyFile:
    """A path or URI where nothing is yet, so that no earlier result is lost; without `endings` it may end in anything.

    Raises:
        ModelError: It ends in something else, or there is something already.
    """
    path = file_of(output)
    if endings and path.suffix not in endings:
        raise ModelError(f"{path}: should end in {' or '.join(endings)}")
    if path.exists():
        raise ModelError(f"{path}: is there already; name another with --output, or remove it")
    return path


@contextmanager
def appearing(target: AnyFile) -> Iterator[Path]:
    """A local place to write at; it becomes the file, folder or object when all is written. The folder above is made.

    Raises:
        RunError: It is a URI, which cannot be written.
    """
    if isinstance(target, RemoteFile):
        storage, name = Storage.of_file(target)
        with storage.filling(name) as unfinished:
            yield unfinished
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(target)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)
