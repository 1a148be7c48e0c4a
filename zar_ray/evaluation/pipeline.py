"""The evaluation job, from a manifest to a run folder with its result table, read from top to bottom.

    manifest ──► small blocks ──► decode and resize (CPU pool) ──► encode and adapt (model pool) ──► result parts

What a kill leaves behind is a run folder with finished rows; the same call picks up from there.
"""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray
import yaml
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources, TaskPoolStrategy
from ray.exceptions import RayError
from rich.console import Console

from zar_ray.adaptation.adapter import make_cases
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.settings import Setting
from zar_ray.cluster import connected, total_cpus, total_gpus
from zar_ray.data.class_texts import is_context_file, prompts_of
from zar_ray.data.manifest import Manifest, write_manifest
from zar_ray.errors import RunError
from zar_ray.evaluation.adapt_stage import AdaptStage, ModelsStage
from zar_ray.evaluation.decode_stage import decode_block, decode_for_models
from zar_ray.evaluation.options import EvalConfig
from zar_ray.evaluation.preflight import check_model, check_nodes
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.spec import MODELS, POSITION, Failure, JobSpec, ModelCard, failed_rows, planned_as
from zar_ray.evaluation.streams import StreamState, check_methods, stream_methods
from zar_ray.evaluation.workload import CLASS_SETS, Workload
from zar_ray.options.base import fingerprint
from zar_ray.options.base import identity as settings_of
from zar_ray.results.case import Case
from zar_ray.results.folder import CONFIG, MANIFEST, RunFolder
from zar_ray.results.metrics import check_counts
from zar_ray.results.rows import to_table
from zar_ray.study.sweeps import at_one_short_side, varied_options
from zar_ray.video.transforms import resized_size, short_side_for

# How many videos to look for one that is there.
_LOOKED_AT = 100

# Videos of a pass through a stream's worker.
_STREAMED_AT_ONCE = 512

# A video whose process died in company and then again alone: nothing else can be learnt about it from here.
_KILLER = (
    "its worker process died each time, the last time with this video alone: "
    "a crash in the decoder or the model, or the process was killed (out of memory?)"
)


@dataclass(frozen=True)
class Resources:
    """How a cluster is shared between the two pools.

    Attributes:
        workers: Model replicas.
        worker_cpus: CPUs a replica reserves; a fraction keeps one CPU free for decoding on a small machine.
        worker_gpus: GPUs a replica reserves.
        worker_threads: CPU threads a replica uses.
        decoders: Decoding tasks at once.
        decoder_cpus: CPUs a decoding task reserves.  Always other than `worker_cpus`: Ray Data would fuse the two
            pools into one if they asked for the same.
    """

    workers: int
    worker_cpus: float
    worker_gpus: float
    worker_threads: int
    decoders: int
    decoder_cpus: float

    @classmethod
    def of_cluster(cls, options: EvalConfig) -> Resources:
        """Works out the pools from what the joined cluster has and what the options ask for.

        Raises:
            RunError: The cluster lacks what the options ask for.
        """
        cpus, gpus = total_cpus(), total_gpus()
        worker_gpus = options.gpus_per_worker if options.gpus_per_worker is not None else (1.0 if gpus else 0.0)
        if worker_gpus > gpus:
            raise RunError(f"--gpus-per-worker {worker_gpus:g}: the cluster has {gpus:g} GPUs")
        workers = options.num_workers or int(gpus / worker_gpus if worker_gpus else max(1, cpus // 2))
        if worker_gpus * workers > gpus:
            raise RunError(f"--num-workers {workers} of {worker_gpus:g} GPUs each: the cluster has {gpus:g} GPUs")
        worker_cpus = min(0.99, (cpus - 1) / workers) if cpus > 1 else 0.4 / workers
        decoders = options.decode_workers or max(1, int(cpus - worker_cpus * workers))
        threads = 1 if worker_gpus else max(1, int(cpus // workers))
        return cls(workers, round(worker_cpus, 4), worker_gpus, threads, decoders, 1.0 if cpus > 1 else 0.5)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A finished run.

    Attributes:
        table: The whole result table, one row a (video, case).
        model: The model that ran.
        cases: The cases, each once.
        settings: The options of each setting, as they ran: of an evaluation one, of a sweep several.
        of_settings: The cases of each setting; what settings have in common is one case.
        resumed: Videos that an earlier session had finished.
        evaluated: Videos that this session evaluated.
        seconds: Wall seconds of this session's pipeline, without its start-up.
    """

    table: pa.Table
    model: ModelCard
    cases: tuple[Case, ...]
    settings: tuple[EvalConfig, ...]
    of_settings: tuple[tuple[Case, ...], ...]
    resumed: int
    evaluated: int
    seconds: float

    def under(self, setting: int) -> Evaluated:
        """What an evaluation under one of the settings alone would be."""
        cases = self.of_settings[setting]
        wanted = pa.array([case.case_id for case in cases], pa.string())
        table = self.table.filter(pc.field("case_id").isin(wanted))
        return replace(
            self,
            table=table,
            model=replace(self.model, costs=self.model.costs[setting : setting + 1]),
            cases=cases,
            settings=(self.settings[setting],),
            of_settings=(cases,),
        )


def evaluate(
    workload: Workload,
    options: EvalConfig,
    folder: RunFolder,
    console: Console,
    variants: Sequence[EvalConfig] = (),
) -> Evaluated:
    """Evaluates every video under every method and setting, continuing where an earlier session stopped.

    Args:
        workload: The videos and the candidate classes.
        options: The run's options, which are its first setting.
        folder: Where the results go.
        console: Where progress is shown.
        variants: The options of further settings, evaluated in the same pass; see `zar_ray.study.sweeps` for what
            may be different in them.

    Raises:
        RunError: The run cannot start, or Ray stopped; what is finished is kept.
        ZarError: The model cannot be loaded.
    """
    _quieten()
    runs = (options, *variants)
    streams = stream_methods(runs)
    check_methods(options, streams)
    with connected(options.address):
        resources = Resources.of_cluster(options.model_copy(update={"num_workers": 1}) if streams else options)
        begun = _begin(workload, runs, folder, resources, streams, console)
        started = time.monotonic()
        if len(begun.todo):
            store = begun.spec.feature_store()
            if store is not None:
                store.prepare()
            with VideoProgress(console, len(workload.manifest), begun.done) as progress:
                _evaluate_videos(begun.todo, begun.spec, resources, folder, progress)
        return begun.collect(time.monotonic() - started)


def evaluate_models(
    workload: Workload, runs: Sequence[EvalConfig], folders: Sequence[RunFolder], console: Console
) -> tuple[Evaluated, ...]:
    """Evaluates every video under several models, which share its decoding; a run each, as `evaluate` would make it.

    Args:
        workload: The videos and the candidate classes.
        runs: The options of each model's run, which differ in the model alone.
        folders: Where their results go.
        console: Where progress is shown.

    Raises:
        RunError: A run cannot start, or Ray stopped; what is finished is kept.
        ZarError: A model cannot be loaded.
    """
    _quieten()
    for options in runs:
        check_methods(options, ())
    with connected(runs[0].address):
        resources = Resources.of_cluster(runs[0])
        begun = [
            _begin(workload, (options,), folder, resources, (), console)
            for options, folder in zip(runs, folders, strict=True)
        ]
        started = time.monotonic()
        _evaluate_together(workload, begun, resources, console)
        seconds = time.monotonic() - started
        return tuple(one.collect(seconds) for one in begun)


def _quieten() -> None:
    # Ray Data tells of each of its steps, and of lost blocks with tracebacks; its own log files keep all that.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@dataclass(frozen=True, eq=False)
class _Begun:
    """A run whose folder is open and whose model is known to load.

    Attributes:
        workload: The videos and the candidate classes.
        folder: Where the results go.
        spec: What its workers are told.
        of_settings: The cases of each setting.
        todo: The videos that have no result yet.
    """

    workload: Workload
    folder: RunFolder
    spec: JobSpec
    of_settings: tuple[tuple[Case, ...], ...]
    todo: pa.Table

    @property
    def done(self) -> int:
        """Videos that an earlier session had finished."""
        return len(self.workload.manifest) - len(self.todo)

    def lacking(self, videos: pa.Table) -> pa.Table:
        """Those of some videos that lack a row, finished or failed."""
        return _lacking(videos, self.folder, self.spec.cases)

    def collect(self, seconds: float) -> Evaluated:
        """The finished run.

        Raises:
            RunError: Rows are missing or there twice.
        """
        table, cases = self.folder.results(), self.spec.cases
        check_counts(self.workload.expected_rows(cases), table)
        runs = tuple(cast(EvalConfig, setting.options) for setting in self.spec.settings)
        return Evaluated(table, self.spec.model, cases, runs, self.of_settings, self.done, len(self.todo), seconds)


def _begin(
    workload: Workload,
    runs: tuple[EvalConfig, ...],
    folder: RunFolder,
    resources: Resources,
    streams: tuple[str, ...],
    console: Console,
) -> _Begun:
    """Checks the model and the nodes, and opens or continues the run's folder."""
    manifest = workload.manifest
    prompts = [prompts_of(workload.class_sets, one) for one in runs]
    asked = tuple(map(Setting, runs, prompts))
    model = check_model(runs[0], asked, resources.worker_cpus, resources.worker_gpus)
    runs = at_one_short_side(runs, model.preprocessing)
    settings, options = tuple(map(Setting, runs, prompts)), runs[0]
    of_settings = tuple(
        make_cases(setting.options, model.fingerprint, setting.prompts, number)
        for number, setting in enumerate(settings)
    )
    cases = _distinct(chain.from_iterable(of_settings))
    identity = _identity(workload, settings, options, model)
    continued = folder.open(identity, resume=options.resume, overwrite=options.overwrite)
    if not continued:
        folder.storage.write(CONFIG, yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False).encode())
        write_manifest(manifest, folder.storage.path(MANIFEST))

    if continued and options.retry_failed:
        folder.forget_failed()
    if streams and not continued:
        StreamState(0, {}).write(folder.storage)
    todo = _from_position(workload.table(), folder, cases) if streams else _lacking(workload.table(), folder, cases)
    for remark in model.remarks:
        console.print(f"{model.name}: {remark}", highlight=False)
    if continued:
        done = len(manifest) - len(todo)
        console.print(f"continuing {folder.storage.path()}: {done} of {len(manifest)} videos are finished")
    if len(todo):
        check_nodes(_needed_files(manifest, options), folder.storage)
    spec = JobSpec(
        options=options,
        model=model,
        class_sets=workload.class_sets,
        settings=settings,
        multi_label=workload.multi_label,
        cases=cases,
        storage=folder.storage,
        needs_views=any(get_method(case.method).needs_views for case in cases),
        threads=resources.worker_threads,
        streams=streams,
    )
    return _Begun(workload, folder, spec, of_settings, todo)


# Where things lie; what they hold is compared by fingerprints instead.
_PLACES = ("dataset", "checkpoint", "class_names", "class_texts")


def _identity(
    workload: Workload, settings: Sequence[Setting], options: EvalConfig, model: ModelCard
) -> dict[str, object]:
    manifest = workload.manifest
    of_prompts = [fingerprint([one.identity for one in setting.prompts]) for setting in settings]
    places = (*_PLACES, "context") if is_context_file(options.context) else _PLACES
    described: dict[str, object] = {
        "options": {name: value for name, value in settings_of(options).items() if name not in places},
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "manifest": {"videos": len(manifest), "fingerprint": manifest.fingerprint()},
        "splits": {
            split.name: {
                "classes": list(split.class_names),
                "videos": fingerprint([split.video_ids, split.labels]),
            }
            for split in workload.splits
        },
        "prompts": of_prompts[0],
    }
    if len(settings) > 1:
        changes = [varied_options(options, setting.options) for setting in settings[1:]]
        described["settings"] = [
            {**{name: value for name, value in change.items() if name not in _PLACES}, "prompts": prompts}
            for change, prompts in zip(changes, of_prompts[1:], strict=True)
        ]
    return described


def _distinct(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Each case once, under the first setting that has it."""
    distinct: dict[str, Case] = {}
    for case in cases:
        distinct.setdefault(case.case_id, case)
    return tuple(distinct.values())


def _from_position(videos: pa.Table, folder: RunFolder, cases: Sequence[Case]) -> pa.Table:
    """The videos that the streams have not seen, with their `POSITION`, and broken ones that lack a row."""
    broken = _lacking(videos.filter(pc.field("error").is_valid()), folder, cases)
    whole = videos.filter(pc.field("error").is_null())
    ahead = whole.append_column(POSITION, pa.array(range(len(whole)), POSITION.type))
    unseen = ahead.slice(StreamState.read(folder.storage).position)
    return pa.concat_tables([broken.append_column(POSITION, pa.nulls(len(broken), POSITION.type)), unseen])


def _lacking(videos: pa.Table, folder: RunFolder, cases: Sequence[Case]) -> pa.Table:
    """The videos that lack a row, finished or failed, for some case that they are of."""
    counts = folder.results().group_by("video_id").aggregate([("case_id", "count_distinct")])
    done = dict(zip(counts["video_id"].to_pylist(), counts["case_id_count_distinct"].to_pylist(), strict=True))
    of_sets = Counter(case.class_set for case in cases)
    wanted = zip(videos["video_id"].to_pylist(), videos[CLASS_SETS.name].to_pylist(), strict=True)
    lacks = [done.get(video, 0) < sum(of_sets[one] for one in sets) for video, sets in wanted]
    return videos.filter(pa.array(lacks, pa.bool_()))


def _needed_files(manifest: Manifest, options: EvalConfig) -> list[str]:
    """The checkpoint and one video; one that this process sees, where it sees any, as a lost file fails by itself."""
    paths = manifest.table.filter(pc.field("error").is_null())["path"].to_pylist()
    video = next((path for path in paths[:_LOOKED_AT] if Path(path).is_file()), paths[0] if paths else None)
    return [str(path) for path in (video, options.checkpoint) if path is not None]


def _evaluate_videos(
    todo: pa.Table, spec: JobSpec, resources: Resources, folder: RunFolder, progress: VideoProgress
) -> None:
    broken = todo.filter(pc.field("error").is_valid())
    _add_broken(broken, spec, folder)
    progress.advance(len(broken), failed=len(broken))
    whole = todo.filter(pc.field("error").is_null())
    if spec.streams:
        _evaluate_in_order(whole, spec, resources, folder, progress)
        return
    work = _Work.of(spec)
    try:
        _run_blocks(whole, work, resources, spec.options.batch_size, retries=1, progress=progress)
        # A block whose worker died is gone with all its videos: each gets a block of its own, so that the others
        # are saved and only the one that kills its worker is lost.
        lost = _lacking(whole, folder, spec.cases)
        if len(lost):
            progress.say(f"{len(lost)} videos were lost with their worker process; each is tried again alone")
        _run_blocks(lost, work, resources, 1, retries=0, progress=progress)
    except RayError as error:
        raise _stopped(error) from error
    killers = _lacking(whole, folder, spec.cases)
    _fail(killers, spec, folder)
    progress.advance(len(killers), failed=len(killers))


def _evaluate_together(workload: Workload, begun: Sequence[_Begun], resources: Resources, console: Console) -> None:
    """Runs the videos that any of several models lacks, each decoded once."""
    for one in begun:
        _add_broken(one.todo.filter(pc.field("error").is_valid()), one.spec, one.folder)
    videos = workload.table()
    whole, total = videos.filter(pc.field("error").is_null()), len(videos)
    first = _wanted(whole, begun)
    with VideoProgress(console, total, total - len(first)) as progress:
        work = _Work.of_models([one.spec for one in begun])
        try:
            _run_blocks(first, work, resources, begun[0].spec.options.batch_size, retries=1, progress=progress)
            lost = _wanted(whole, begun)
            if len(lost):
                progress.say(f"{len(lost)} videos were lost with their worker process; each is tried again alone")
            _run_blocks(lost, work, resources, 1, retries=0, progress=progress)
        except RayError as error:
            raise _stopped(error) from error
        killers = _wanted(whole, begun)
        progress.advance(len(killers), failed=len(killers))
    for one in begun:
        _fail(one.lacking(whole), one.spec, one.folder)


def _wanted(videos: pa.Table, begun: Sequence[_Begun]) -> pa.Table:
    """The videos that lack a row of any model, with the `MODELS` that it is of."""
    lacking = [set(one.lacking(videos)["video_id"].to_pylist()) for one in begun]
    models = [
        [number for number, ids in enumerate(lacking) if video in ids] for video in videos["video_id"].to_pylist()
    ]
    named = videos.append_column(MODELS, pa.array(models, MODELS.type))
    return named.filter(pa.array([bool(numbers) for numbers in models], pa.bool_()))


def _add_broken(videos: pa.Table, spec: JobSpec, folder: RunFolder) -> None:
    """Gives videos that the manifest knows to be broken the rows that say so."""
    if len(videos):
        rows = (failed_rows(spec, row, Failure(row["error"], "open")) for row in videos.to_pylist())
        folder.add(to_table(chain.from_iterable(rows)))


def _evaluate_in_order(
    videos: pa.Table, spec: JobSpec, resources: Resources, folder: RunFolder, progress: VideoProgress
) -> None:
    """Runs the videos one by one through one worker; where it dies, the next goes on from the streams' state.

    What was decoded behind the video that it died of is lost, so a pass has a bounded number of videos.
    """
    work, died_at = _Work.of(spec), -1
    while len(videos):
        part = videos.slice(0, _STREAMED_AT_ONCE)
        try:
            _run_blocks(part, work, resources, 1, retries=1, progress=progress)
        except RayError as error:
            raise _stopped(error) from error
        state = StreamState.read(folder.storage)
        # Videos before it without rows killed their decoder: the streams went on without them.
        passed = pc.field(POSITION.name) < state.position
        killers = _lacking(videos.filter(passed), folder, spec.cases)
        videos, whole_part = videos.filter(~passed), state.position > part[POSITION.name][-1].as_py()
        if not whole_part and state.position == died_at:
            killers = pa.concat_tables([killers, videos.slice(0, 1)])
            videos = videos.slice(1)
        _fail(killers, spec, folder)
        progress.advance(len(killers), failed=len(killers))
        if not whole_part and state.position == died_at:
            StreamState(died_at + 1, state.tensors).write(folder.storage)
        died_at = -1 if whole_part else state.position


def _stopped(error: RayError) -> RunError:
    reason = " ".join(str(error).split())[:300]
    return RunError(f"Ray stopped the run ({reason}); the same command continues it")


def _fail(videos: pa.Table, spec: JobSpec, folder: RunFolder) -> None:
    """Gives videos that kill their processes the rows that say so."""
    if len(videos):
        rows = (failed_rows(spec, row, Failure(_KILLER, "worker")) for row in videos.to_pylist())
        folder.add(to_table(chain.from_iterable(rows)))


@dataclass(frozen=True)
class _Work:
    """What the two stages do.

    Attributes:
        decode: The first one, a block of videos at a time.
        worker: The second one: the class of its workers.
        told: What a worker is made of.
        largest: Bytes that the frames of the largest of some videos take at most.
        in_order: Whether videos must come in order, one by one, to one worker.
    """

    decode: Callable[[pa.Table], pa.Table]
    worker: type
    told: tuple[Any, ...]
    largest: Callable[[pa.Table], int]
    in_order: bool = False

    @classmethod
    def of(cls, spec: JobSpec) -> _Work:
        """One run's."""
        decode = partial(decode_block, spec=spec)
        return cls(decode, AdaptStage, (spec,), partial(_largest_video, spec=spec), bool(spec.streams))

    @classmethod
    def of_models(cls, specs: Sequence[JobSpec]) -> _Work:
        """That of several models' runs at once."""

        def largest(videos: pa.Table) -> int:
            return sum(_largest_video(videos, spec) for spec in specs)

        return cls(partial(decode_for_models, specs=specs), ModelsStage, (specs,), largest)


def _run_blocks(
    videos: pa.Table, work: _Work, resources: Resources, block_size: int, retries: int, progress: VideoProgress
) -> None:
    """Runs both stages over blocks of `block_size` videos; a block whose worker dies is dropped, not fatal."""
    if not len(videos):
        return
    # Decoding would otherwise run ahead until the object store is full, and memory grow with the number of videos.
    in_flight = _blocks_at_once(resources) * block_size * work.largest(videos)
    with _ray_data_settings(in_flight, in_order=work.in_order):
        batches = _dataset(videos, work, resources, block_size, retries).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        for batch in cast(Iterable[pa.Table], batches):
            failed = batch["failed"].to_pylist()
            progress.advance(len(failed), failed=sum(failed))
            progress.count_features(batch.filter(~pc.field("failed")))
    # The errors of lost blocks hold on to the pool's workers in reference cycles; until those are collected the
    # workers keep their CPUs, and a second pass could wait for them for ever.
    gc.collect()


@contextmanager
def _ray_data_settings(object_store_bytes: int, in_order: bool) -> Iterator[None]:
    """Ray Data's settings of this process for one pass; whoever else uses it here finds their own again."""
    context = DataContext.get_current()
    limits, preserves = context.execution_options.resource_limits, context.execution_options.preserve_order
    before = context.max_errored_blocks, context.enable_progress_bars
    context.max_errored_blocks, context.enable_progress_bars = -1, False
    context.execution_options.preserve_order = in_order
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=object_store_bytes)
    try:
        yield
    finally:
        context.max_errored_blocks, context.enable_progress_bars = before
        context.execution_options.resource_limits = limits
        context.execution_options.preserve_order = preserves


def _blocks_at_once(resources: Resources) -> int:
    """Blocks that may wait or be worked on: one in each decoder, one in each worker, and two ahead of each."""
    return resources.decoders + 3 * resources.workers


def _largest_video(videos: pa.Table, spec: JobSpec) -> int:
    """Bytes that the frames of the largest video's plans take at most."""
    side, named = short_side_for(spec.options.views, spec.model.preprocessing), 0
    for views, _ in dict.fromkeys(planned_as(setting) for setting in spec.settings):
        named += views.eval_frames * int(views.eval_views.partition("x")[0])
        if spec.needs_views:
            named += views.frames * views.views_per_rate * len(views.rates)
    columns = zip(*(videos[name].to_pylist() for name in ("frames", "height", "width")), strict=True)
    return max(min(frames, named) * prod(resized_size(height, width, side)) * 3 for frames, height, width in columns)


def _dataset(videos: pa.Table, work: _Work, resources: Resources, block_size: int, retries: int) -> Dataset:
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to bound retries than the arguments that 2.64 will take away (pyproject.toml
        # keeps Ray below that).
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        return _stages(videos, work, resources, block_size, retries)


def _stages(videos: pa.Table, work: _Work, resources: Resources, block_size: int, retries: int) -> Dataset:
    return (
        ray.data.from_arrow(videos)
        .repartition(target_num_rows_per_block=block_size)
        .map_batches(
            work.decode,
            batch_size=block_size,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=TaskPoolStrategy(size=resources.decoders),
            num_cpus=resources.decoder_cpus,
            max_retries=retries,
        )
        .map_batches(
            work.worker,
            fn_constructor_args=work.told,
            batch_size=block_size,
            batch_format="pyarrow",
            zero_copy_batch=True,
            # Where a task is not tried again, none may wait in a worker that dies of the one before.
            compute=ActorPoolStrategy(
                size=resources.workers, max_tasks_in_flight_per_actor=1 if work.in_order or not retries else None
            ),
            num_cpus=resources.worker_cpus,
            num_gpus=resources.worker_gpus,
            # A worker that dies comes back, and the block it held is tried again a bounded number of times; not in a
            # stream, where blocks behind it may have arrived meanwhile.
            max_restarts=-1,
            max_task_retries=0 if work.in_order else retries,
        )
    )
