"""The evaluation job, from a manifest to a run folder with its result table, read from top to bottom.

    manifest ──► blocks ──► decode and resize (CPU pool) ──► encode and adapt (model pool) ──► result parts

What a kill leaves behind is a run folder with finished rows; the same call picks up from there.
"""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import DataContext, Dataset
from ray.data.context import AutoscalingConfig
from rich.console import Console

from zar_ray.cluster import connected
from zar_ray.evaluation import capacity, cpu_speed, planning, preflight, recovery, supply
from zar_ray.evaluation.attempts import Attempts, Hangs
from zar_ray.evaluation.blocks import deal
from zar_ray.evaluation.feature_folder import FeatureKeeping
from zar_ray.evaluation.planning import AskedModel, PlannedModel
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.resources import Resources
from zar_ray.evaluation.run_log import RunLog
from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage, decode_block
from zar_ray.evaluation.stages.model_worker import ModelWorker
from zar_ray.evaluation.streams import check_methods, stream_methods
from zar_ray.evaluation.watch import ClusterWatch
from zar_ray.evaluation.workload import Workload
from zar_ray.results.case import Case
from zar_ray.results.folder import PARTS_AT_ONCE, RunFolder
from zar_ray.results.metrics import check_counts
from zar_ray.results.stored_rows import StoredRows

_RETRIES = 1  # of a block whose process died, in one pass


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A finished run.

    Attributes:
        rows: The result table, one row a (video, case), in the run's folder.
        models: The models that ran, with their settings and cases.
        resumed: Videos that an earlier session had finished.
        evaluated: Videos that this session decided about in every case.
        seconds: Wall seconds of this session's pass over the videos, without starting Ray and checking the models.
        loads: Wall seconds that each of this session's workers took to load the models.
    """

    rows: StoredRows
    models: tuple[PlannedModel, ...]
    resumed: int
    evaluated: int
    seconds: float
    loads: tuple[float, ...] = ()

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, each once."""
        return tuple(case for model in self.models for case in model.cases)

    def cell(self, model: int, setting: int) -> Evaluated:
        """What an evaluation of one model under one setting would be."""
        planned = self.models[model]
        cases = planned.of_settings[setting]
        alone = replace(
            planned,
            costs=planned.costs[setting : setting + 1],
            settings=(planned.settings[setting],),
            of_settings=(cases,),
        )
        return replace(self, rows=self.rows.of(case.case_id for case in cases), models=(alone,))


def evaluate(
    workload: Workload,
    asked: Sequence[AskedModel],
    settings: Sequence[str],
    folder: RunFolder,
    console: Console,
) -> Evaluated:
    """Evaluates every video under every model, setting and method, continuing where an earlier session stopped.

    Args:
        workload: The videos and the candidate classes.
        asked: The models, each with its options under every setting. All settings plan the same views for all models.
        settings: What each setting is called in result rows.
        folder: Where the results go.
        console: Where progress is shown.

    Raises:
        RunError: The run cannot start, or Ray stopped; what is finished is kept.
        ZarError: A model cannot be loaded.
    """
    # Ray Data tells of each of its steps, and of lost blocks with tracebacks; its own log files keep all that.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    own = asked[0].settings[0]
    all_settings = [one for model in asked for one in model.settings]
    streams = stream_methods(all_settings)
    check_methods(own, all_settings)
    console.print("starting Ray, or joining it ...")
    with connected(own.address):
        console.print(f"loading {', '.join(dict.fromkeys(one.label for one in asked))} ...", highlight=False)
        # A stream is one replica's; else each has a batch at least.
        most = 1 if streams else -(-len(workload.manifest) // own.batch_size)
        resources = capacity.room_for(own, console, most)
        resources = preflight.without_unfit_nodes(resources, own.compile, partial(console.print, markup=False))
        console.print(resources.described, highlight=False)
        models = planning.plan_models(asked, workload, partial(preflight.check_model, resources))
        spec = planning.job_spec(workload, models, settings, folder.storage, streams)
        passes = planning.passes_of(spec, models)
        ledger, parts = recovery.open_run(workload, models, passes, folder, own, console)
        todo = parts[-1]
        started, loads = time.monotonic(), ()
        if len(todo):
            preflight.check_nodes(preflight.needed_files(workload.manifest, asked), folder.storage)
            placed = tuple(planning.on_device(model.settings, resources.device) for model in models)
            stages = [(DecodeStage(one), (one, placed, resources.threads)) for one in passes]
            features = FeatureKeeping(stages[0][0].stores, own.features_max_bytes, console.print)
            for warn in (supply.warning_for_run, cpu_speed.said_at_start):
                if (warning := warn(models, resources, features.unstored(todo))) is not None:
                    console.print(warning, highlight=False)
            total = len(passes) * len(workload.manifest)
            done = total - sum(map(len, parts))
            with (
                RunLog(folder.storage) as log,
                features,
                VideoProgress(console, total, done, log, features.see) as progress,
                ClusterWatch(progress, log, resources),
            ):
                for one, part, (decode, told) in zip(passes, parts, stages, strict=True):
                    run = partial(
                        run_blocks, decode=decode, told=told, resources=resources, folder=folder, progress=progress
                    )
                    recovery.run_videos(part, one, folder, ledger, own.batch_size, run, progress)
            loads = tuple(progress.loads)
        seconds = time.monotonic() - started
        rows = folder.gather()
        check_counts(workload.expected_rows(spec.cases), rows.read(["video_id", "case_id"]))
        failed = rows.read(["video_id", "error"], pc.field("error").is_valid())["video_id"].unique()
        evaluated = todo.filter(~pc.field("video_id").isin(failed))
        return Evaluated(rows, models, len(workload.manifest) - len(todo), len(evaluated), seconds, loads)


def run_blocks(
    videos: pa.Table,
    batch_size: int,
    attempts: Attempts | None,
    *,
    decode: DecodeStage,
    told: tuple[Any, ...],
    resources: Resources,
    folder: RunFolder,
    progress: VideoProgress,
) -> None:
    """Runs both stages, of which the second takes `batch_size` videos at a time; a block whose worker dies is dropped.

    What `AdaptStage` is made of is `told` to each worker of the model pool. Each block adds a part to the folder, and
    many parts are put into one beside the run. With `attempts` no block is in a worker that may die of another, and
    processes write down there what they have in hand.

    Raises:
        RunError: A block could not be written; the others are not tried.
    """
    if not len(videos):
        return
    Hangs(folder.storage.path()).forget()
    in_order = bool(decode.spec.streams)
    alone, largest = attempts is not None, decode.largest(videos)
    blocks, block_bytes = deal(videos, batch_size, resources, largest, alone=alone, stream=in_order)
    followed = capacity.Followed(resources, block_bytes, progress.say)
    context = DataContext.get_current().copy()
    context.max_errored_blocks, context.enable_progress_bars = -1, False
    context.target_max_block_size = None  # a block stays whole between the stages
    # A node that joins and cannot load the model ends no run; and the pool follows what the cluster has, not how busy
    # it is: it grows at once while blocks are left, and keeps its replicas, which take long to make.
    context.max_consecutive_actor_init_deaths = -1
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_util_upscaling_threshold=0.01, actor_pool_util_downscaling_threshold=-1.0
    )
    context.raise_original_map_exception = True  # which `RunLog` tells apart
    context.execution_options.preserve_order = in_order
    context.execution_options.resource_limits = followed.limits
    number = 0
    with DataContext.current(context), ThreadPoolExecutor(1) as beside:
        stages = _stages(blocks, decode, told, resources, attempts)
        batches = iter(stages.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with closing(cast(Generator[Any], batches)), followed.beside(stages):
            for number, batch in enumerate(batches, start=1):
                progress.count(cast(pa.Table, batch))
                if number % PARTS_AT_ONCE == 0:
                    beside.submit(recovery.put_together, folder, progress)
    if number < len(blocks):
        # The errors of lost blocks hold on to the pool's workers in reference cycles; until those are collected the
        # workers keep their CPUs, and a second pass could wait for them for ever.
        gc.collect()


def _stages(
    blocks: list[pa.Table],
    decode: DecodeStage,
    told: tuple[Any, ...],
    resources: Resources,
    attempts: Attempts | None,
) -> Dataset:
    alone = attempts is not None
    at_once = 1 if alone else resources.blocks_at_once
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to bound retries than the arguments that 2.64 will take away (pyproject.toml
        # keeps Ray below that).
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        return (
            ray.data.from_blocks(blocks)
            .map_batches(
                partial(decode_block, stage=decode, attempts=attempts),
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=resources.decode_pool(),
                num_cpus=resources.decoder_cpus,
                max_retries=_RETRIES,
            )
            # Beside a GPU `map_batches` itself wants a number of rows, to which it would put small blocks together.
            .map_batches_internal(
                ModelWorker,
                fn_constructor_args=(AdaptStage, attempts, *told),
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=resources.model_pool(len(blocks), at_once, waiting=0 if alone else 1),
                **resources.replica_options(),
                # A worker that dies comes back where there is room for it, which may be never: the blocks that it held
                # do not wait for that, and are a later pass's.
                max_restarts=-1,
                max_task_retries=0,
            )
        )
