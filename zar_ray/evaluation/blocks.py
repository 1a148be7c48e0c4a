"""How videos become blocks, what a worker is handed at a time: costly ones first, and the last blocks small.

A worker that takes a large block last keeps all others waiting, so a block holds no more than a share of what is left;
and the longest video of a run must not be the last to be begun. Results do not depend on any of this.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import ray

from zar_ray.evaluation.resources import Resources

# A worker has one block in hand and up to two in its queue: so many shares for each leave the last ones to be dealt
# when little is left in any queue.
_SHARES = 2

# A block of fewer videos than this share of the largest saves no time and costs the driver some.
_SMALLEST = 1 / 8

# A driver hands out about a hundred blocks a second (bench/blocks.py), and a GPU may want ten videos.
_GPUS_A_VIDEO = 8

# What is to be handed out is put into the object store first, at a millisecond a block. A block must not take so long
# on a CPU that Ray Data takes the run for dead (30 minutes).
_BLOCKS_AT_START = 4096
_MOST_FOR_START = 64

# Else neither the first blocks nor the last ones could be smaller.
_BLOCKS_A_WORKER = 8

STORE_SHARE = 0.4
"""Of the object store for blocks in work; it also holds what is not released yet."""


def expected_costs(videos: pa.Table) -> np.ndarray:
    """What each of some manifest rows is expected to take, float64 (n,), around 1.

    Half of it is the same for all, as plans name so many images however long a video is; the other half is its pixels.
    Of a video whose frames or size are not known it is the median.
    """
    shape = [videos[name].cast(pa.float64()).to_numpy() for name in ("frames", "height", "width")]
    pixels = np.prod(np.nan_to_num(shape), axis=0)
    known = pixels > 0
    if not known.any():
        return np.ones(len(videos))
    middle = np.median(pixels[known])
    return 0.5 + 0.5 * np.where(known, pixels, middle) / middle


def deal(
    videos: pa.Table, batch_size: int, resources: Resources, largest: int, *, alone: bool = False, stream: bool = False
) -> tuple[list[pa.Table], int]:
    """Cuts a pass's videos into blocks for the joined cluster.

    Args:
        videos: Manifest rows.
        batch_size: Videos that a worker adapts to at a time.
        resources: What decodes and adapts.
        largest: Bytes that the frames of a video take at most.
        alone: Whether no block may hold more than `batch_size` videos.
        stream: Whether the rows are to be done in their order.

    Returns:
        The blocks, in the order in which they are to be begun, and how many bytes the frames of one take at most.
    """
    size = batch_size
    if not (alone or stream):
        store = ray.cluster_resources().get("object_store_memory", 0.0)
        fitting = STORE_SHARE * store / (resources.blocks_in_flight * max(1, largest))
        size = block_size(batch_size, len(videos), resources.workers, fitting, gpus=bool(resources.worker_gpus))
    return cut_into_blocks(videos, size, resources.workers, first=batch_size, in_order=stream), size * largest


def block_size(batch_size: int, videos: int, workers: int, fitting: float, *, gpus: bool) -> int:
    """Videos of a block that is not among the last ones: whole batches, more of them the larger the run.

    Args:
        batch_size: Videos that a worker adapts to at a time.
        videos: How many there are.
        workers: How many share them.
        fitting: Videos a block that memory allows for; one batch it must.
        gpus: Whether workers have GPUs, of which a thousand would otherwise wait for the driver.
    """
    wanted = max(workers / _GPUS_A_VIDEO if gpus else 0.0, min(videos / _BLOCKS_AT_START, _MOST_FOR_START))
    return batch_size * max(1, int(min(wanted, videos / (workers * _BLOCKS_A_WORKER), fitting) / batch_size))


def cut_into_blocks(
    videos: pa.Table, size: int, workers: int, *, first: int | None = None, in_order: bool = False
) -> list[pa.Table]:
    """Manifest rows as blocks in the order in which they are to be begun, each video once.

    Args:
        videos: Manifest rows.
        size: Videos of a block at most.
        workers: How many share the blocks.
        first: Videos of the first blocks at most, which workers wait for; later ones grow to `size`.
        in_order: Whether the rows are a stream, whose order stands; they come as they are, `size` a block.
    """
    if in_order:
        return [videos.slice(start, size) for start in range(0, len(videos), size)]
    costs = expected_costs(videos)
    order = np.argsort(-costs, kind="stable")
    ordered = videos.take(pa.array(order)).combine_chunks()
    ends = _ends(np.cumsum(costs[order]), size, workers, first or size)
    return [ordered.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def _ends(reached: np.ndarray, size: int, workers: int, first: int) -> list[int]:
    """Where blocks end whose videos, costly first, come to a cumulated cost.

    None costs more than `size` average videos, or than a worker's share of what is left.
    """
    whole, begun, ends = float(reached[-1]), 0, []
    average, least = whole / len(reached), max(1.0, size * _SMALLEST)
    while begun < len(reached):
        before = float(reached[begun - 1]) if begun else 0.0
        budget = min(size * average, max(least * average, (whole - before) / (_SHARES * workers)))
        # what is summed in another order differs in the last digits
        within = int(np.searchsorted(reached, before + budget * (1 + 1e-9), side="right"))
        most = min(size, max(first, begun // workers))
        begun = min(max(within, begun + 1), begun + most)
        ends.append(begun)
    return ends
