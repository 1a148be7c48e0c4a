"""In which order a stream's videos come: a pure function of the seed, the videos' ids and their classes.

An order places each video by itself, so that some of the videos come in the order that they have among all. Others
(videos under one corruption after another) are further functions in `_ORDERS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from zar_ray.errors import ConfigError

Order = Literal["shuffled", "manifest", "by_class"]


@dataclass(frozen=True)
class StreamOrder:
    """An order under a seed, and which of a run's passes over the videos has it.

    Attributes:
        name: The order.
        seed: What it is drawn with; 0 for an order without draws.
        turn: The number of its pass, from 0.
    """

    name: Order = "manifest"
    seed: int = 0
    turn: int = 0

    @classmethod
    def of(cls, name: Order, seed: int) -> StreamOrder:
        """An order that options ask for."""
        return cls(name, 0 if name == "manifest" else seed)

    def __str__(self) -> str:
        """As tables say it."""
        return self.name if self.name == "manifest" else f"{self.name} (seed {self.seed})"

    def arranged(self, videos: pa.Table) -> pa.Table:
        """Manifest rows in this order.

        Raises:
            ConfigError: See `require_classes`.
        """
        if self.name == "manifest":
            return videos
        if self.name == "by_class":
            require_classes(videos)
        ids, classes = (videos[name].to_pylist() for name in ("video_id", "class_name"))
        return videos.take(pa.array(_ORDERS[self.name](self.seed, ids, classes)))


def require_classes(videos: pa.Table) -> None:
    """Refuses manifest rows that cannot be sorted by their class.

    Raises:
        ConfigError: One has no class, or several.
    """
    without = videos.filter(videos["class_name"].is_null())["video_id"]
    if len(without):
        raise ConfigError(
            f"--order by_class: {len(without)} of {len(videos)} videos have no class of their own, such as"
            f' "{without[0].as_py()}"; leave it out for a shuffle, or give --order manifest'
        )


def _shuffled(seed: int, video_ids: Sequence[str], classes: Sequence[str | None]) -> np.ndarray:
    return np.lexsort(_draws("video", seed, video_ids))


def _by_class(seed: int, video_ids: Sequence[str], classes: Sequence[str | None]) -> np.ndarray:
    """Class after class; the classes are shuffled, and the videos within each."""
    known = sorted({str(one) for one in classes})
    places = dict(zip((known[one] for one in np.lexsort(_draws("class", seed, known))), range(len(known)), strict=True))
    of_class = np.array([places[str(one)] for one in classes], np.int64)
    return np.lexsort((*_draws("video", seed, video_ids), of_class))


# Each gives int64 (N,), the places of the videos that come first, second and so on.
_ORDERS: dict[Order, Callable[[int, Sequence[str], Sequence[str | None]], np.ndarray]] = {
    "shuffled": _shuffled,
    "by_class": _by_class,
}


def _draws(what: str, seed: int, names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """128 bits a name, which follow from it and the seed alone, whatever the versions of the libraries are."""
    begun, digests = hashlib.blake2b(f"{what}/{seed}/".encode(), digest_size=16), []
    for name in names:
        one = begun.copy()
        one.update(name.encode())
        digests.append(one.digest())
    high, low = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).T
    return low, high  # the last is what `numpy.lexsort` goes by first
