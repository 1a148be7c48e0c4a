"""What is still to be done, and what a death costs: at most the video that kills.

A block whose worker died is gone with all its videos: each of them gets a block of its own, and only the one whose
process dies again and again, alone and on a node that is well, is given up. What was lost with its node is no fault of
its own. In a run with stream methods videos go one by one, and the next worker goes on from the streams' state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from ray.exceptions import RayError
from rich.console import Console

from zar_ray.data.manifest import write_manifest
from zar_ray.errors import RunError, reason_of
from zar_ray.evaluation.attempts import Attempts, End, losses
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.planning import PlannedModel, identity
from zar_ray.evaluation.preflight import check_stores
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.run_log import RUN_LOG
from zar_ray.evaluation.spec import MODELS, POSITION, Failure, JobSpec, failed_rows
from zar_ray.evaluation.streams import StreamState
from zar_ray.evaluation.workload import Workload, marked, of_class_set
from zar_ray.interruption import CONTINUES
from zar_ray.results.folder import CONFIG, MANIFEST, Ledger, RunFolder
from zar_ray.results.rows import to_table

# Videos of a pass through a stream's worker.
_STREAMED_AT_ONCE = 512

# How often videos that were lost for other reasons than their own are tried again, one by one.
_PASSES = 5

# Deaths of its process, alone and on a node that is well, after which nothing else can be learnt about a video.
_DEATHS = 2
_KILLER = Failure(
    "its worker process died each time, the last times with this video alone: "
    "a crash in the decoder or the model, a lost device, or the process was killed (out of memory?)",
    "worker",
)
_MEANING: dict[End, str] = {
    "crashed": "its process died",
    "node": "its node was gone",
    "memory": "its node's memory ran out",
    "unclear": "its block was lost",
}

# `zar_ray.evaluation.pipeline.run_blocks`: runs videos through both stages, so many a block; and where processes write
# down what they have in hand, alone.
RunBlocks = Callable[[pa.Table, int, Attempts | None], None]


def open_run(
    workload: Workload,
    models: Sequence[PlannedModel],
    passes: Sequence[JobSpec],
    folder: RunFolder,
    own: EvaluationOptions,
    console: Console,
) -> tuple[Ledger, list[pa.Table]]:
    """Starts the run's folder or continues it.

    Returns:
        The ledger of what has rows, and the videos that lack one in each pass, with `MODELS`; the last pass lacks all
        that any does.

    Raises:
        RunError: The folder holds another run; or there is nothing to resume.
    """
    manifest = workload.manifest
    continued = folder.open(identity(workload, models), resume=own.resume, overwrite=own.overwrite)
    if not folder.storage.exists(MANIFEST):
        # The manifest last: where it is, what a session needs that continues is there.
        folder.storage.write(CONFIG, yaml.safe_dump(own.model_dump(mode="json"), sort_keys=False).encode())
        if passes[0].streams:
            StreamState(0, {}).write(folder.storage)
        write_manifest(manifest, folder.storage.path(MANIFEST))
    elif own.retry_failed:
        folder.forget_failed()
    ledger = Ledger(folder)
    videos = workload.table()
    todo = [unseen(videos, one, ledger, folder) if one.streams else lacking(videos, one, ledger) for one in passes]
    for model in models:
        for remark in model.remarks:
            console.print(f"{model.name}: {remark}", highlight=False)
    if continued:
        done = len(manifest) - len(todo[-1])
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
    return videos.append_column(MODELS, marked(lacks).cast(MODELS.type))


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
        RunError: Ray stopped, or nodes went faster than videos could be tried again; what is finished is kept.
        StorageError: The store of videos that were lost does not answer.
    """
    lost = _LostVideos(spec, folder, ledger, progress)
    before = progress.counted
    lost.fail(todo.filter(pc.field("error").is_valid()))
    whole = todo.filter(pc.field("error").is_null())
    try:
        if spec.streams:
            _run_in_order(whole, lost, run)
        else:
            run(whole, batch_size, None)
            _try_alone(lacking(whole, spec, ledger), lost, run)
    except RayError as error:
        raise RunError(f"Ray stopped the run ({reason_of(error)}); {CONTINUES}") from error
    _count_untold(todo, lost, before)


def _count_untold(todo: pa.Table, lost: _LostVideos, before: tuple[int, int]) -> None:
    """Counts videos that have their rows, and whose block was lost before it could tell: each has rows at the end.

    So it is where a process died just after it wrote them, or hung at a second video after it had given one up.
    """
    done, failed = (now - then for now, then in zip(lost.progress.counted, before, strict=True))
    if (untold := len(todo) - done) <= 0:
        return
    all_failed = lost.among(todo, pc.field("error").is_valid())
    lost.progress.advance(untold, failed=min(untold, max(0, len(all_failed) - failed)))


def put_together(folder: RunFolder, progress: VideoProgress) -> None:
    """Puts the folder's small files of rows together, beside the run."""
    try:
        folder.compact()
    except RunError as error:
        # Parts are as good as what they are put into, which the next ones try again.
        progress.say(f"{reason_of(error)}; small files of rows stay for now")


def _try_alone(videos: pa.Table, lost: _LostVideos, run: RunBlocks) -> None:
    """Tries lost videos one by one, until each has rows or is known to kill."""
    for again in range(_PASSES):
        if not len(videos):
            return
        check_stores(videos)
        what = f"{len(videos)} videos were lost with their worker process or node"
        lost.progress.say(f"{what}{', again' if again else ''}; each is tried again alone")
        lost.progress.note(f"lost: {', '.join(videos['video_id'].to_pylist())}")
        attempts = Attempts()
        run(videos, 1, attempts)
        videos = lost.convict(videos, attempts)
    check_stores(videos)
    lost.give_up(videos)


def _run_in_order(videos: pa.Table, lost: _LostVideos, run: RunBlocks) -> None:
    """Runs the videos one by one through one worker; where it dies, the next goes on from the streams' state.

    What was decoded behind the video that it died of is lost, so a pass has a bounded number of videos.
    """
    storage = lost.folder.storage
    stops: Counter[int] = Counter()
    while len(videos):
        part, attempts = videos.slice(0, _STREAMED_AT_ONCE), Attempts()
        run(part, 1, attempts)
        state = StreamState.read(storage)
        passed = pc.field(POSITION.name) < state.position
        whole_part = state.position > part[POSITION.name][-1].as_py()
        # Those before it without rows were lost with their decoder, as the one may be that it stopped at.
        reached = videos if whole_part else videos.slice(0, len(videos.filter(passed)) + 1)
        left = lost.convict(reached, attempts)
        # The streams went on without them, and cannot go back.
        lost.give_up(left.filter(passed), whatever=True)
        videos, stuck = videos.filter(~passed), left.filter(~passed)
        if whole_part:
            continue
        stops[state.position] += 1
        # Where there are decisions and no state after them the streams have not learnt from it yet.
        again = len(stuck) or lost.among(videos.slice(0, 1), pc.field("error").is_null())
        if again and stops[state.position] < _PASSES:
            lost.progress.say(f"the streams' worker was lost at {videos['video_id'][0]}; the next one goes on there")
            continue
        lost.give_up(stuck)
        videos = videos.slice(1)
        StreamState(state.position + 1, state.tensors).write(storage)


@dataclass(frozen=True)
class _LostVideos:
    """What is known of videos that were lost, and what is made of it.

    Attributes:
        spec: The run.
        folder: Its folder, which gets the rows of those that are given up.
        ledger: Which videos have rows.
        progress: Where it is said and noted.
        ends: How each video was left so far, by its id.
    """

    spec: JobSpec
    folder: RunFolder
    ledger: Ledger
    progress: VideoProgress
    ends: dict[str, Counter[End]] = field(default_factory=dict)

    def convict(self, videos: pa.Table, attempts: Attempts) -> pa.Table:
        """Fails those of some videos that lack rows after a pass and are known to kill; returns the others."""
        lost = lacking(videos, self.spec, self.ledger)
        for video, end, line in losses(lost["video_id"].to_pylist(), attempts.unfinished()):
            self.ends.setdefault(video, Counter())[end] += 1
            self.progress.note(line)
        killers = [video for video, ends in self.ends.items() if ends["crashed"] >= _DEATHS]
        kills = pc.field("video_id").isin(pa.array(killers, pa.string()))
        self.fail(lost.filter(kills))
        return lost.filter(~kills)

    def among(self, videos: pa.Table, rows: pc.Expression) -> set[str]:
        """Those of some videos that have such a row."""
        ours = pc.field("case_id").isin([case.case_id for case in self.spec.cases]) & rows
        tables = self.folder.tables(self.folder.row_files(), ["video_id", "case_id", "error"])
        found = chain.from_iterable(table.filter(ours)["video_id"].to_pylist() for table in tables)
        return {*found}.intersection(videos["video_id"].to_pylist())

    def give_up(self, videos: pa.Table, whatever: bool = False) -> None:
        """Fails videos that were lost too often.

        Raises:
            RunError: Some were lost with their nodes alone, each time, which says nothing about them; not where they
                are given up `whatever` they were lost for.
        """
        unlucky = 0
        for number, video in enumerate(videos["video_id"].to_pylist()):
            ends = self.ends[video]
            if set(ends) == {"node"} and not whatever:
                unlucky += 1
                continue
            told = ", ".join(f"{_MEANING[end]} ({times} of {ends.total()} times)" for end, times in ends.items())
            self.fail(videos.slice(number, 1), Failure(f"given up: {told}; see {RUN_LOG}", "worker"))
        if unlucky:
            raise RunError(f"{unlucky} videos were lost {_PASSES} times, each time with their node; {CONTINUES}")

    def fail(self, videos: pa.Table, why: Failure = _KILLER) -> None:
        """Gives broken videos, and whole ones that are given up, the rows that say so."""
        if not len(videos):
            return
        reasons = [Failure(error, "open") if error is not None else why for error in videos["error"].to_pylist()]
        rows = zip(videos.to_pylist(), reasons, strict=True)
        self.folder.add(to_table(chain.from_iterable(failed_rows(self.spec, row, reason) for row, reason in rows)))
        self.progress.advance(len(videos), failed=len(videos))


def unseen(videos: pa.Table, spec: JobSpec, ledger: Ledger, folder: RunFolder) -> pa.Table:
    """The videos that the streams of a pass have not seen, with their `POSITION`, and broken ones that lack a row."""
    broken = lacking(videos.filter(pc.field("error").is_valid()), spec, ledger)
    whole = spec.order.arranged(videos).filter(pc.field("error").is_null())
    first = spec.order.turn * len(whole)
    ahead = whole.append_column(POSITION, pa.array(range(first, first + len(whole)), POSITION.type))
    left = ahead.slice(max(0, StreamState.read(folder.storage).position - first))
    every = pa.array([sorted({case.model for case in spec.cases})] * len(left), MODELS.type)
    left = left.append_column(MODELS, every).select([*broken.column_names, POSITION.name])
    return pa.concat_tables([broken.append_column(POSITION, pa.nulls(len(broken), POSITION.type)), left])
