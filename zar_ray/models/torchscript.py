"""Reads the tensors of a TorchScript archive without running any of its code.

OpenAI publishes its CLIP weights as TorchScript archives (``ViT-B-16.pt``). ``torch.jit.load`` runs the code inside
such a file; ``torch.load(weights_only=True)`` refuses it. The tensors themselves lie in the archive as plain bytes,
described by a pickle that names a handful of constructors: an unpickler that knows only those reads them safely.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a zip that holds code beside its data)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of every module in a TorchScript archive, by their dotted names, on the CPU.

    Raises:
        ValueError: The archive refers to anything but tensors and plain values, or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        with archive.open(f"{root}data.pkl") as file:
            module = _TensorUnpickler(file, archive, f"{root}data/").load()
    tensors: dict[str, torch.Tensor] = {}
    _collect(module, "", tensors)
    return tensors


class _Module:
    """Stands for any class of the archive: it keeps the attributes, and has no behaviour."""

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, data: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._data = data

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # typed lists and dicts of plain values
            return _first
        raise ValueError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"it holds an unknown kind of data: {kind}")
        content = bytearray(self._archive.read(f"{self._data}{key}"))
        return torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: object) -> torch.Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()


def _first(value: object, *_: object) -> object:
    return value


def _collect(value: object, name: str, tensors: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[name] = value
    elif isinstance(value, _Module):
        for key, inner in getattr(value, "attributes", {}).items():
            _collect(inner, f"{name}.{key}" if name else str(key), tensors)
