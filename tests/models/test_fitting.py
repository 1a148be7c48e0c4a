"""The size of passes, where memory runs out."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.models.fitting import Fitting


class Memory:
    """Squares numbers, as many of `size` each at once as there is room for."""

    def __init__(self, room, size=1):
        self.room, self.size, self.passes, self.failed = room, size, [], 0

    def __call__(self, items):
        if len(items) * self.size > self.room:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.passes.append(len(items))
        return [item**2 for item in items]


@given(
    count=st.integers(0, 60),
    asked=st.integers(1, 70),
    room=st.integers(1, 300),
    size=st.integers(1, 9),
    again=st.booleans(),
)
def test_each_item_passes_once_in_order_and_what_fits_is_remembered(count, asked, room, size, again):
    fitting, memory = Fitting("things"), Memory(room, size)
    items = list(range(count))
    for _ in range(1 + again):
        taken = list(fitting.each(items, asked, memory, size))
        assert [item for part, _ in taken for item in part] == items
        for part, made in taken:
            assert (made is None) == (size > room)
            assert made is None or made == [item**2 for item in part]
            assert made is not None or len(part) == 1
    assert all(one * size <= max(asked, size) for one in memory.passes)
    if size <= room:
        failed = memory.failed
        assert failed <= 7, "only halves that do not fit fail, and each once"
        list(fitting.each(items, asked, memory, size))
        assert memory.failed == failed


@pytest.mark.parametrize(("room", "expected"), [(64, 64), (63, 32), (9, 8), (3, 2), (1, 1)])
def test_it_is_halved_and_said_once(caplog, room, expected):
    fitting, memory = Fitting("images a pass", "--encoder-batch {}"), Memory(room)
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        list(fitting.each(range(200), 64, memory))
    assert fitting.of(64) == expected
    assert fitting.of(1) == 1
    assert set(memory.passes[:-1]) <= {expected, 200 % expected}
    said = [
        f"out of memory with 64 images a pass: goes on with {expected}; --encoder-batch {expected} begins with them"
    ]
    assert caplog.messages == (said if expected < 64 else [])


def test_what_does_not_fit_at_all_leaves_the_size_as_it_was(caplog):
    fitting, memory = Fitting("images a pass"), Memory(0)
    assert list(fitting.each([1, 2], 8, memory)) == [([1], None), ([2], None)]
    assert fitting.of(8) == 8
    assert not caplog.messages
    memory.room = 8
    assert [made for _, made in fitting.each(range(16), 8, memory)] == [
        [n**2 for n in range(8)],
        [n**2 for n in range(8, 16)],
    ]


def test_no_size_below_the_least_is_tried():
    tried = []

    def full(size):
        tried.append(size)
        raise MemoryError

    assert Fitting("videos").once(20, full, least=4) is None
    assert tried == [20, 10, 5, 4]
    tried.clear()
    assert Fitting("videos").once(6, full, least=6) is None
    assert tried == [6]


def test_other_errors_are_not_mistaken_for_it():
    def broken(size):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        Fitting("videos").once(8, broken)


def test_what_was_short_for_a_while_is_not_remembered_for_ever(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("zar_ray.models.fitting.time.monotonic", lambda: now[0])
    fitting, memory = Fitting("images a pass"), Memory(10)
    caplog.set_level(logging.WARNING)

    def passed():
        assert [item for part, _ in fitting.each(range(100), 64, memory) for item in part] == list(range(100))
        return fitting.of(64)

    assert passed() == 8
    now[0] += 599
    failed = memory.failed
    assert (passed(), memory.failed) == (8, failed)
    now[0] += 2
    assert (passed(), memory.failed) == (8, failed + 1), "it is tried once, and in vain"
    assert (passed(), memory.failed) == (8, failed + 1)
    memory.room = 100
    for expected in (16, 32, 64, 64):
        now[0] += 601
        assert passed() == expected
    assert caplog.messages == ["out of memory with 64 images a pass: goes on with 8"]
    memory.room = 1
    assert passed() == 1
    assert len(caplog.messages) == 2
