"""Memory that runs out, or a device that is lost, at any one of PyTorch's operations; a test can fill no GPU."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Refusing(TorchDispatchMode):
    """Raises in the first operation, by its number, that takes memory; or in all from there on.

    Those that look at what is there, or write to it, take none.
    """

    def __init__(self, at=0, error=None, forever=False):
        super().__init__()
        self.at, self.forever, self.count, self.raised = at, forever, 0, False
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        takes = not func.is_view and func not in (torch.ops.aten.copy_.default, torch.ops.aten.detach.default)
        if 0 < self.at <= self.count and takes and (self.forever or not self.raised):
            self.raised = True
            raise self.error
        return func(*args, **(kwargs or {}))
