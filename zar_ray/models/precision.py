"""How exactly float32 is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product

import torch
from torch.backends import _FP32Precision

# PyTorch's switches of float32, those that others inherit from first.
_SWITCHES = tuple(
    _FP32Precision(*place)
    for place in (
        *product(("generic", "cuda", "mkldnn"), ("all",)),
        *product(("cuda", "mkldnn"), ("matmul", "conv", "rnn")),
    )
)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Computes float32 as float32: no TF32 or bfloat16 inside, in matrices, convolutions and recurrent layers.

    The first AdamW step is nearly lr·sign(gradient), so a gradient of TF32's three digits would move the context by
    whole steps (DESIGN.md, "ZAR, exactly", 9). cuDNN uses TF32 unless told otherwise.

    PyTorch's older switches are set beside the new ones: where the two disagree it raises as soon as it is asked, as
    its compiler does. Both are put back at the end, whatever they were.
    """
    own = _own_settings()
    for switch in _SWITCHES:
        switch.fp32_precision = "ieee"
    products, cudnn_tf32 = torch.get_float32_matmul_precision(), _cudnn_tf32()
    torch._C._set_cudnn_allow_tf32(False)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch._C._set_cudnn_allow_tf32(cudnn_tf32)
        torch.set_float32_matmul_precision(products)
        for switch, value in zip(_SWITCHES, own, strict=True):
            switch.fp32_precision = value


def _own_settings() -> list[str]:
    """What each switch says itself, and clears it: one that says "none" would show what it inherits."""
    own = []
    for switch in _SWITCHES:
        own.append(switch.fp32_precision)
        switch.fp32_precision = "none"
    return own


def _cudnn_tf32() -> bool:
    """The older switch of cuDNN; it cannot be read where it contradicts the new ones, which are all exact here."""
    try:
        return torch._C._get_cudnn_allow_tf32()
    except RuntimeError:
        return True


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes in the weights' own type, whatever mixed precision is around it, and float32 exactly.

    The device ``meta``, which computes nothing, has no mixed precision.
    """
    with nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False), exact_float32():
        yield
