"""Files that commands on checkpoints make: not there yet, and whole as soon as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zar_ray.errors import ModelError


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


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A place beside a file or folder to write at; it becomes that when all is written. The folder above is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(target)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)
