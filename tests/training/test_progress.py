"""What a training's first process measures of itself."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zar_ray.training.progress import HISTORY, Meter, TrainingState, _gpu_utilisation


@pytest.mark.parametrize("error", ["NVMLError_NotSupported", "NVMLError_NoPermission"])
def test_a_gpu_that_cannot_be_asked_costs_no_training(monkeypatch, error):
    pynvml = pytest.importorskip("pynvml", reason="NVIDIA's library is not there on this system")

    def refuse(device):
        raise getattr(pynvml, error)

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert _gpu_utilisation(torch.device("cuda")) is None
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 40)
    assert _gpu_utilisation(torch.device("cuda")) == pytest.approx(0.4)


def test_history_goes_on_from_earlier_sessions():
    meter = Meter(TrainingState().history, batch_size=4, workers=1, listener=None)
    assert meter.history().shape == (0, len(HISTORY))
    for step in range(3):
        meter.add(torch.tensor([2.0 + step, 0.5]), 0.1, torch.tensor(3.0))
    first = meter.history()
    assert first[:, 0].tolist() == [2.0, 3.0, 4.0]
    later = Meter(first, batch_size=4, workers=1, listener=None)
    later.add(torch.tensor([9.0, 1.0]), 0.2, torch.tensor(1.0))
    assert len(later.history()) == 4
    assert torch.equal(later.history()[:3], first)
    assert later.history()[3].tolist() == pytest.approx([9.0, 1.0, 0.2, 1.0])


class AmdSmiException(Exception):  # noqa: N818  as AMD's package calls it
    pass


@pytest.mark.parametrize(
    "error",
    [
        # PyTorch for AMD's GPUs, without the package that asks them, with one that finds no library, and with its own.
        ModuleNotFoundError("amdsmi does not seem to be installed or it can't be imported."),
        RuntimeError("amdsmi driver can't be loaded, requires >=ROCm6.0 installation"),
        AmdSmiException("busy"),
    ],
)
def test_a_gpu_of_amd_without_its_package_costs_no_training(monkeypatch, error):
    def refuse(device):
        raise error

    monkeypatch.setitem(sys.modules, "amdsmi", SimpleNamespace(AmdSmiException=AmdSmiException))
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert _gpu_utilisation(torch.device("cuda")) is None


class NoFloat64(TorchDispatchMode):
    """A device without float64, as Apple's GPUs: what is there is tagged by being fake."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and one.device.type == "cuda":
                assert one.dtype != torch.float64, f"{function} makes float64 on the device"
        return result


def test_the_history_needs_no_float64_of_the_device():
    sent = []
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
        meter = Meter(TrainingState().history, batch_size=4, workers=1, listener=None)
        means, norm = torch.ones(2, device="cuda"), torch.ones((), device="cuda")
        meter.add(means, 0.1, norm)
        history = meter.history()
        assert (history.device.type, history.dtype, history.shape) == ("cpu", torch.float64, (1, len(HISTORY)))
        assert meter._steps[0].device.type == "cuda"
        # The means that are sent; the numbers of fake tensors cannot be read.
        meter._listener = type("Queue", (), {"put": sent.append})()
        with pytest.raises(DataDependentOutputException):
            meter.send()
