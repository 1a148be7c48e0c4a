"""Reads PyTorch files without running anything inside them.

A pickle may name any function and have it called. `torch.load(weights_only=True)` calls only those that rebuild
tensors and plain containers. Training scripts put two more harmless things beside their weights: numbers as NumPy
scalars, and the `CfgNode` of yacs, a dictionary of options. Both are let through, under functions of this module:
neither NumPy's own nor yacs' is called, and yacs need not be there.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from zar_ray.errors import ModelError, reason_of

# Kinds of NumPy numbers, texts and bytes; not "O", which stands for any object.
_PLAIN_KINDS = "biufcSU"
# How the loader's message names what it refuses, without the names it would accept.
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")
_DAMAGE = (ValueError, RuntimeError, EOFError, KeyError, IndexError, OSError, zipfile.BadZipFile, AttributeError)


def read_pickled(path: Path) -> object:
    """What a file of `torch.save` holds: tensors, numbers, texts, and containers of them, on the CPU.

    Args:
        path: A file in PyTorch's zip format or its older one.

    Returns:
        The content; a yacs `CfgNode` in it is an `OrderedDict`, a NumPy scalar a Python number.

    Raises:
        ModelError: The file is damaged, or refers to any other class or function, which the message names.
    """
    allowed = [
        (_options, "yacs.config.CfgNode"),
        (_number, "numpy.core.multiarray.scalar"),
        (_number, "numpy._core.multiarray.scalar"),
        np.dtype,
        *{type(np.dtype(code)) for code in "?bhilqBHILQefdgFDSU"},
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():  # pyright: ignore[reportArgumentType] (pairs are fine)
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what cannot be read is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _refused_name(error, path)
        what = (
            f"refers to {refused}" if refused else "holds something else than tensors and plain values, or is damaged"
        )
        raise ModelError(
            f"{path}: {what}, and is not unpickled for safety; where it came from, save its weights alone with"
            " torch.save(model.state_dict(), FILE)"
        ) from error
    except (*_DAMAGE, TypeError, AssertionError) as error:
        raise ModelError(f"{path}: cannot be read as a checkpoint ({reason_of(error)})") from error


class _options:  # noqa: N801 (it stands for a constructor)
    """Makes what a `CfgNode` becomes: the loader fills an `OrderedDict` and lets it have attributes."""

    def __new__(cls, *content: Any) -> OrderedDict[str, Any]:  # type: ignore[misc]
        return OrderedDict(*content)


def _number(dtype: np.dtype, content: object = b"") -> object:
    """A NumPy scalar's value, as Python's."""
    # protocol 2 has no bytes: they come as a text of Latin letters where the loader decodes them
    raw = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(dtype, np.dtype) or dtype.kind not in _PLAIN_KINDS or not isinstance(raw, bytes):
        raise pickle.UnpicklingError(f"a NumPy scalar of {dtype} is no plain value")
    return np.frombuffer(raw, dtype=dtype, count=1)[0].item()


def _refused_name(error: Exception, path: Path) -> str | None:
    """The class or function that made the loader refuse; None where it was something else."""
    named = _REFUSED.search(str(error))
    if named:
        return named[1]
    # Newer pickle protocols stop the loader before it comes to a name.
    try:
        for file in _pickles(path):
            while True:  # the older format has several in a row
                _NameFinder(file).load()
    except _FoundName as found:
        return str(found)
    except (*_DAMAGE, TypeError, pickle.UnpicklingError):
        return None
    return None


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as file:
                    yield file


class _FoundName(Exception):  # noqa: N818 (it is what was looked for)
    pass


class _Inert(dict):
    """Stands for what the loader knows, and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


class _NameFinder(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("collections", "torch", "numpy", "yacs"):
            return _Inert
        raise _FoundName(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return _Inert()
