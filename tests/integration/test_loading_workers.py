"""Workers that have loaded their models begin; none waits for the slowest."""

from __future__ import annotations

import io
import time
from functools import partial
from types import SimpleNamespace

import pyarrow as pa
import pytest
from rich.console import Console

from zar_ray.evaluation import pipeline
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.resources import Resources, Wanted
from zar_ray.evaluation.spec import STATUS_SCHEMA
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage

pytestmark = pytest.mark.slow


def test_the_first_videos_do_not_wait_for_all_replicas(ray_cluster, tmp_path, monkeypatch):
    slow, status = 20.0, pa.schema(STATUS_SCHEMA)

    class Passing:
        """A first stage that hands its rows on."""

        spec = SimpleNamespace(streams=())

        def largest(self, videos):
            return 1000

        def __call__(self, block):
            return block

    class Loading:
        """A second stage, of which one worker takes long to load."""

        def __init__(self, folder):
            try:
                (folder / "slow").touch(exist_ok=False)
                time.sleep(slow)
                (folder / "loaded").touch()
            except FileExistsError:
                pass

        def __call__(self, block):
            rows = [{"video_id": name, "failed": False} for name in block["video_id"].to_pylist()]
            return pa.Table.from_pylist(rows, schema=status)

    monkeypatch.setattr(pipeline, "AdaptStage", Loading)
    resources = Resources(Wanted("cpu"), 1, 0.5, 2, 0.4, 0, 1)
    loaded_by_then = []
    unknown = {name: pa.nulls(12, pa.int32()) for name in ("frames", "height", "width")}
    videos = pa.table({"video_id": [str(number) for number in range(12)], **unknown})
    with VideoProgress(
        Console(file=io.StringIO()), 12, listener=lambda _: loaded_by_then.append((tmp_path / "loaded").exists())
    ) as progress:
        folder = RunFolder(Storage(str(tmp_path / "run")))
        run = partial(pipeline.run_blocks, decode=Passing(), told=(tmp_path,), resources=resources, folder=folder)
        run(videos, 2, None, progress=progress)
    assert (tmp_path / "slow").exists()
    assert loaded_by_then
    assert not any(loaded_by_then)
