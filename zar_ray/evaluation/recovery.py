"""What is still to be done, and what a death costs: at most the video that kills.

A block whose worker died is gone with all its videos: each of them gets a block of its own, so that the others are
saved and only the one that kills its worker is lost. In a run with stream methods videos go one by one, and the next
worker goes on from the streams' state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from ray.exceptions import RayError
from rich.console import Console

from zar_ray.data.manifest import write_manifest
from zar_ray.errors import RunError, reason_of
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.planning import PlannedModel, identity
from zar_ray.evaluation.preflight import check_stores
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.spec import MODELS, POSITION, Failure, JobSpec, failed_rows
from zar_ray.evaluation.streams import StreamState
from zar_ray.evaluation.workload import Workload, of_class_set
from zar_ray.results.folder import CONFIG, MANIFEST, Ledger, RunFolder
from zar_ray.results.rows import to_table

# Videos of a pass through a stream's worker.
_STREAMED_AT_ONCE = 512

# A video whose process died in company and then again alone: nothing else can be learnt about it from here.
_KILLER = Failure(
    "its worker process died each time, the last time with this video alone: "
    "a crash in the decoder or the model, a lost device, or the process was killed (out of memory?)",
    "worker",
)

# `zar_ray.evaluation.pipeline.run_blocks`: runs videos through both stages, so many a block; and how often a block is
# tried again whose worker died.
RunBlocks = Callable[[pa.Table, int, int], None]


def open_run(
    workload: Workload,
    models: Sequence[PlannedModel],
    spec: JobSpec,
    folder: RunFolder,
    own: EvaluationOptions,
    console: Console,
) -> tuple[Ledger, pa.Table]:
    """Starts the run's folder or continues it.

    Returns:
        The ledger of what has rows, and the videos that lack one, with `MODELS`.

    Raises:
        RunError: The folder holds another run; or there is nothing to resume.
    """
    manifest = workload.manifest
    continued = folder.open(identity(workload, models), resume=own.resume, overwrite=own.overwrite)
    if not continued:
        folder.storage.write(CONFIG, yaml.safe_dump(own.model_dump(mode="json"), sort_keys=False).encode())
        write_manifest(manifest, folder.storage.path(MANIFEST))
        if spec.streams:
            StreamState(0, {}).write(folder.storage)
    elif own.retry_failed:
        folder.forget_failed()
    ledger = Ledger(folder)
    videos = workload.table()
    todo = unseen(videos, spec, ledger, folder) if spec.streams else lacking(videos, spec, ledger)
    for model in models:
        for remark in model.remarks:
            console.print(f"{model.name}: {remark}", highlight=False)
    if continued:
        done = len(manifest) - len(todo)
        console.print(f"continuing {folder.storage.path()}: {done} of {len(manifest)} videos are finished")
    return ledger, todo


def lacking(videos: pa.Table, spec: JobSpec, ledger: Ledger) -> pa.Table:
    """The videos that lack a row, finished or failed, for some case that they are of; with the `MODELS` that do."""
    ledger.refresh()
    lacks = np.zeros((len(videos), len(spec.models)), bool)
    for case in spec.cases:
        lacks[:, case.model] |= of_class_set(videos, case.class_set) & ~ledger.has(case.case_id, videos["video_id"])
    videos, lacks = videos.filter(pa.array(lacks.any(axis=1))), lacks[lacks.any(axis=1)]
    if MODELS.name in videos.column_names:
        videos = videos.drop_columns([MODELS.name])
    ends, models = np.append(0, lacks.sum(axis=1).cumsum()), np.nonzero(lacks)[1]
    column = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(models, pa.int32()))
    return videos.append_column(MODELS, column.cast(MODELS.type))


def run_videos(
    todo: pa.Table,
    spec: JobSpec,
    folder: RunFolder,
    ledger: Ledger,
    batch_size: int,
    run: RunBlocks,
    progress: VideoProgress,
) -> None:
    """Gives every video that lacks rows its rows, whatever dies on the way.

    Raises:
        RunError: Ray stopped; what is finished is kept.
        StorageError: The store of videos that were lost does not answer.
    """
    _fail(todo.filter(pc.field("error").is_valid()), spec, folder, progress)
    whole = todo.filter(pc.field("error").is_null())
    try:
        if spec.streams:
            _run_in_order(whole, spec, folder, ledger, run, progress)
            return
        run(whole, batch_size, 1)
        lost = lacking(whole, spec, ledger)
        if len(lost):
            check_stores(lost)
            progress.say(f"{len(lost)} videos were lost with their worker process; each is tried again alone")
            run(lost, 1, 0)
    except RayError as error:
        raise RunError(f"Ray stopped the run ({reason_of(error)}); the same command continues it") from error
    lost = lacking(whole, spec, ledger)
    check_stores(lost)
    _fail(lost, spec, folder, progress)


def put_together(folder: RunFolder, progress: VideoProgress) -> None:
    """Puts the folder's small files of rows together, beside the run."""
    try:
        folder.compact()
    except RunError as error:
        # Parts are as good as what they are put into, which the next ones try again.
        progress.say(f"{reason_of(error)}; small files of rows stay for now")


def _run_in_order(
    videos: pa.Table, spec: JobSpec, folder: RunFolder, ledger: Ledger, run: RunBlocks, progress: VideoProgress
) -> None:
    """Runs the videos one by one through one worker; where it dies, the next goes on from the streams' state.

    What was decoded behind the video that it died of is lost, so a pass has a bounded number of videos.
    """
    died_at = -1
    while len(videos):
        part = videos.slice(0, _STREAMED_AT_ONCE)
        run(part, 1, 1)
        state = StreamState.read(folder.storage)
        # Videos before it without rows killed their decoder: the streams went on without them.
        passed = pc.field(POSITION.name) < state.position
        killers = lacking(videos.filter(passed), spec, ledger)
        videos, whole_part = videos.filter(~passed), state.position > part[POSITION.name][-1].as_py()
        _fail(killers, spec, folder, progress)
        if not whole_part and state.position == died_at:
            _fail(videos.slice(0, 1), spec, folder, progress)
            videos = videos.slice(1)
            StreamState(died_at + 1, state.tensors).write(folder.storage)
        died_at = -1 if whole_part else state.position


def unseen(videos: pa.Table, spec: JobSpec, ledger: Ledger, folder: RunFolder) -> pa.Table:
    """The videos that the streams have not seen, with their `POSITION`, and broken ones that lack a row."""
    broken = lacking(videos.filter(pc.field("error").is_valid()), spec, ledger)
    whole = videos.filter(pc.field("error").is_null())
    ahead = whole.append_column(POSITION, pa.array(range(len(whole)), POSITION.type))
    left = ahead.slice(StreamState.read(folder.storage).position)
    every = pa.array([list(range(len(spec.models)))] * len(left), MODELS.type)
    left = left.append_column(MODELS, every).select([*broken.column_names, POSITION.name])
    return pa.concat_tables([broken.append_column(POSITION, pa.nulls(len(broken), POSITION.type)), left])


def _fail(videos: pa.Table, spec: JobSpec, folder: RunFolder, progress: VideoProgress) -> None:
    """Gives broken videos, and whole ones that kill their processes, the rows that say so."""
    if len(videos):
        why = [Failure(error, "open") if error is not None else _KILLER for error in videos["error"].to_pylist()]
        rows = (failed_rows(spec, row, failure) for row, failure in zip(videos.to_pylist(), why, strict=True))
        folder.add(to_table(chain.from_iterable(rows)))
        progress.advance(len(videos), failed=len(videos))
