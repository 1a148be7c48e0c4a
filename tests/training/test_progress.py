"""What a training's first process measures of itself."""

import pytest
import torch

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
