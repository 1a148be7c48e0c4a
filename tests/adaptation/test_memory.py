from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from zar_ray.adaptation.memory import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_peak_is_seen_although_it_is_over_and_forgotten_at_the_next_beginning():
    memory = PeakMemory(torch.device("cpu"))
    memory.begin()
    before = memory.peak()
    if before is None:
        pytest.skip("this system does not let a process reset its peak")
    block = np.ones(64_000_000, np.uint8)
    del block
    peak = memory.peak()
    assert before + 50e6 < peak < before + 100e6
    memory.begin()
    assert memory.peak() < before + 30e6
