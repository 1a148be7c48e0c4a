"""How exactly float32 is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Computes float32 products on a GPU as float32: TF32 is off inside, for matrices and convolutions.

    The first AdamW step is nearly lr·sign(gradient), so a gradient of TF32's three digits would move the context by
    whole steps (DESIGN.md, "ZAR, exactly", 9). cuDNN's convolutions use TF32 unless told otherwise.
    """
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes in the weights' own type, whatever mixed precision is around it, and float32 exactly.

    The device ``meta``, which computes nothing, has no mixed precision.
    """
    with nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False), exact_float32():
        yield
