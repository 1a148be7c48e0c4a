"""Mixtures of two checkpoints, written where every node can read them."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from zar_ray.errors import RunError
from zar_ray.models.merging import merge_checkpoints
from zar_ray.storage import Storage
from zar_ray.study.axes import Mixture

FOLDER = "checkpoints"
"""Folder beside the runs that holds mixtures."""


def place_of(mixture: Mixture, output: str) -> Path:
    """Where a mixture's file lies: below the output, or where that is no local folder beside its second checkpoint."""
    root = Storage(output)
    return (Path(root.location) / FOLDER if root.is_local else mixture.second.parent) / mixture.name


def write_mixture(mixture: Mixture, target: Path) -> None:
    """Writes a mixture in place of one that an earlier session left: it is the same, or its sources have changed.

    Raises:
        ModelError: The two checkpoints cannot be mixed.
        RunError: It cannot be written.
    """
    unfinished = target.parent / f".{target.stem}.{uuid.uuid4().hex}"
    try:
        unfinished.mkdir(parents=True)
        # What the second checkpoint's pixels are, which was trained last, the mixtures see too.
        sources, shares = (mixture.first, mixture.second), (1 - mixture.share, mixture.share)
        merge_checkpoints(sources, shares, unfinished / target.name, pixels_of=mixture.second)
        (unfinished / target.name).replace(target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
