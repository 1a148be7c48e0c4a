"""What commands on checkpoints take and make: models named in one word, and files that are not there yet."""

from __future__ import annotations

import os
from pathlib import Path

from zar_ray.errors import ModelError
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import RANDOM, load_model
from zar_ray.models.options import ModelOptions


def load_source(source: str | os.PathLike[str]) -> ClipModel:
    """Loads a checkpoint file, or open_clip's pretrained weights, on the CPU.

    Args:
        source: A file that `load_model` reads, or an open_clip ``NAME:TAG`` such as ``ViT-B-16-quickgelu:openai``.

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


def free_path(output: str | os.PathLike[str], *endings: str) -> Path:
    """A path that may be written to, so that no earlier result is lost.

    Args:
        output: The path.
        endings: What it may end in; without any, in anything.

    Raises:
        ModelError: It ends in something else, or there is something already.
    """
    path = Path(output)
    if endings and path.suffix not in endings:
        raise ModelError(f"{path}: should end in {' or '.join(endings)}")
    if path.exists():
        raise ModelError(f"{path}: is there already; name another with --output, or remove it")
    return path
