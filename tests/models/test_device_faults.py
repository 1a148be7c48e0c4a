"""What errors say of a device, and that what ran out of memory is free before anything is tried again."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from zar_ray.errors import DeviceLostError, VideoError
from zar_ray.models import device_faults
from zar_ray.models.device_faults import answers, is_lost, is_out_of_memory, watched, within_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

UNSURE = [  # what libraries that find no room say, and those that find no device
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_NOT_INITIALIZED when calling `hipblasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_NOT_INITIALIZED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
]
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB"),
    MemoryError(),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.91 GB, other allocations: 1.2 GB)"),
    RuntimeError("Invalid buffer size: 74.51 GiB"),  # of MPS
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    *UNSURE,
]
LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),  # PyTorch before 2.9
    RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA driver error: CUDA_ERROR_ILLEGAL_ADDRESS"),
    RuntimeError("HIP error: an illegal memory access was encountered"),
    RuntimeError("Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost."),
]
ASKED = [
    torch.AcceleratorError("CUDA error: invalid argument"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("NCCL Error 1: unhandled cuda error"),
]
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("cuDNN is not available: CUDNN_HEADERS are missing"),
    KeyError("two"),
    VideoError("out of memory encoding one image by itself"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_memory_is_told_from_a_lost_device(error):
    assert is_out_of_memory(error)
    assert not is_lost(error, CPU)


@pytest.mark.parametrize("error", UNSURE, ids=str)
@pytest.mark.parametrize("alive", [True, False])
def test_what_libraries_say_of_both_is_asked(monkeypatch, error, alive):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: CUDA)
    monkeypatch.setattr(device_faults, "answers", lambda device: alive)
    assert is_out_of_memory(error) == alive
    assert is_lost(error, CUDA) != alive

    def call():
        raise error

    if alive:
        assert within_memory(call) is None
    else:
        with pytest.raises(DeviceLostError), watched(CUDA):
            within_memory(call)


@pytest.mark.parametrize("error", LOST, ids=str)
def test_errors_that_stay_are_known_by_their_words(error, monkeypatch):
    monkeypatch.setattr(device_faults, "answers", lambda device: True)
    assert not is_out_of_memory(error)
    assert is_lost(error, CPU)
    assert is_lost(error, CUDA)


@pytest.mark.parametrize("error", [*ASKED, *OTHER], ids=str)
def test_after_any_other_the_device_is_asked(error, monkeypatch):
    for alive in (True, False):
        monkeypatch.setattr(device_faults, "answers", lambda device, alive=alive: alive)
        assert is_lost(error, CUDA) != alive
    assert is_lost(error, CPU) == (error in ASKED), "what is no device of the model's cannot be asked"


def test_what_an_error_came_of_counts():
    error = ValueError("the norms could not be put back")
    error.__context__ = LOST[0]
    assert is_lost(error, CPU)
    error.__context__ = error.__cause__ = FULL[2]
    assert not is_lost(error, CPU)


@pytest.mark.parametrize(("error", "alive"), [(None, True), (LOST[0], False), (FULL[0], True)])
def test_a_device_that_computes_or_is_full_answers(monkeypatch, error, alive):
    def zeros(*_, **__):
        if error is not None:
            raise error
        return torch.ones(1)

    monkeypatch.setattr(torch, "zeros", zeros)
    assert answers(CUDA) == alive


def test_only_a_lost_device_is_made_another_error():
    for error in (*OTHER, FULL[0]):
        with pytest.raises(type(error)), watched(CPU):
            raise error
    with (
        pytest.raises(DeviceLostError, match=r"cpu: answers nothing any more \(CUDA error: an illegal") as caught,
        watched(CPU),
    ):
        raise LOST[0]
    assert caught.value.__cause__ is LOST[0]
    with pytest.raises(DeviceLostError) as again, watched(CPU):
        raise caught.value
    assert again.value is caught.value


@pytest.mark.parametrize("error", FULL[:3], ids=str)
def test_what_ran_out_of_memory_is_free_at_once(monkeypatch, error):
    held, alive_then = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive_then.extend(one() is not None for one in held))

    def inner(pixels):
        activations = pixels + 1
        held.extend([weakref.ref(pixels), weakref.ref(activations)])
        raise error

    def outer():
        try:
            inner(torch.ones(3))
        except (RuntimeError, MemoryError) as cause:
            kept = ValueError("wrapped")  # a cycle, as a frame has its own error
            raise error from kept.with_traceback(cause.__traceback__)

    gc.collect()
    gc.disable()
    try:
        assert within_memory(outer) is None
        assert alive_then == [False, False]
    finally:
        gc.enable()
        error.__cause__ = error.__context__ = error.__traceback__ = None


def test_other_errors_pass():
    for error in (*OTHER, LOST[0]):
        with pytest.raises(type(error)):
            within_memory(lambda error=error: (_ for _ in ()).throw(error))
    assert within_memory(lambda: 3) == 3
