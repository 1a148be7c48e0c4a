"""How much memory a piece of work needs at most."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5): the peak resident set size becomes the present one


class PeakMemory:
    """The most memory in use since `begin`: on a GPU what PyTorch has allocated there, else what this process holds.

    Both include what was there before, such as the model: they say what the work needs room for.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Where it cannot be reset, the peak would be of the process's whole life.
        self._tells = device.type == "cuda" or os.access(_RESET, os.W_OK)

    def begin(self) -> None:
        """Forgets what was before."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._tells:
            _RESET.write_text(_RESET_PEAK)

    def peak(self) -> int | None:
        """Bytes; None where the system does not tell (other than Linux)."""
        if not self._tells:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
