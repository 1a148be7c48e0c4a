"""The evaluation job, from a manifest to a run folder with its result table, read from top to bottom.

    manifest ──► small blocks ──► decode and resize (CPU pool) ──► encode and adapt (model pool) ──► result parts

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
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources, TaskPoolStrategy
from rich.console import Console

from zar_ray.cluster import connected
from zar_ray.errors import RunError, reason_of
from zar_ray.evaluation import planning, preflight, recovery, supply
from zar_ray.evaluation.attempts import Attempts
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

_RETRIES = 1  # of a block whose process died, in one pass


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A finished run.

    Attributes:
        table: The whole result table, one row a (video, case).
        models: The models that ran, with their settings and cases.
        resumed: Videos that an earlier session had finished.
        evaluated: Videos that this session decided about in every case.
        seconds: Wall seconds of this session's pass over the videos, without starting Ray and checking the models.
    """

    table: pa.Table
    models: tuple[PlannedModel, ...]
    resumed: int
    evaluated: int
    seconds: float

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, each once."""
        return tuple(case for model in self.models for case in model.cases)

    def cell(self, model: int, setting: int) -> Evaluated:
        """What an evaluation of one model under one setting would be."""
        planned = self.models[model]
        cases = planned.of_settings[setting]
        wanted = pa.array([case.case_id for case in cases], pa.string())
        alone = replace(
            planned,
            costs=planned.costs[setting : setting + 1],
            settings=(planned.settings[setting],),
            of_settings=(cases,),
        )
        return replace(self, table=self.table.filter(pc.field("case_id").isin(wanted)), models=(alone,))


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
    streams = stream_methods(one for model in asked for one in model.settings)
    check_methods(own, streams)
    console.print("starting Ray, or joining it ...")
    with connected(own.address):
        console.print(f"loading {', '.join(one.label for one in asked)} ...", highlight=False)
        resources = Resources.of_cluster(own, one_worker=bool(streams))
        preflight.check_devices(resources.worker_gpus, resources.device, own.compile)
        models = tuple(
            preflight.check_model(one.label, number, planning.asked_settings(one, workload), resources)
            for number, one in enumerate(asked)
        )
        spec = planning.job_spec(workload, models, settings, folder.storage, streams)
        ledger, todo = recovery.open_run(workload, models, spec, folder, own, console)
        started = time.monotonic()
        if len(todo):
            preflight.check_nodes(preflight.needed_files(workload.manifest, asked), folder.storage)
            for number in range(len(models)):
                if (store := spec.feature_store(number)) is not None:
                    store.prepare()
            if (warning := supply.warning_for_run(models, resources, todo)) is not None:
                console.print(warning, highlight=False)
            placed = tuple(planning.on_device(model.settings, resources.device) for model in models)
            decode, told = DecodeStage(spec), (spec, placed, resources.threads)
            videos = len(workload.manifest)
            with (
                RunLog(folder.storage) as log,
                VideoProgress(console, videos, videos - len(todo), log) as progress,
                ClusterWatch(progress, log, resources),
            ):
                run = partial(
                    run_blocks, decode=decode, told=told, resources=resources, folder=folder, progress=progress
                )
                recovery.run_videos(todo, spec, folder, ledger, own.batch_size, run, progress)
        seconds = time.monotonic() - started
        table = folder.results()
        check_counts(workload.expected_rows(spec.cases), table)
        failed = table.filter(table["error"].is_valid())["video_id"].unique()
        evaluated = todo.filter(~pc.field("video_id").isin(failed))
        return Evaluated(table, models, len(workload.manifest) - len(todo), len(evaluated), seconds)


def run_blocks(
    videos: pa.Table,
    block_size: int,
    attempts: Attempts | None,
    *,
    decode: DecodeStage,
    told: tuple[Any, ...],
    resources: Resources,
    folder: RunFolder,
    progress: VideoProgress,
) -> None:
    """Runs both stages over blocks of `block_size` videos; a block whose worker dies twice is dropped, not fatal.

    What `AdaptStage` is made of is `told` to each worker of the model pool. Each block adds a part to the folder, and
    many parts are put into one beside the run. With `attempts` no block is in a worker that may die of another, and
    processes write down there what they have in hand.

    Raises:
        RunError: A block could not be written; the others are not tried.
    """
    if not len(videos):
        return
    in_order = bool(decode.spec.streams)
    # Decoding would otherwise run ahead until the object store is full, and memory grow with the number of videos.
    # A block may be in each decoder, up to two in each worker, and one waits ahead of each worker.
    in_flight = (resources.decoders + 3 * resources.workers) * block_size * decode.largest(videos)
    context = DataContext.get_current().copy()
    context.max_errored_blocks, context.enable_progress_bars = -1, False
    context.raise_original_map_exception = True  # which `RunLog` tells apart
    context.execution_options.preserve_order = in_order
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=in_flight)
    with DataContext.current(context), ThreadPoolExecutor(1) as beside:
        stages = _stages(videos, decode, told, resources, block_size, attempts)
        batches = iter(stages.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with closing(cast(Generator[Any], batches)):
            for number, batch in enumerate(batches, start=1):
                progress.count(cast(pa.Table, batch))
                if number % PARTS_AT_ONCE == 0:
                    beside.submit(_compact, folder, progress)
    # The errors of lost blocks hold on to the pool's workers in reference cycles; until those are collected the
    # workers keep their CPUs, and a second pass could wait for them for ever.
    gc.collect()


def _compact(folder: RunFolder, progress: VideoProgress) -> None:
    try:
        folder.compact()
    except RunError as error:
        # Parts are as good as what they are put into, which the next ones try again.
        progress.say(f"{reason_of(error)}; small files of rows stay for now")


def _stages(
    videos: pa.Table,
    decode: DecodeStage,
    told: tuple[Any, ...],
    resources: Resources,
    block_size: int,
    attempts: Attempts | None,
) -> Dataset:
    alone = attempts is not None
    at_once = 1 if alone else resources.blocks_at_once
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to bound retries than the arguments that 2.64 will take away (pyproject.toml
        # keeps Ray below that).
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        return (
            ray.data.from_arrow(videos)
            .repartition(target_num_rows_per_block=block_size)
            .map_batches(
                partial(decode_block, stage=decode, attempts=attempts),
                batch_size=block_size,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=TaskPoolStrategy(size=resources.decoders),
                num_cpus=resources.decoder_cpus,
                max_retries=_RETRIES,
            )
            .map_batches(
                ModelWorker,
                fn_constructor_args=(AdaptStage, attempts, *told),
                batch_size=block_size,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ActorPoolStrategy(
                    size=resources.workers,
                    max_tasks_in_flight_per_actor=1 if alone else at_once + 1,
                    max_concurrent_calls_per_actor=at_once,
                    enable_true_multi_threading=True,
                ),
                num_cpus=resources.worker_cpus,
                num_gpus=resources.worker_gpus,
                # A worker that dies comes back, and the block it held is tried again a bounded number of times; not in
                # a stream, where blocks behind it may have arrived meanwhile.
                max_restarts=-1,
                max_task_retries=0 if decode.spec.streams else _RETRIES,
            )
        )
