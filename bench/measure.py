"""Seconds and their percentiles, memory, the machine's matrix products and a call's share in them."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from zar_ray.models.precision import exact_float32

_STATUS = Path("/proc/self/statm")
_SAMPLE_SECONDS = 0.005
# Rows, inner size and columns of the products that are tried: large squares, and the MLP of an image encoder's pass.
_CPU_PRODUCTS = ((2048, 2048, 2048), (3200, 768, 3072), (3200, 3072, 768))
_GPU_PRODUCTS = ((8192, 8192, 8192), (16384, 8192, 8192), (51200, 768, 3072), (51200, 3072, 768))
# glibc's mallopt(3): keys, and the largest values they take.
_M_TRIM_THRESHOLD, _KEPT_IN_ALL = -1, 2**31 - 1
_M_MMAP_THRESHOLD, _LARGEST_KEPT = -3, 2**25
_CPU_TRIES, _GPU_TRIES = 5, 20
# Operations whose own time is that of matrix products: attention among them, and the patches' convolution.
_PRODUCT_OPERATIONS = {
    *("mm", "addmm", "bmm", "baddbmm", "linear", "_addmm_activation", "mkldnn_linear"),
    *("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "_slow_conv2d_forward"),
    *("_native_multi_head_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_flash_attention", "_flash_attention_forward"),
    *("_scaled_dot_product_efficient_attention", "_efficient_attention_forward"),
    *("_scaled_dot_product_cudnn_attention", "_cudnn_attention_forward"),
}


class Stopwatch:
    """Wall seconds between laps, with all work on the device done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.lap()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        synchronise(self._device)
        now = time.perf_counter()
        seconds = now - getattr(self, "_last", now)
        self._last = now
        return seconds


class PeakMemory:
    """The most memory a block of code held above what was held before it; a context manager.

    On a GPU it is what PyTorch allocated there; on a CPU the process's resident memory, sampled in a thread.

    Args:
        device: Whose memory.
        watch: Whether to look at all; the block is left alone otherwise.

    Attributes:
        peak: Bytes; None where the system does not tell, or nobody looked.
    """

    def __init__(self, device: torch.device, watch: bool = True) -> None:
        self._device = device
        self._watch = watch
        self._before = 0
        self._most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak: int | None = None

    def __enter__(self) -> PeakMemory:
        if not self._watch:
            return self
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            _return_freed_memory()
            self._before = self._most = _resident_bytes() or 0
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._watch:
            return
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device) - self._before
            return
        # What is still held now counts, however short the block was.
        self._most = max(self._most, _resident_bytes() or 0)
        self._done.set()
        self._thread.join()
        self.peak = self._most - self._before if _resident_bytes() is not None else None

    def _sample(self) -> None:
        while True:
            self._most = max(self._most, _resident_bytes() or 0)
            if self._done.wait(_SAMPLE_SECONDS):
                return


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that a share of all values stays below, between neighbours in proportion; None of no values."""
    return float(np.quantile(values, share)) if values else None


def synchronise(device: torch.device) -> None:
    """Waits for a GPU's work; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of the fastest of several large matrix products of a type; float32 without TF32."""
    on_gpu = device.type == "cuda"
    best = 0.0
    for rows, inner, columns in _GPU_PRODUCTS if on_gpu else _CPU_PRODUCTS:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(columns, inner, device=device).to(dtype).T
        with torch.inference_mode(), exact_float32():
            torch.mm(left, right)
            watch = Stopwatch(device)
            for _ in range(_GPU_TRIES if on_gpu else _CPU_TRIES):
                torch.mm(left, right)
                best = max(best, 2 * rows * inner * columns / watch.lap())
    return best


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call's matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        call()
    return counter.get_total_flops()


def product_share(call: Callable[[], Any], device: torch.device) -> float:
    """Share of a call's time that its matrix products, convolutions and attention take, by PyTorch's profiler."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes its own comings and goings to the terminal
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        call()
        synchronise(device)
    total = products = 0.0
    for event in profiler.key_averages():
        seconds = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if device.type == "cuda" and not event.key.startswith("aten::"):
            continue  # kernels by their own names: the operations that started them have their time already
        total += seconds
        if event.key.removeprefix("aten::") in _PRODUCT_OPERATIONS:
            products += seconds
    return products / total if total else float("nan")


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on besides the options; neither the machine's name nor paths."""
    import open_clip

    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "gpu": None,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _resident_bytes() -> int | None:
    try:
        return int(_STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def keep_freed_memory() -> None:
    """Lets the process keep what it frees, up to some gigabytes, instead of asking the system for it again.

    glibc would otherwise give back and fetch anew the larger tensors of every layer. That costs the reference, whose
    layers make more of them, a tenth of its time or more, which says nothing about the loop.
    """
    adjust = _c_function("mallopt")
    if adjust is not None:
        adjust(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        adjust(_M_TRIM_THRESHOLD, _KEPT_IN_ALL)


def _return_freed_memory() -> None:
    """Gives back what the allocator keeps of freed memory, which would hide the next block's need."""
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


def _c_function(name: str) -> Any:
    """A function of the C library; None where it has none of that name."""
    library = ctypes.util.find_library("c")
    return getattr(ctypes.CDLL(library), name, None) if library else None
