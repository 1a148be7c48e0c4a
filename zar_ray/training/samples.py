"""Which videos a step sees, and which pixels of them: pure functions of the seed, whatever the workers.

A sample's position in the run settles its epoch and its video; (seed, epoch, video id) settle the frames drawn and
what is done to them.  A step's samples lie in micro-batches, which are never divided: a worker takes whole ones.
They are decoded ahead of the model: in threads of the training process, or in processes of their own on any node.
"""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray
import torch

from zar_ray.data.manifest import VideoRow
from zar_ray.errors import RunError, VideoError
from zar_ray.training.augmentation import augment
from zar_ray.training.options import TrainConfig
from zar_ray.training.videos import VideoTable
from zar_ray.video.decoding import decode_video
from zar_ray.video.reading import VideoInfo
from zar_ray.video.sampling import drawn_frames, part_centres
from zar_ray.video.transforms import Preprocessing

# A decode worker whose node is lost waits for a CPU that there may never be; what takes it longer than so many times
# what a video may take is told, and new processes are made, for which there is room.
_STALLED = 5
# Enough for decoding to go on while a micro-batch is computed, few enough to hold in memory.
_AHEAD = 4

_Item = TypeVar("_Item")
_Begun = TypeVar("_Begun")


class Sample(NamedTuple):
    """One video, by its number in the training set, as one epoch (from 0) sees it."""

    epoch: int
    video: int


class MicroBatch(NamedTuple):
    """Samples that pass the model together: the step they are of (from 0), and which of its micro-batches they are."""

    step: int
    number: int
    samples: tuple[Sample, ...]


class FrameChoice(NamedTuple):
    """The frames to read of a video and the short side to resize them to."""

    frames: np.ndarray
    short_side: int


def generator(*key: object) -> np.random.Generator:
    """A generator of its own for a key, the same on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def samples_of_step(step: int, videos: int, config: TrainConfig) -> list[Sample]:
    """The samples of a step (from 0); batches run on over the end of an epoch, none is cut short."""
    samples = []
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, videos)
        samples.append(Sample(epoch, int(_order(epoch, videos, config.seed)[place])))
    return samples


def micro_batches(
    steps: range, videos: int, config: TrainConfig, rank: int = 0, workers: int = 1
) -> Iterator[MicroBatch]:
    """One worker's micro-batches, step by step: every so-manieth of each step's, which `workers` share evenly."""
    size = config.micro_batch
    for step in steps:
        samples = samples_of_step(step, videos, config)
        for number in range(rank, config.batch_size // size, workers):
            yield MicroBatch(step, number, tuple(samples[number * size : (number + 1) * size]))


@functools.lru_cache(maxsize=1)
def _order(epoch: int, videos: int, seed: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(videos)


def frames_drawn(frames: int, config: TrainConfig, rng: np.random.Generator) -> np.ndarray:
    """The frames of a sample of a video, as `sampling` draws them; by default one from each of T equal parts.

    Returns:
        int64 (T,), within ``[0, frames)``; a video of fewer frames repeats some.
    """
    count = config.frames
    if config.sampling == "parts":
        return np.minimum(((np.arange(count) + rng.random(count)) * frames / count).astype(np.int64), frames - 1)
    return drawn_frames(config.sampling, count, frames, lambda below: int(rng.integers(below)), config.stride)


class SampleReader:
    """Decodes samples of the videos as the model and the options want them; light to send to another process."""

    def __init__(
        self, videos: VideoTable | Sequence[VideoRow], preprocessing: Preprocessing, config: TrainConfig
    ) -> None:
        self._videos = videos
        self._preprocessing = preprocessing
        self._config = config
        self._cache: dict[int, np.ndarray] = {}

    def read(self, sample: Sample) -> np.ndarray:
        """uint8 (T, R, R, 3): the frames drawn, augmented alike.

        Raises:
            RunError: The video cannot be decoded, or is not what its manifest says.
        """
        video, config = self._videos[sample.video], self._config
        rng = generator(config.seed, "sample", sample.epoch, video.video_id)
        if config.cache_frames:
            if sample.video not in self._cache:
                count = video.frames or 1
                chosen = np.unique(part_centres(0, count, min(config.cache_frames, count), count))
                self._cache[sample.video] = self._decode(video, chosen)
            kept = self._cache[sample.video]
            frames = kept[frames_drawn(len(kept), config, rng)]
        else:
            chosen = frames_drawn(video.frames or 1, config, rng)
            distinct, rows = np.unique(chosen, return_inverse=True)
            frames = self._decode(video, distinct)[rows]
        antialias = self._preprocessing.interpolation != "plain_bilinear"
        return augment(frames, config.augment, self._preprocessing.input_size, rng, antialias)

    def _decode(self, video: VideoRow, frames: np.ndarray) -> np.ndarray:
        config, pixels = self._config, self._preprocessing

        def choose(info: VideoInfo) -> FrameChoice:
            if info.frames != video.frames:
                raise VideoError(f"has {info.frames} frames, and the manifest says {video.frames}", stage="open")
            return FrameChoice(frames, pixels.short_side or pixels.input_size)

        way, decoder, seconds = pixels.scaling, config.decoder, config.decode_timeout
        try:
            with video.file() as file:
                return decode_video(file, choose, way, decoder, timeout=seconds, resizer=config.resize).frames
        except VideoError as error:
            raise RunError(f"{video.file()}: {error}; leave the video out, or index the videos again") from error


Submit = Callable[[Sample], "Future[np.ndarray]"]
"""Begins to decode a sample; what comes of it is uint8 (T, R, R, 3)."""


def patience(config: TrainConfig) -> float | None:
    """For how many seconds decode workers are waited for; for ever for threads, which no node takes along."""
    return _STALLED * config.decode_timeout if config.decode_workers else None


def threads_ahead(config: TrainConfig, device: torch.device) -> int:
    """Threads that decode for a process: those asked for, or all its CPUs beside a GPU, which two would not feed."""
    beside_gpu = torch.get_num_threads() if device.type == "cuda" else 0
    return config.decode_threads or max(2, beside_gpu)


@contextmanager
def decoder_threads(reader: SampleReader, threads: int) -> Iterator[Submit]:
    """Threads of this process: decoding leaves Python's lock, so that a few keep up with a small model."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        yield functools.partial(pool.submit, reader.read)
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


def decoded_batches(
    batches: Iterable[MicroBatch], submit: Submit, patience: float | None = None
) -> Iterator[tuple[MicroBatch, torch.Tensor]]:
    """Yields micro-batches with their pixels, in order, while the next ones are being decoded.

    Yields:
        A micro-batch, and uint8 (B, T, R, R, 3), on the CPU.

    Raises:
        TimeoutError: A video was waited for longer than `patience`, in seconds.
    """
    for batch, begun in in_order(batches, lambda one: [submit(sample) for sample in one.samples], _AHEAD):
        try:
            frames = [sample.result(patience) for sample in begun]
        except FutureTimeoutError as error:
            if all(sample.done() for sample in begun):
                raise  # a decoder's own
            raise TimeoutError(f"no video was decoded for {patience:.0f} s: a decode worker waits for a CPU") from error
        yield batch, torch.from_numpy(np.stack(frames))
