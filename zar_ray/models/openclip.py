"""open_clip, without the libraries that it loads for towers which hardly any CLIP has.

Whatever is used of open_clip is taken from here. Every process that computes would otherwise spend seconds of a CPU at
its start, and memory, on Hugging Face's text towers and uploads, timm's image towers and PyTorch's compiler.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from types import ModuleType
from typing import Any

import torch

__all__ = [
    "HF_CONFIG_NAME",
    "HF_SAFE_WEIGHTS_NAME",
    "HF_WEIGHTS_NAME",
    "CLIPTextCfg",
    "CLIPVisionCfg",
    "HFTokenizer",
    "LayerNorm",
    "LayerNormFp32",
    "QuickGELU",
    "ResidualAttentionBlock",
    "SimpleTokenizer",
    "Transformer",
    "VisionTransformer",
    "download_pretrained",
    "open_clip",
]

_COMPILER = "torch._dynamo.utils"
_UPLOADS = "open_clip.push_to_hf_hub"


class _Absent:
    """Has imports of this thread find no package of these names, as where they are not installed."""

    def __init__(self, *names: str) -> None:
        self._names, self._thread = names, get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """See `importlib.abc.MetaPathFinder`."""
        if name in self._names and get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is loaded where a model needs it", name=name)


class _Compiler(ModuleType):
    """Stands for a module of PyTorch's compiler, of which torchvision wants a function at hand; the rest is its own."""

    def is_compile_supported(self, device_type: Any) -> bool:
        """What the compiler says, which is loaded by then."""
        return _loaded_compiler().is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of all modules, as by inspect
            raise AttributeError(name)
        return getattr(_loaded_compiler(), name)


def _loaded_compiler() -> ModuleType:
    _forget_stand_in()
    return importlib.import_module(_COMPILER)


def _forget_stand_in() -> None:
    if isinstance(sys.modules.get(_COMPILER), _Compiler):
        del sys.modules[_COMPILER]


def _uploads() -> ModuleType:
    """Stands for open_clip's module of uploads, which loads the hub's whole interface, until one is asked for."""
    module = ModuleType(_UPLOADS)
    for name in ("push_pretrained_to_hf_hub", "push_to_hf_hub"):
        setattr(module, name, partial(_upload, name))
    return module


def _upload(name: str, *args: Any, **kwargs: Any) -> None:
    function = getattr(importlib.import_module(_UPLOADS), name)
    setattr(open_clip, name, function)
    function(*args, **kwargs)


@contextmanager
def _lightly() -> Iterator[None]:
    absent: Any = _Absent("timm", "transformers")
    sys.meta_path.insert(0, absent)
    sys.modules.setdefault(_COMPILER, _Compiler(_COMPILER))
    sys.modules[_UPLOADS] = _uploads()
    try:
        yield
    finally:
        sys.meta_path.remove(absent)
        del sys.modules[_UPLOADS]
        _forget_stand_in()


def _load_when_made(module: str, name: str) -> None:
    """Has a kind of tower be loaded, with the library that it is of, where a model is built that has it."""

    def make(*args: Any, **kwargs: Any) -> torch.nn.Module:
        # What its library makes at its start is to last, and the model may be built without content.
        with torch.device("cpu"):
            made = getattr(importlib.reload(sys.modules[module]), name)
        setattr(open_clip.model, name, made)
        return made(*args, **kwargs)

    setattr(open_clip.model, name, make)


if "open_clip" in sys.modules:  # and whatever it loads
    import open_clip
else:
    with _lightly():
        import open_clip
    _load_when_made("open_clip.timm_model", "TimmModel")
    _load_when_made("open_clip.hf_model", "HFTextEncoder")

from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME  # noqa: E402
from open_clip.model import CLIPTextCfg, CLIPVisionCfg  # noqa: E402
from open_clip.pretrained import download_pretrained  # noqa: E402
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer  # noqa: E402
from open_clip.transformer import (  # noqa: E402
    LayerNorm,
    LayerNormFp32,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
