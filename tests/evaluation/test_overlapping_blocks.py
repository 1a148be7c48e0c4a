"""A worker that is given a block while it works on another: what may go on beside a prediction, and what may not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from zar_ray.evaluation.spec import INPUT
from zar_ray.evaluation.stages import adapt
from zar_ray.evaluation.stages.adapt import AdaptStage, Replica
from zar_ray.evaluation.stages.decode import DecodeStage

WAIT = 60.0


@pytest.fixture
def run(begin, tiny_checkpoint):
    return begin("run", tiny_checkpoint, method=("zero_shot", "zar"))


def block_of(run, first: int) -> pa.Table:
    return DecodeStage(run.spec)(run.todo.slice(first, 2))


def test_one_block_is_predicted_while_the_next_is_taken_over_and_the_one_before_written(run, monkeypatch):
    """The second block arrives before the first is predicted, and is predicted before the first is written."""
    arrived, second_predicted = threading.Event(), threading.Event()
    blocks = [block_of(run, 0), block_of(run, 2)]
    second = set(blocks[1]["video_id"].to_pylist())
    inside, write_part, arrive, rows = [], adapt.write_part, Replica.arrive, Replica.rows

    class Watched(AdaptStage):
        def predict(self, replica, videos):
            ids = {video.row["video_id"] for video in videos}
            assert not inside, "two blocks are predicted at a time"
            inside.append(ids)
            if not ids & second:
                assert arrived.wait(WAIT), "the next block is not taken over while this one is predicted"
            outcomes = super().predict(replica, videos)
            inside.remove(ids)
            return outcomes

    def noted_arrival(self, row, inputs):
        if row["video_id"] in second:
            arrived.set()
        return arrive(self, row, inputs)

    def written(storage, table):
        ids = set(table["video_id"].to_pylist())
        if not ids & second:
            assert second_predicted.wait(WAIT), "the next block is not predicted while this one is written"
        write_part(storage, table)

    def noted_rows(self, video, outcome):
        if video.row["video_id"] in second:
            second_predicted.set()
        return rows(self, video, outcome)

    monkeypatch.setattr(Replica, "arrive", noted_arrival)
    monkeypatch.setattr(Replica, "rows", noted_rows)
    monkeypatch.setattr(adapt, "write_part", written)
    stage = Watched(*run.told)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stage, blocks[0])
        status = [one.result(2 * WAIT) for one in (first, pool.submit(stage, blocks[1]))]
    assert [one["failed"].to_pylist() for one in status] == [[False, False]] * 2
    assert len(run.rows) == 4 * 2


def test_a_block_is_reported_only_once_its_part_is_written_and_a_failure_to_write_is_its_own(run, monkeypatch):
    blocks, write_part = [block_of(run, 0), block_of(run, 2)], adapt.write_part
    lost = set(blocks[0]["video_id"].to_pylist())

    def full_disk(storage, table):
        if lost & set(table["video_id"].to_pylist()):
            raise OSError("no space left")
        write_part(storage, table)

    monkeypatch.setattr(adapt, "write_part", full_disk)
    stage = AdaptStage(*run.told)
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(stage, block) for block in blocks)
        with pytest.raises(OSError, match="no space left"):
            first.result(WAIT)
        assert set(second.result(WAIT)["video_id"].to_pylist()) == {row.video_id for row in run.rows}


@pytest.mark.slow
def test_two_blocks_at_once_give_the_rows_of_one_after_the_other(begin, tiny_checkpoint):
    options = {"method": ("zero_shot", "zar", "tpt"), "tpt": {"views": 3}}
    alone, together = begin("alone", tiny_checkpoint, **options), begin("together", tiny_checkpoint, **options)
    blocks = [DecodeStage(alone.spec)(alone.todo.slice(first, 3)) for first in (0, 3, 6, 9)]
    for block in blocks:
        alone.adapt()(block)
    stage = together.adapt()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(stage, blocks))
    ours, theirs = ({(row.video_id, row.method): row for row in one.rows} for one in (together, alone))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 12 * 3
    for key, row in theirs.items():
        assert row.error is None
        assert ours[key].scores_after == row.scores_after
        assert ours[key].top5_scores_after == row.top5_scores_after
        assert ours[key].video_feature == row.video_feature


def test_what_is_set_for_all_threads_is_set_by_one_at_a_time(run, monkeypatch):
    """Float32's precision is: while one block is predicted, another's rows must not set it back."""
    stage = run.adapt()
    seen, feature = [], adapt.video_features

    def noted(*args):
        seen.append(stage._turn.locked())
        return feature(*args)

    monkeypatch.setattr(adapt, "video_features", noted)
    stage(block_of(run, 0))
    assert seen == [True, True]


@pytest.mark.parametrize("room", [True, False])
def test_what_a_gpu_shall_read_is_copied_to_where_it_can(monkeypatch, room):
    """In the thread that does not predict; where there is no such memory, a video is sent as it came."""
    asked, empty = [], torch.empty

    def noted(*shape, pin_memory=False, **kwargs):
        asked.append(pin_memory)
        if not room:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return empty(*shape, **kwargs)

    monkeypatch.setattr(torch, "empty", noted)
    replica = object.__new__(Replica)
    plan = SimpleNamespace(frames=[0, 1], height=4, width=5)
    replica.number = 0
    replica.spec = SimpleNamespace(models=[SimpleNamespace(plans=lambda *told: (plan,))])
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    own = {"models": [0], "pixels": pixels.tobytes(), "shape": list(pixels.shape)}
    inputs = pa.array([[own]], pa.list_(INPUT))[0]
    row = dict.fromkeys(("frames", "width", "height"), 1) | {"decoder": "pyav", "video_id": "a", "class_sets": [0]}
    for device, copied in (("cuda:1", [True]), ("cpu", [])):
        asked.clear()
        replica.adapter = SimpleNamespace(model=SimpleNamespace(device=torch.device(device)))
        frames = replica._planned(row, inputs).frames
        assert asked == copied
        assert isinstance(frames, torch.Tensor) == (room and bool(copied))
        assert np.array_equal(np.asarray(frames), pixels)
