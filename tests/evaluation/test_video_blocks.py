"""How videos become blocks: each once, costly ones first, the last ones small; and what that does to a run's tail."""

from __future__ import annotations

import heapq
from collections import deque
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.evaluation import blocks
from zar_ray.evaluation.blocks import block_size, cut_into_blocks, deal, expected_costs
from zar_ray.evaluation.spec import ModelViews
from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.video.options import ViewConfig
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import Preprocessing

COUNTS = st.none() | st.integers(0, 3000)


def manifest(frames, height=256, width=340) -> pa.Table:
    count = len(frames)
    height, width = (side if isinstance(side, list) else [side] * count for side in (height, width))
    shape = {"frames": frames, "height": height, "width": width}
    columns = {name: pa.array(values, pa.int32()) for name, values in shape.items()}
    return pa.table({"video_id": [f"video {n}" for n in range(count)], **columns})


def cost_of(block: pa.Table, videos: pa.Table, costs: np.ndarray) -> float:
    place = {video: n for n, video in enumerate(videos["video_id"].to_pylist())}
    return float(sum(costs[place[video]] for video in block["video_id"].to_pylist()))


@settings(deadline=None)
@given(
    frames=st.lists(COUNTS, min_size=1, max_size=200),
    size=st.integers(1, 40),
    first=st.integers(1, 40),
    workers=st.integers(1, 30),
    in_order=st.booleans(),
)
def test_every_video_is_in_one_block_of_which_none_is_too_large(frames, size, first, workers, in_order):
    videos = manifest(frames)
    found = cut_into_blocks(videos, size, workers, first=first, in_order=in_order)
    ids = [video for block in found for video in block["video_id"].to_pylist()]
    assert sorted(ids) == sorted(videos["video_id"].to_pylist())
    assert all(0 < len(block) <= size for block in found)
    assert pa.concat_tables(found).schema == videos.schema
    if in_order:
        assert ids == videos["video_id"].to_pylist()
        assert {len(block) for block in found[:-1]} <= {size}
        return
    costs = expected_costs(videos)
    each = [cost_of(block.slice(n, 1), videos, costs) for block in found for n in range(len(block))]
    assert each == sorted(each, reverse=True)
    assert len(found[0]) <= max(1, min(first, size))
    # a block of several never holds more than a worker's share of what is left, but for the smallest blocks
    left, least = costs.sum(), max(1.0, size / 8) * costs.mean()
    for block in found:
        cost = cost_of(block, videos, costs)
        assert len(block) == 1 or cost <= max(least, left / (2 * workers)) * (1 + 1e-6)
        left -= cost


def test_videos_of_one_cost_keep_their_order():
    videos = manifest([300] * 40)
    ids = [video for block in cut_into_blocks(videos, 8, 2) for video in block["video_id"].to_pylist()]
    assert ids == videos["video_id"].to_pylist()


@pytest.mark.parametrize("unknown", [None, 0])
def test_what_is_not_known_counts_as_the_median(unknown):
    costs = expected_costs(manifest([100, 300, 900, unknown], [240, 240, 240, 240]))
    assert costs[3] == costs[1] < costs[2]
    assert expected_costs(manifest([unknown] * 3)).tolist() == [1.0] * 3
    assert expected_costs(manifest([300, 300, 300], [256, unknown, 1080], [340, 340, 1920])).argmax() == 2


def worked(durations: list[float], workers: int, queue: int = 3) -> np.ndarray:
    """When each worker is done, which holds so many blocks at a time and gets the next as one is done."""
    waiting, held = deque(durations), [deque() for _ in range(workers)]
    for _ in range(queue):
        for own in held:
            if waiting:
                own.append(waiting.popleft())
    busy = [(own[0], number) for number, own in enumerate(held) if own]
    heapq.heapify(busy)
    ends = np.zeros(workers)
    while busy:
        now, number = heapq.heappop(busy)
        ends[number] = now
        held[number].popleft()
        if waiting:
            held[number].append(waiting.popleft())
        if held[number]:
            heapq.heappush(busy, (now + held[number][0], number))
    return ends


def tail(found: list[pa.Table], seconds: dict[str, float], workers: int) -> float:
    """From when the first worker has no more to do to the end, as a share of a run's length."""
    ends = worked([sum(seconds[video] for video in block["video_id"].to_pylist()) for block in found], workers)
    return float(1 - ends.min() / ends.max())


@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize(("workers", "videos"), [(100, 20_000), (40, 9_000)])
def test_the_tail_of_a_run_is_below_a_twentieth(workers, videos, spread):
    """Videos as long as one another, or of lengths as in the wild; each takes up to twice or half of what it should."""
    rng = np.random.default_rng(workers)
    table = manifest(np.maximum(1, rng.lognormal(5.5, spread, videos)).astype(int).tolist())
    taken = expected_costs(table) * rng.lognormal(0, 0.35, videos)
    seconds = dict(zip(table["video_id"].to_pylist(), taken.tolist(), strict=True))
    size = block_size(8, videos, workers, np.inf, gpus=True)
    assert tail(cut_into_blocks(table, size, workers, first=8), seconds, workers) < 0.05
    as_before = [table.slice(start, 8) for start in range(0, videos, 8)]
    assert tail(as_before, seconds, workers) > 0.05 or not spread


def test_blocks_grow_with_the_run_as_far_as_memory_goes():
    def size(videos, workers, fitting=np.inf, gpus=True, batch_size=8):
        return block_size(batch_size, videos, workers, fitting, gpus=gpus)

    assert size(1_000_000, 1000) >= 100  # at ten milliseconds a block that is 10,000 videos a second
    assert size(2_000_000, 1000) % 8 == 0
    assert size(448, 2) == size(10_000, 8) == 8
    assert size(1_000_000, 1000, fitting=20.0) == 16
    assert size(1_000_000, 1000, fitting=0.1) == 8
    assert size(1_000_000, 1, gpus=False) == 64
    assert size(5000, 1000) == 8
    assert size(50_000, 1000, batch_size=1) == 6


def test_a_pass_over_what_was_lost_and_a_stream_are_not_cut_otherwise(monkeypatch):
    monkeypatch.setattr(blocks.ray, "cluster_resources", lambda: {"object_store_memory": 1e15})
    resources = SimpleNamespace(blocks_in_flight=1300, workers=400, worker_gpus=1.0)
    videos = manifest([*range(1, 100_001)])
    ordinary, block_bytes = deal(videos, 8, resources, 1000)
    sizes = [len(block) for block in ordinary]
    assert sizes[0] == 8 < max(sizes)
    assert block_bytes == 1000 * block_size(8, 100_000, 400, np.inf, gpus=True)
    some = videos.slice(0, 1000)
    assert {len(block) for block in deal(some, 1, resources, 1000, alone=True)[0]} == {1}
    stream, _ = deal(some, 1, resources, 1000, stream=True)
    assert [block["frames"].to_pylist() for block in stream] == [[n] for n in range(1, 1001)]


@given(
    frames=st.integers(1, 10**7),
    views=st.integers(1, 6),
    crops=st.sampled_from([1, 3, 5, 9]),
    length=st.integers(1, 32),
)
def test_what_is_adapted_to_is_bounded_however_long_a_video_is(frames, views, crops, length):
    """So that one video of a block never holds up its neighbours there; decoding it has its own time limit."""
    config = ViewConfig(frames=length, eval_frames=length, views_per_rate=views, crops=crops)
    model = ModelViews("weights", "fp32", Preprocessing(32), ((config, 0),), needs_views=True)
    (plan,) = model.plans("video", VideoInfo(frames, 25.0, 340, 256, frames / 25, "pyav"))
    assert len(plan.frames) <= min(frames, model.frames_named) == min(frames, length * (1 + 4 * views))
    assert len(plan.images) <= length * (1 + 4 * views * crops)


@pytest.mark.slow
def test_a_block_of_several_batches_gives_the_rows_of_its_batches_in_one_part(begin, tiny_checkpoint, monkeypatch):
    options = {"method": ("zero_shot", "zar"), "batch_size": 5}
    whole, apart = begin("whole", tiny_checkpoint, **options), begin("apart", tiny_checkpoint, **options)
    predicted = []

    class Watched(AdaptStage):
        def predict(self, replica, videos):
            predicted.append(len(videos))
            return super().predict(replica, videos)

    status = Watched(*whole.told)(DecodeStage(whole.spec)(whole.todo))
    assert predicted == [5, 5, 2]
    assert status["video_id"].to_pylist() == whole.workload.manifest.table["video_id"].to_pylist()
    assert len(whole.folder.row_files()) == 1
    for _ in range(3):
        apart.evaluate(apart.todo.slice(0, 5))
    ours, theirs = ({(row.video_id, row.method): row for row in one.rows} for one in (whole, apart))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 24
    assert all(ours[key].scores_after == row.scores_after for key, row in theirs.items())
