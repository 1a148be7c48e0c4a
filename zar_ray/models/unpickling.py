"""Reads PyTorch files without running anything inside them.

A pickle may name any function and have it called. `torch.load(weights_only=True)` calls only those that rebuild
tensors and plain containers. Training scripts put two more harmless things beside their weights: numbers as NumPy
scalars, and the `CfgNode` of yacs, a dictionary of options. Both are let through, under functions of this module:
neither NumPy's own nor yacs' is called, and yacs need not be there.

OpenAI publishes its CLIP weights as TorchScript archives (``ViT-B-16.pt``), whose code ``torch.jit.load`` runs and
which ``torch.load(weights_only=True)`` refuses. The tensors lie there as plain bytes, described by a pickle that names
a handful of constructors: an unpickler that knows only those reads them safely.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from zar_ray.errors import ModelError, reason_of

# Kinds of NumPy numbers, texts and bytes; not "O", which stands for any object.
_PLAIN_KINDS = "biufcSU"
# How the loader's message names what it refuses, without the names it would accept.
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")
_KNOWN = ("collections", "torch", "numpy", "yacs")  # packages of which the loader knows something
_SPARE_BYTES = 2**26
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


def read_pickled(path: Path) -> object:
    """What a file of `torch.save`, old or new, or a TorchScript archive holds, on the CPU.

    Returns:
        The content, of tensors, numbers, texts, and containers of them; a yacs `CfgNode` in it is an `OrderedDict`, a
        NumPy scalar a Python number. Of a TorchScript archive its tensors, by their dotted names.

    Raises:
        ModelError: The file is damaged, refers to any other class or function, which the message names, or claims far
            more than it holds.
    """
    allowed = [
        (_options, "yacs.config.CfgNode"),
        (_number, "numpy.core.multiarray.scalar"),
        (_number, "numpy._core.multiarray.scalar"),
        np.dtype,
        *{type(np.dtype(code)) for code in "?bhilqBHILQefdgFDSU"},
    ]
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # Its pieces may unpack to far more than it is, or share the same bytes.
                _require_backed(path, sum(entry.file_size for entry in archive.infolist()))
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):  # as TorchScript alone has it
                    tensors = _script_tensors(archive)
                    _require_dense(tensors, path)
                    return {name: tensor.clone() for name, tensor in tensors.items()}
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():  # pyright: ignore[reportArgumentType] (pairs are fine)
            warnings.simplefilter("ignore")  # what cannot be read is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
        _require_dense(content, path)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        refused = _refused_name(error, path)
        what = (
            f"refers to {refused}" if refused else "holds something else than tensors and plain values, or is damaged"
        )
        raise ModelError(
            f"{path}: {what}, and is not unpickled for safety; where it came from, save its weights alone with"
            " torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:
        raise ModelError(f"{path}: cannot be read as a checkpoint ({reason_of(error)})") from error
    return content


def _require_dense(content: object, path: Path) -> None:
    """Refuses tensors that are no plain numbers, or whose strides make far more numbers of a file than it holds."""
    waiting, seen, claimed = [content], set[int](), 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple | set):
            waiting += one
        elif isinstance(one, torch.Tensor):
            if one.layout != torch.strided or one.device.type != "cpu" or one.is_quantized or one.is_nested:
                raise ModelError(f"{path}: holds a tensor that is no plain array of numbers")
            claimed += one.numel() * one.element_size()
    _require_backed(path, claimed)


def _require_backed(path: Path, claimed: int) -> None:
    held = path.stat().st_size
    if claimed > 2 * held + _SPARE_BYTES:
        raise ModelError(
            f"{path}: claims to hold {claimed} bytes, and has {held}; it is damaged, or made to fill the memory"
        )


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
        with _pickled(path) as file:
            while True:  # the older format has several in a row
                unknown = (name for name in _names_in(file) if name.partition(".")[0] not in _KNOWN)
                if (name := next(unknown, None)) is not None:
                    return name
    except Exception:  # noqa: BLE001  whatever ends the search
        return None


def _pickled(path: Path) -> IO[bytes]:
    if not zipfile.is_zipfile(path):
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:  # whose entry stays open for itself
        return archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _names_in(file: IO[bytes]) -> Iterator[str]:
    """What a pickle refers to, dotted, in its order; nothing is made of it."""
    texts: list[str] = []
    remembered: dict[object, str] = {}
    for operation, argument, _ in pickletools.genops(file):
        match operation.name:
            case "GLOBAL":
                yield str(argument).replace(" ", ".")
            case "STACK_GLOBAL":
                yield ".".join(texts[-2:])
            case "MEMOIZE":
                remembered[len(remembered)] = texts[-1] if texts else ""
            case "BINGET" | "LONG_BINGET":
                texts.append(remembered.get(argument, ""))
            case kind if "UNICODE" in kind:
                texts.append(str(argument))


def _script_tensors(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
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
        if module == "torch.jit._pickle":  # typed lists and dicts of plain values
            return lambda value, *_: value
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(tuple(size), tuple(stride), offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise ValueError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"it holds an unknown kind of data: {kind}")
        content = bytearray(self._archive.read(f"{self._data}{key}"))
        return torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _collect(value: object, name: str, tensors: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[name] = value
    elif isinstance(value, _Module):
        for key, inner in getattr(value, "attributes", {}).items():
            _collect(inner, f"{name}.{key}" if name else str(key), tensors)
