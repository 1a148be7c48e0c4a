from __future__ import annotations

import mmap
import sys

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
    # Pages of its own: an array may lie in memory that earlier tests have left to the process.
    with mmap.mmap(-1, 64_000_000) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    peak = memory.peak()
    assert before + 50e6 < peak < before + 100e6
    memory.begin()
    assert memory.peak() < before + 30e6
