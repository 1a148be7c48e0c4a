"""The weights of a checkpoint file as its keys tell them, and under OpenAI's names.

Which keys each system saves, and which of them it makes anew when it loads, is read off the official repositories; the
systems' own are in `zar_ray.models.systems`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from zar_ray.errors import ModelError
from zar_ray.models.layouts import from_hugging_face, one_model, without_wrappers
from zar_ray.untrusted import parse_json

TOKEN_EMBEDDING = "token_embedding.weight"

FROM_SIZES = "follows from the sizes"
FROM_CLASSES = "embeds the class names it was trained with, and is made anew for others"
NOT_READ = "its fusion head does not read it"

# Besides weights, OpenAI's archives hold these three numbers, and only they do.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
# Where training scripts keep the weights in what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
# What a prompt learner, which has this name in CoOp's code and others', makes anew for other classes.
_CLASS_BUFFERS = tuple(f"prompt_learner.{one}" for one in ("complete_text_embeddings", "token_prefix", "token_suffix"))


# What the safetensors library takes at most.
_LONGEST_HEADER = 100_000_000


def safetensors_notes(file: IO[bytes]) -> dict[str, str]:
    """The metadata in the header of a ``.safetensors`` file, of which nothing else is read.

    Raises:
        ValueError: It has no such header.
    """
    length = int.from_bytes(file.read(8), "little")
    header = parse_json(file.read(length)) if length <= _LONGEST_HEADER else None
    notes = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(notes, dict):
        raise ValueError("has no header of safetensors")  # noqa: TRY004  of a file, not of an argument
    return notes


def own_notes(text: str, version: int, place: str) -> Any:
    """What a file of zar-ray's own says of itself, as JSON with its format's version.

    Raises:
        ModelError: It is of another version than is read here; the message names the `place`.
        KeyError, TypeError, ValueError: It is damaged.
    """
    notes = parse_json(text)
    if notes["format"] != version:
        raise ModelError(
            f"{place}: is of format {notes['format']}, and this zar-ray reads format {version}; use the zar-ray that"
            " wrote it, or a newer one"
        )
    return notes


@dataclass(frozen=True, eq=False)
class SavedWeights:
    """A file's content, as systems look at it.

    Attributes:
        place: The file, for messages.
        content: All that it holds; empty where that is a bare state dict.
        tensors: Its weights by the names in the file, without what wrapping modules put before them (``module.``), and
            without what follows from the sizes; float32 where floating.
        given: For each of these names, and of those left out, the one in the file.
        derived: Names of what follows from the sizes.
        epoch: The epoch written down beside the weights, as the system counts; None where there is none.
        others: Names in the file of tensors of another model, with why they are left out.
    """

    place: str
    content: Mapping[str, Any]
    tensors: dict[str, torch.Tensor]
    given: Mapping[str, str]
    derived: tuple[str, ...]
    epoch: int | None
    others: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: object, place: str) -> SavedWeights:
        """Finds the state dict in what was read: one, or a mapping that holds one; messages call it `place`.

        Raises:
            ModelError: There is none.
        """
        state = content
        for wrapper in _WRAPPERS:
            if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
                state = state[wrapper]
        saved = tensors_in(state)
        if not saved:
            wrappers = ", ".join(_WRAPPERS)
            raise ModelError(f"{place}: holds no state dict: no tensors by name at its top or under {wrappers}")
        names, others = one_model(without_wrappers({name: name for name in saved}), place)
        whole = content if isinstance(content, Mapping) else {}
        epoch = whole.get("epoch")
        return cls(
            place,
            whole,
            openai_layout({short: saved[name] for name, short in names.items()}),
            {short: name for name, short in _without_prefixes(names).items()},
            tuple(short for short in _without_prefixes(names).values() if _is_derived(short)),
            epoch if isinstance(epoch, int) else None,
            others,
        )

    def class_buffers(self) -> dict[str, str]:
        """What a prompt learner computed of the training's class names, with the reason to leave it out."""
        return {name: FROM_CLASSES for name in _CLASS_BUFFERS if name in self.tensors}


@dataclass(frozen=True, eq=False)
class Converted:
    """A system's file under our names.

    Attributes:
        tensors: The weights, those of the CLIP under OpenAI's names. What belongs to no CLIP keeps its own.
        additions: What the architecture has beside the CLIP's.
        left_out: Names of `SavedWeights.tensors` that are not among them, and why.
        assumed: Names of settings in `additions` that neither the tensors nor anything else in the file tells.
    """

    tensors: dict[str, torch.Tensor]
    additions: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()


def openai_layout(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's layout, in float32: without wrappers' prefixes, buffers that follow from the sizes, and marks."""
    names = _without_prefixes({name: name for name in tensors})
    plain = {short: as_float32(tensors[name]) for name, short in names.items() if not _is_derived(short)}
    return from_hugging_face(plain)


def as_float32(tensor: torch.Tensor) -> torch.Tensor:
    """A floating tensor in float32; others as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def tensors_in(state: object) -> dict[str, torch.Tensor]:
    """The tensors of a mapping by their names; none of anything else."""
    if not isinstance(state, Mapping):
        return {}
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def count_layers(tensors: Mapping[str, object], prefix: str) -> int:
    """How many different words follow a prefix in the names of tensors, up to the next dot."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in tensors if name.startswith(prefix)})


def of_towers(name: str) -> str:
    """OpenAI's name for one of a file that has the towers apart, as ViFi-CLIP's and TC-CLIP's."""
    if name.startswith("image_encoder."):
        return f"visual.{name.removeprefix('image_encoder.')}"
    return name.removeprefix("text_encoder.")


def with_joined_projections(tensors: Mapping[str, torch.Tensor], place: str) -> dict[str, torch.Tensor]:
    """Tensors with those of queries, keys and values that are apart (``attn.q_proj.weight``) joined as OpenAI's are.

    Raises:
        ModelError: Some of the three are missing; the message names the `place`.
    """
    joined: dict[str, torch.Tensor] = {}
    apart: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if split := re.fullmatch(r"(.+\.attn\.)([qkv])_proj\.(weight|bias)", name):
            apart.setdefault(f"{split[1]}in_proj_{split[3]}", {})[split[2]] = tensor
        else:
            joined[name] = tensor
    for name, parts in apart.items():
        if parts.keys() != set("qkv"):
            raise ModelError(f"{place}: has queries, keys or values alone for {name}")
        joined[name] = torch.cat([parts[one] for one in "qkv"])
    return joined


def _without_prefixes(names: Mapping[str, str]) -> dict[str, str]:
    """For each name the same without what wrapping modules put before it."""
    names = without_wrappers(names)
    if f"text.{TOKEN_EMBEDDING}" in names.values():  # open_clip's CustomTextCLIP
        names = {name: short.removeprefix("text.") for name, short in names.items()}
    return names


def _is_derived(short: str) -> bool:
    return short in OPENAI_MARKS or short.rpartition(".")[2] == "attn_mask"
