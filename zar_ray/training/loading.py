"""Decoding ahead of the model: in threads of the training process, or in processes of their own on any node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
import torch

from zar_ray.training.samples import MicroBatch, Sample, SampleReader

# Enough for decoding to go on while a micro-batch is computed, few enough to hold in memory.
_AHEAD = 4

_Item = TypeVar("_Item")
_Begun = TypeVar("_Begun")


Submit = Callable[[Sample], "Future[np.ndarray]"]
"""Begins to decode a sample; what comes of it is uint8 (T, R, R, 3)."""


@contextmanager
def decoder_threads(reader: SampleReader, threads: int) -> Iterator[Submit]:
    """Threads of this process: decoding leaves Python's lock, so that a few keep up with a small model."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        yield partial(pool.submit, reader.read)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def decoder_processes(reader: SampleReader, processes: int) -> Iterator[Submit]:
    """Ray actors of one CPU each, wherever the cluster has one free; one that dies is replaced."""
    # A video that kills its decoder is tried once more, and then named by Ray's error.
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1, scheduling_strategy="SPREAD")(_Decoder)
    shared = ray.put(reader)
    actors: list[Any] = [actor.remote(shared) for _ in range(processes)]
    try:
        # Always the same one for a video, as it may have kept the video's frames.
        yield lambda sample: actors[sample.video % processes].read.remote(sample).future()
    finally:
        for one in actors:
            ray.kill(one)


class _Decoder:
    def __init__(self, reader: SampleReader) -> None:
        # One CPU was asked for, and several such processes share a node.
        torch.set_num_threads(1)
        self._reader = reader

    def read(self, sample: Sample) -> np.ndarray:
        return self._reader.read(sample)


def in_order(items: Iterable[_Item], begin: Callable[[_Item], _Begun], ahead: int) -> Iterator[tuple[_Item, _Begun]]:
    """Yields items with what beginning them gave, in order, while so many of the next ones are begun already."""
    begun: deque[tuple[_Item, _Begun]] = deque()
    for item in items:
        begun.append((item, begin(item)))
        if len(begun) > ahead:
            yield begun.popleft()
    yield from begun


def decoded_batches(batches: Iterable[MicroBatch], submit: Submit) -> Iterator[tuple[MicroBatch, torch.Tensor]]:
    """Yields micro-batches with their pixels, in order, while the next ones are being decoded.

    Args:
        batches: The micro-batches.
        submit: See `decoder_threads` and `decoder_processes`.

    Yields:
        A micro-batch, and uint8 (B, T, R, R, 3), on the CPU.
    """
    for batch, begun in in_order(batches, lambda one: [submit(sample) for sample in one.samples], _AHEAD):
        yield batch, torch.from_numpy(np.stack([sample.result() for sample in begun]))
