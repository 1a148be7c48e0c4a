"""How exactly float32 is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product

import torch

# PyTorch's switches of float32, by backend and operation: those that others inherit from first. They are set by
# the calls behind `torch.backends`: passes are many, and its own of mkldnn sets another one (PyTorch 2.15).
_SWITCHES = (
    *product(("generic", "cuda", "mkldnn"), ("all",)),
    *product(("cuda", "mkldnn"), ("matmul", "conv", "rnn")),
)
_read, _write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter


@contextmanager
def exact_float32() -> Iterator[None]:
    """Computes float32 as float32: no TF32 or bfloat16 inside, in matrices, convolutions and recurrent layers.

    The first AdamW step is nearly lr·sign(gradient), so a gradient of TF32's three digits would move the context by
    whole steps (DESIGN.md, "ZAR, exactly", 9). cuDNN uses TF32 unless told otherwise.

    PyTorch's older switches are set beside the new ones: where the two disagree it raises as soon as it is asked, as
    its compiler does. Both are put back at the end, whatever they were.
    """
    cudnn_tf32 = _cudnn_tf32()
    own = []
    for switch in _SWITCHES:
        own.append(_read(*switch))
        _write(*switch, "none")  # one that says "none" would show what it inherits
    for switch in _SWITCHES:
        _write(*switch, "ieee")
    if cudnn_tf32 is None:  # now all are exact, so that it can be read where it says so too
        cudnn_tf32 = _cudnn_tf32() is None
    products = torch._C._get_float32_matmul_precision()
    if cudnn_tf32:
        torch._C._set_cudnn_allow_tf32(False)
    if products != "highest":
        torch._C._set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch._C._set_cudnn_allow_tf32(cudnn_tf32)
        torch._C._set_float32_matmul_precision(products)
        for switch, value in zip(_SWITCHES, own, strict=True):
            _write(*switch, value)


def _cudnn_tf32() -> bool | None:
    """The older switch of cuDNN; None where it cannot be read, as it contradicts the new ones."""
    try:
        return torch._C._get_cudnn_allow_tf32()
    except RuntimeError:
        return None


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes in the weights' own type, whatever mixed precision is around it, and float32 exactly.

    The device ``meta``, which computes nothing, has no mixed precision.
    """
    with nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False), exact_float32():
        yield
