"""The driver's cost of a block, when the first one comes, and a run's tail: `python bench/blocks.py --help`.

Both stages stand still: a decoder does nothing, and a worker sleeps as long as its videos would take it. Blocks are cut
and handed out as the evaluation job does it, on so many logical nodes of this machine.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import tyro
from pydantic import Field
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.data import DataContext, ExecutionResources

from zar_ray.evaluation import pipeline
from zar_ray.evaluation.blocks import cut_into_blocks
from zar_ray.evaluation.resources import Resources, Wanted
from zar_ray.options.base import Options


class BlocksOptions(Options):
    """Hands out blocks to stages that only wait."""

    videos: int = Field(default=8000, ge=1, description="Made-up rows of a manifest.")
    size: int = Field(default=8, ge=1, description="Videos of a block at most.")
    seconds: float = Field(default=0.0, ge=0, description="What a worker sleeps a video, on average.")
    spread: float = Field(default=0.6, ge=0, description="Standard deviation of the logarithm of videos' lengths.")
    nodes: int = Field(default=1, ge=1, description="Logical nodes, with a worker and two decoders each.")
    as_before: bool = Field(default=False, description="Blocks of one size in the manifest's order.")


class Decode:
    """A first stage that hands on what it is given."""

    spec = SimpleNamespace(streams=())

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block."""
        return block


class Adapt:
    """A second stage that sleeps, and answers with when it began and ended and where."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, block: pa.Table) -> pa.Table:
        """A row a block."""
        begun = time.time()
        time.sleep(self.seconds * sum(block["seconds"].to_pylist()))
        worker = ray.get_runtime_context().get_actor_id()
        return pa.table({"worker": [worker], "begun": [begun], "ended": [time.time()], "videos": [len(block)]})


def made_up(options: BlocksOptions) -> pa.Table:
    """Rows of as many columns as a manifest has; what a video takes follows its length to within a third."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(5.5, options.spread, options.videos)).astype(int)
    taken = lengths / lengths.mean() * rng.lognormal(0, 0.3, options.videos)
    count = options.videos
    columns: dict[str, Any] = {
        "video_id": [f"class/{n}.mp4" for n in range(count)],
        "path": [f"/shared/videos/kinetics/class/{n}.mp4" for n in range(count)],
        "frames": lengths,
        "height": np.full(count, 256),
        "width": np.full(count, 340),
        "seconds": 0.5 + 0.5 * taken,
        "class_sets": [[0]] * count,
        **{f"column {n}": np.zeros(count) for n in range(10)},
    }
    return pa.table(columns)


def main() -> int:
    """Runs once and prints a line of JSON; returns the exit status."""
    options = tyro.cli(BlocksOptions, prog="blocks.py")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    videos = made_up(options)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    for _ in range(options.nodes - 1):
        cluster.add_node(num_cpus=3)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        context = DataContext.get_current().copy()
        context.max_errored_blocks, context.enable_progress_bars, context.target_max_block_size = -1, False, None
        context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=1e9)
        resources = Resources(Wanted("cpu"), 2 * options.nodes, 1.0, options.nodes, 0.99, 0, 1)
        pipeline.AdaptStage = Adapt  # type: ignore[misc, assignment]
        started = time.time()
        with DataContext.current(context):
            blocks = cut_into_blocks(videos, options.size, options.nodes, in_order=options.as_before)
            stages = pipeline._stages(blocks, Decode(), (options.seconds,), resources, None)  # type: ignore[arg-type]
            rows, first, cpu = [], 0.0, 0.0
            for batch in stages.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                first, cpu = first or time.time(), cpu or time.process_time()
                rows += cast(pa.Table, batch).to_pylist()
        spent = time.process_time() - cpu
        ends: dict[str, float] = {}
        for row in rows:
            ends[row["worker"]] = max(ends.get(row["worker"], 0.0), row["ended"])
        begun, ended = min(row["begun"] for row in rows), max(ends.values())
        line = {
            "videos": sum(row["videos"] for row in rows),
            "blocks": len(rows),
            "first block, s": round(first - started, 1),
            "driver, CPU ms a block": round(1e3 * spent / len(rows), 1),
            "videos a second of the driver": round(options.videos / spent),
            "run, s": round(ended - begun, 1),
            "tail": f"{(ended - min(ends.values())) / (ended - begun):.1%}",
        }
        print(json.dumps(line))
    finally:
        ray.shutdown()
        cluster.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
