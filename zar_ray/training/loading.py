"""Decoding ahead of the model: in threads of the training process, or in processes of their own on any node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from zar_ray.training.samples import MicroBatch, Sample, SampleReader

# Enough for decoding to go on while a micro-batch is computed, few enough to hold in memory.
_AHEAD = 4


@dataclass(frozen=True, eq=False)
class DecodedBatch:
    """A micro-batch with its pixels.

    Attributes:
        which: The micro-batch.
        pixels: uint8 (B, T, R, R, 3), on the CPU.
    """

    which: MicroBatch
    pixels: torch.Tensor


class Decoders(ABC):
    """What decodes samples in the background."""

    @abstractmethod
    def submit(self, sample: Sample) -> Any:
        """Begins a sample; `result` takes what comes back."""

    @abstractmethod
    def result(self, begun: Any) -> np.ndarray:
        """Waits for a sample: uint8 (T, R, R, 3)."""

    @abstractmethod
    def close(self) -> None:
        """Ends the threads or processes."""


class DecoderThreads(Decoders):
    """Threads of this process: decoding leaves Python's lock, so that a few keep up with a small model."""

    def __init__(self, reader: SampleReader, threads: int) -> None:
        self._reader = reader
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def submit(self, sample: Sample) -> Any:
        """Queues a sample."""
        return self._pool.submit(self._reader.read, sample)

    def result(self, begun: Any) -> np.ndarray:
        """Waits for a sample."""
        return begun.result()

    def close(self) -> None:
        """Ends the threads; what they have not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)


class DecoderProcesses(Decoders):
    """Ray actors of one CPU each, wherever the cluster has one free; one that dies is replaced."""

    def __init__(self, reader: SampleReader, processes: int) -> None:
        # A video that kills its decoder is tried once more, and then named by Ray's error.
        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1, scheduling_strategy="SPREAD")(_Decoder)
        shared = ray.put(reader)
        self._actors: list[Any] = [actor.remote(shared) for _ in range(processes)]

    def submit(self, sample: Sample) -> Any:
        """Queues a sample with the process of its video."""
        # Always the same one, which may have kept the video's frames.
        return self._actors[sample.video % len(self._actors)].read.remote(sample)

    def result(self, begun: Any) -> np.ndarray:
        """Waits for a sample."""
        return ray.get(begun)

    def close(self) -> None:
        """Ends the processes."""
        for actor in self._actors:
            ray.kill(actor)


class _Decoder:
    def __init__(self, reader: SampleReader) -> None:
        # One CPU was asked for, and several such processes share a node.
        torch.set_num_threads(1)
        self._reader = reader

    def read(self, sample: Sample) -> np.ndarray:
        return self._reader.read(sample)


def decoded_batches(batches: Iterable[MicroBatch], decoders: Decoders) -> Iterator[DecodedBatch]:
    """Yields micro-batches with their pixels, in order, while the next ones are being decoded."""
    begun: deque[tuple[MicroBatch, list[Any]]] = deque()
    for batch in batches:
        begun.append((batch, [decoders.submit(sample) for sample in batch.samples]))
        if len(begun) > _AHEAD:
            yield _collected(*begun.popleft(), decoders)
    while begun:
        yield _collected(*begun.popleft(), decoders)


def _collected(batch: MicroBatch, begun: list[Any], decoders: Decoders) -> DecodedBatch:
    return DecodedBatch(batch, torch.from_numpy(np.stack([decoders.result(one) for one in begun])))
