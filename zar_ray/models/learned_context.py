"""Learned contexts: the vectors in front of class names as training left them (CoOp: Zhou et al., IJCV 2022).

A context's file is a safetensors file of one float32 tensor, ``context`` (L, W), with one metadata entry,
``zar_ray_context``, of JSON: format version, what training started from, the model that it was learned for, and free
notes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from zar_ray.errors import ModelError, reason_of
from zar_ray.models.formats import own_notes, safetensors_notes
from zar_ray.options.places import AnyFile
from zar_ray.storage import Storage
from zar_ray.untrusted import stand_in

METADATA_KEY = "zar_ray_context"
FORMAT_VERSION = 1
RANDOM = "random"

_TENSOR = "context"


@dataclass(frozen=True, eq=False)
class LearnedContext:
    """Context vectors, and the model that they go with.

    Attributes:
        vectors: float32 (L, W), on the CPU.
        start: The words that training started from, or ``random``.
        model_name: What the model is called that they were learned for.
        model_fingerprint: Its fingerprint.
        notes: What was written down when they were saved, as JSON values.
        place: What a message calls them.
    """

    vectors: torch.Tensor
    start: str
    model_name: str
    model_fingerprint: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    place: str = "learned context"


def save_context(context: LearnedContext, path: AnyFile) -> None:
    """Writes a context's file or object, atomically; its folder is made.

    Raises:
        ValueError: The path does not end in ``.safetensors``.
        RunError: It cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a learned context's file ends in .safetensors")
    about = {
        "format": FORMAT_VERSION,
        "start": context.start,
        "model": {"name": context.model_name, "fingerprint": context.model_fingerprint},
        "notes": dict(context.notes),
    }
    vectors = context.vectors.detach().float().cpu().contiguous()
    content = save({_TENSOR: vectors}, {METADATA_KEY: json.dumps(about, sort_keys=True), "format": "pt"})
    folder, name = Storage.of_file(str(path))
    folder.write(name, content)


def parse_context(content: bytes, place: str) -> LearnedContext:
    """Reads a context from the bytes of its file, which messages call `place`.

    Raises:
        ModelError: It is damaged, or no learned context.
    """
    if (instead := stand_in(content[:512])) is not None:
        raise ModelError(f"{place}: {instead}")
    try:
        tensors = load(content)
        metadata = safetensors_notes(io.BytesIO(content))
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{place}: cannot be read as safetensors ({reason_of(error)})") from error
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"{place}: holds no learned context; make one with zar train --trains context, or give a checkpoint with"
            " --checkpoint"
        )
    try:
        about = own_notes(metadata[METADATA_KEY], FORMAT_VERSION, place)
        vectors, model = tensors[_TENSOR].float(), about["model"]
        if vectors.ndim != 2 or not len(vectors) or not vectors.isfinite().all():
            raise ValueError(f"its vectors are {tuple(vectors.shape)}, or not all finite")
        return LearnedContext(
            vectors, str(about["start"]), str(model["name"]), str(model["fingerprint"]), dict(about["notes"]), place
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{place}: its learned context is damaged ({reason_of(error)})") from error
