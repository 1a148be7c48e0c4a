"""The device that a model runs on: which one is meant, and what stands in its way on this machine."""

from __future__ import annotations

import os
from typing import Any

import torch

from zar_ray.errors import ModelError, reason_of

# PyTorch's wheels for a driver of an older CUDA, by the names of their indexes.
_OLDER_WHEELS = {12: "cu126, cu128 or cu129"}
# Headers would be compiled ahead, which takes most of half a minute and pays with the second function alone.
_IN_A_SECOND: dict[str, Any] = {"cpp_cache_precompile_headers": False}
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_HIDDEN = (
    "",
    "-1",
    "NoDevFiles",
)  # a first one of these leaves no GPU (CUDA C++ Programming Guide, "CUDA environment")


def pick_device(device: torch.device | str) -> torch.device:
    """The device an option means; ``auto`` is the first GPU where there is one, else the CPU.

    A GPU that PyTorch cannot use is not passed over for the CPU: that would be slow without a word.

    Raises:
        ModelError: The device is unknown, not there, or PyTorch cannot use it.
    """
    if device == "auto":
        if (problem := unusable_gpu()) is not None:
            raise ModelError(f"device auto: {problem}")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise ModelError(f'device "{device}" is unknown; use auto, cpu or cuda') from None
    if picked.type in ("cpu", "meta"):
        return picked
    if picked.type != "cuda":
        own = torch.accelerator.current_accelerator(check_available=True)
        if own is None or own.type != picked.type:
            raise ModelError(f"device {device}: there is none that PyTorch can use; choose --device cpu")
    elif not torch.cuda.is_available():
        problem = unusable_gpu() or "there is no GPU that PyTorch can use; choose --device cpu"
        raise ModelError(f"device {device}: {problem}")
    elif (picked.index or 0) >= (count := torch.cuda.device_count()):
        raise ModelError(f"device {device}: GPUs are numbered from 0, and there are {count}")
    return picked


def unusable_gpu() -> str | None:
    """Why PyTorch cannot use this machine's NVIDIA GPU, with a way out, as one line.

    Returns:
        None where it can, where there is no GPU, and where ``CUDA_VISIBLE_DEVICES`` hides all.
    """
    visible = os.environ.get(_VISIBLE)
    if torch.cuda.is_available() or (visible is not None and visible.partition(",")[0].strip() in _HIDDEN):
        return None
    found = _driver()
    if found is None:
        return None
    (gpu, driver_cuda), own = found, torch.version.cuda
    try:
        torch.cuda.init()
        reason = "it finds no GPU"
    except (RuntimeError, AssertionError) as error:
        reason = reason_of(error).partition(". ")[0]
    built = "without CUDA" if own is None else f"for CUDA {own}"
    ways = ["choose --device cpu"]
    if own is not None and driver_cuda < int(own.partition(".")[0]):
        wheels = _OLDER_WHEELS.get(driver_cuda)
        ways = [
            "install a newer driver",
            *([f"PyTorch's wheels {wheels} (docs/installation.md)"] if wheels else []),
            *ways,
        ]
    elif own is None:
        ways = ["install PyTorch's wheels for CUDA (docs/installation.md)", *ways]
    elif visible is not None:
        # A number or a UUID of another machine's, or of a part of a GPU that is no more, hides all from there on.
        ways = [f"see whether {_VISIBLE}, {visible!r}, names one that is there", *ways]
    return f"{gpu}, and PyTorch, built {built}, cannot use it ({reason}); {', or '.join(ways)}"


def _driver() -> tuple[str, int] | None:
    """This machine's first NVIDIA GPU and its driver, as a message shows them, and the driver's major CUDA version.

    None where the driver knows of no GPU, or there is no driver.
    """
    try:
        import pynvml
    except ModuleNotFoundError:  # there is none for this system
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        # A driver that was updated under a running kernel; otherwise there is none, whatever else is installed.
        mixed = error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH  # type: ignore[attr-defined]
        return (f"there is an NVIDIA GPU, whose driver does not answer ({error})", 0) if mixed else None
    try:
        if not pynvml.nvmlDeviceGetCount():
            return None
        version, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion_v2()
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError as error:
        return f"there is an NVIDIA GPU that does not answer ({error})", 0
    finally:
        pynvml.nvmlShutdown()
    return f"there is an {name} with driver {version} (CUDA {cuda // 1000}.{cuda % 1000 // 10})", cuda // 1000


def require_compiler(device: torch.device) -> None:
    """Compiles a trivial function, as ``--compile`` has the image encoder compiled, before any video depends on it.

    On the CPU that takes a C++ compiler, on a GPU a C compiler and Triton, and for both Python's headers. Nothing that
    was compiled before is used, so that it is tried indeed; on a CPU that takes up to a quarter of a minute.

    Raises:
        ModelError: It cannot be compiled.
    """
    from torch._inductor.utils import fresh_cache

    problem = None
    with fresh_cache():
        try:
            torch.compile(_trivial, dynamic=False, options=_IN_A_SECOND)(torch.ones(8, device=device))
        except Exception as error:  # noqa: BLE001  a compiler, its libraries or the GPU fail in any way
            problem = reason_of(error).partition(" Set TORCHDYNAMO")[0]
    if problem is not None:
        needed = "a C compiler and Triton" if device.type == "cuda" else "a C++ compiler, such as g++,"
        raise ModelError(
            f"--compile: PyTorch cannot compile for {device.type} here ({problem}); install {needed} and Python's"
            " headers on every node, or leave --compile out"
        )


def _trivial(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
