"""What an error says of the device: that its memory is full, which less work may mend, or that it is lost.

After an illegal access, a failed assertion in a kernel or an error of its memory, a CUDA context answers every later
call with an error; only a new process has a new one. Out of memory is no such thing.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from zar_ray.errors import DeviceLostError, reason_of

_T = TypeVar("_T")

# PyTorch has a class of its own for a full GPU; its allocators of the host, of MPS and of libraries say it in words.
_FULL = re.compile(
    r"out[ _]of[ _]memory|allocate memory|not enough memory|ALLOC(ATION)?_FAILED|invalid buffer size", re.IGNORECASE
)

# What libraries say of a GPU that has no room for what they need of it themselves: cuBLAS cannot make its handle, and
# cuDNN finds no way to compute (PyTorch's own words). Of a lost one they say the same, so that it is asked.
_FULL_OR_LOST = re.compile(
    r"BLAS(LT)?_STATUS_NOT_INITIALIZED|SOLVER_STATUS_NOT_INITIALIZED|unable to find an engine|valid cuDNN algorithm",
    re.IGNORECASE,
)

# Errors of CUDA, and of HIP, that stay (CUDA Runtime API, "Data types used by CUDA Runtime", cudaError).
_STAYS = re.compile(
    r"illegal (memory access|address|instruction)|misaligned address|invalid (program counter|address space)"
    r"|device-side assert|launch failure|launch timed out|hardware stack error|uncorrectable|GPU is lost"
    r"|fallen off the bus|context is destroyed"
    r"|cuda_?error_?(illegal|misaligned|invalid_?(pc|address_?space)|assert|launch_?(failure|failed|timeout)"
    r"|hardware_?stack|ecc|nvlink_?uncorrectable|context_?is_?destroyed)",
    re.IGNORECASE,
)
_OF_A_DEVICE = re.compile(r"(CUDA|HIP|cuDNN|NCCL|cuBLAS)\b.* error|_STATUS_[A-Z]|nccl\w*Error", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on the device or the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    if _FULL.search(said) is not None:
        return True
    if _FULL_OR_LOST.search(said) is None:
        return False
    device = torch.accelerator.current_accelerator(check_available=True)
    return device is None or answers(device)


def is_lost(error: BaseException, device: torch.device) -> bool:
    """Whether a device answers nothing any more after an error; where the error does not say so, it is asked.

    A device that cannot be asked, as an error came of another than the model's, counts as lost.
    """
    if is_out_of_memory(error):
        return False
    told = list(_chain(error))
    if any(isinstance(one, RuntimeError) and _STAYS.search(str(one)) for one in told):
        return True
    if device.type != "cpu":
        return not answers(device)
    return any(
        isinstance(one, torch.AcceleratorError) or (type(one) is RuntimeError and _OF_A_DEVICE.search(str(one)))
        for one in told
        if not is_out_of_memory(one)
    )


def answers(device: torch.device) -> bool:
    """Whether a device computes, after all that it was given before."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


@contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """Turns an error that the device was lost with into one that nothing takes for a video's.

    Raises:
        DeviceLostError: The device was lost; its cause is the error.
    """
    try:
        yield
    except DeviceLostError:
        raise
    except Exception as error:
        if is_lost(error, device):
            raise DeviceLostError(f"{device}: answers nothing any more ({reason_of(error)})") from error
        raise


def within_memory(call: Callable[[], _T]) -> _T | None:
    """What a call returns; None where there was not enough memory, and all that it held is free again."""
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _clear(error)
    # Not before the error itself is gone. PyTorch keeps freed memory in pieces that may fit nothing else.
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    return None


def _clear(error: BaseException) -> None:
    """Empties an error's frames: they hold pixels and activations, as long as anybody holds the error."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came of."""
    seen: set[int] = set()
    following: list[BaseException | None] = [error]
    while following:
        one = following.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            following += [one.__cause__, one.__context__]
            yield one
