"""Which videos a step sees, and which pixels of them: pure functions of the seed, whatever the workers.

A sample's position in the run settles its epoch and its video; (seed, epoch, video id) settle the frames drawn and
where they are cropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from zar_ray.config import Decoder
from zar_ray.data.manifest import VideoRow
from zar_ray.errors import RunError, VideoError
from zar_ray.video.decoding import decode_video
from zar_ray.video.plans import segment_frames
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import Preprocessing

# Enough for decoding to go on while a step is computed, few enough to hold in memory.
_STEPS_AHEAD = 2


@dataclass(frozen=True, eq=False)
class Batch:
    """One worker's share of a step.

    Attributes:
        pixels: float32 (B, T, 3, R, R), normalised.
        labels: int64 (B,), label ids.
    """

    pixels: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class FrameChoice:
    """The frames to read of a video and the short side to resize them to."""

    frames: np.ndarray
    short_side: int


def generator(*key: object) -> np.random.Generator:
    """A generator of its own for a key, the same on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def videos_of_step(step: int, batch_size: int, videos: int, seed: int) -> list[tuple[int, int]]:
    """The samples of a step, as (epoch, video number); batches run on over the end of an epoch, none is cut short.

    Args:
        step: From 0.
        batch_size: Samples a step, over all workers.
        videos: Videos of the training set.
        seed: Seed of the run.
    """
    samples = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, videos)
        samples.append((epoch, int(_order(epoch, videos, seed)[place])))
    return samples


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(epoch: int, videos: int, seed: int) -> np.ndarray:
    key = (epoch, videos, seed)
    if key not in _orders:
        _orders.clear()
        _orders[key] = generator(seed, "order", epoch).permutation(videos)
    return _orders[key]


def frames_drawn(frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """One frame from each of `count` equal parts of a video, as TSN samples (Wang et al., ECCV 2016).

    Returns:
        int64 (count,), ascending, within ``[0, frames)``; a video of fewer frames repeats some.
    """
    return np.minimum(((np.arange(count) + rng.random(count)) * frames / count).astype(np.int64), frames - 1)


class TrainingVideos:
    """Decodes and crops the samples of a training set; decoding runs ahead in threads.

    Args:
        videos: The labelled videos.
        preprocessing: The model's input.
        frames: T, frames a sample.
        seed: Seed of the run.
        decoder: What reads the files.
        cache_frames: Frames of each video to keep in memory, 0 for none.
        threads: Threads that decode.
        decode_timeout: Seconds that decoding a video may take.
    """

    def __init__(
        self,
        videos: Sequence[VideoRow],
        preprocessing: Preprocessing,
        frames: int,
        seed: int,
        decoder: Decoder = "auto",
        cache_frames: int = 0,
        threads: int = 2,
        decode_timeout: float | None = None,
    ) -> None:
        self._videos = videos
        self._preprocessing = preprocessing
        self._frames = frames
        self._seed = seed
        self._decoder: Decoder = decoder
        self._cache_frames = cache_frames
        self._decode_timeout = decode_timeout
        self._cache: dict[int, np.ndarray] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, steps: range, batch_size: int, rank: int, workers: int) -> Iterator[Batch]:
        """Yields one worker's share of each step, in order.

        Args:
            steps: The steps to yield.
            batch_size: Samples a step over all workers; a multiple of `workers`.
            rank: This worker's number.
            workers: How many there are.
        """
        shares = (videos_of_step(step, batch_size, len(self._videos), self._seed)[rank::workers] for step in steps)
        pending: list[tuple[list[Future[np.ndarray]], list[int]]] = []
        for share in shares:
            pixels = [self._pool.submit(self._sample, epoch, number) for epoch, number in share]
            pending.append((pixels, [self._label(number) for _, number in share]))
            if len(pending) > _STEPS_AHEAD:
                yield self._collect(*pending.pop(0))
        for one in pending:
            yield self._collect(*one)

    def close(self) -> None:
        """Ends the decoding threads."""
        self._pool.shutdown(cancel_futures=True)

    def _label(self, number: int) -> int:
        label = self._videos[number].label_id
        assert label is not None, "only labelled videos are trained on"
        return label

    def _collect(self, pixels: list[Future[np.ndarray]], labels: list[int]) -> Batch:
        stacked = torch.from_numpy(np.stack([future.result() for future in pixels]))
        mean = torch.tensor(self._preprocessing.mean).view(3, 1, 1)
        std = torch.tensor(self._preprocessing.std).view(3, 1, 1)
        return Batch((stacked.movedim(-1, -3).float() / 255 - mean) / std, torch.tensor(labels))

    def _sample(self, epoch: int, number: int) -> np.ndarray:
        """uint8 (T, R, R, 3): the frames drawn, under one random crop."""
        video = self._videos[number]
        rng = generator(self._seed, "sample", epoch, video.video_id)
        if self._cache_frames:
            kept = self._kept(number)
            frames = kept[frames_drawn(len(kept), self._frames, rng)]
        else:
            chosen = frames_drawn(video.frames or 1, self._frames, rng)
            distinct, rows = np.unique(chosen, return_inverse=True)
            frames = self._decode(video, distinct)[rows]
        size = self._preprocessing.input_size
        top = int(rng.integers(0, frames.shape[1] - size + 1))
        left = int(rng.integers(0, frames.shape[2] - size + 1))
        return frames[:, top : top + size, left : left + size]

    def _kept(self, number: int) -> np.ndarray:
        if number not in self._cache:
            count = self._videos[number].frames or 1
            chosen = np.unique(segment_frames(0, count, min(self._cache_frames, count), count))
            self._cache[number] = self._decode(self._videos[number], chosen)
        return self._cache[number]

    def _decode(self, video: VideoRow, frames: np.ndarray) -> np.ndarray:
        short_side = self._preprocessing.short_side or self._preprocessing.input_size
        choice = FrameChoice(frames, short_side)
        try:
            return decode_video(
                video.path,
                lambda info: self._checked(info, video, choice),
                self._preprocessing.interpolation,
                self._decoder,
                timeout=self._decode_timeout,
            ).frames
        except VideoError as error:
            raise RunError(f"{video.path}: {error}; leave the video out, or index the videos again") from error

    @staticmethod
    def _checked(info: VideoInfo, video: VideoRow, choice: FrameChoice) -> FrameChoice:
        if info.frames != video.frames:
            raise VideoError(f"has {info.frames} frames, and the manifest says {video.frames}", stage="open")
        return choice
