"""What a few videos of a run take, measured through the job's own stages in this process, without Ray.

Nothing of it is kept: rows go into a folder that is deleted, and a store of features is neither read nor written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from zar_ray.data.probing import usable_cpus
from zar_ray.errors import RunError
from zar_ray.evaluation import planning
from zar_ray.evaluation.blocks import expected_costs
from zar_ray.evaluation.planning import PlannedModel
from zar_ray.evaluation.recovery import lacking, unseen
from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.evaluation.streams import StreamState, stream_methods
from zar_ray.evaluation.supply import OPERATIONS, tuning_operations
from zar_ray.evaluation.workload import Workload
from zar_ray.models.devices import pick_device
from zar_ray.results.folder import Ledger, RunFolder
from zar_ray.storage import Storage
from zar_ray.video.transforms import as_pillow

_T = TypeVar("_T")
_STAGES = ("zar_ray.evaluation.stages.decode", "zar_ray.evaluation.stages.adapt")


@dataclass(frozen=True)
class Sample:
    """What videos take, by the mean over those that were measured.

    Attributes:
        videos: How many were measured.
        failed: How many more could not be done.
        decode_cpu: CPU seconds of decoding one, while this machine's other cores were busy, which makes all slower.
        adapt_cpu: CPU seconds of adapting to one, likewise.
        adapt_seconds: Wall seconds of it with nothing beside it, on `device` with `threads` CPU threads.
        device: What predicted: ``cpu``, or a GPU's name.
        threads: CPU threads it had.
        encoder_operations: Of the image encoders, a multiplication and an addition being two.
        tuning_operations: Of the text towers, in float32.
        bytes_read: A video's, by the manifest: of one in a tar file its own; None where that does not say.
        bytes_shipped: From decoding to adapting.
        bytes_written: Of its rows.
        largest: Bytes of the frames of the largest video of the run.
        decode_start: CPU seconds until a process can decode.
        adapt_start: CPU seconds until a process can adapt: its imports, and the models.
        job_start: Seconds of the job's start beside that of its processes: Ray's pools; 0 where no trial measured it.
        job_share: CPU that work takes in the job, with objects passed on and processes that take turns, by that of the
            stages alone; 1 where no trial measured it.
    """

    videos: int
    failed: int
    decode_cpu: float
    adapt_cpu: float
    adapt_seconds: float
    device: str
    threads: int
    encoder_operations: float
    tuning_operations: float
    bytes_read: float | None
    bytes_shipped: float
    bytes_written: float
    largest: int
    decode_start: float
    adapt_start: float
    job_start: float = 0.0
    job_share: float = 1.0


def chosen(videos: pa.Table, count: int) -> list[str]:
    """Ids of some videos that stand for all: spread evenly over what they are expected to cost."""
    whole = videos.filter(pc.field("error").is_null())
    if len(whole) <= count:
        return whole["video_id"].to_pylist()[:count]
    order = np.argsort(expected_costs(whole), kind="stable")
    middles = ((np.arange(count) + 0.5) * len(whole) / count).astype(int)
    return whole["video_id"].take(pa.array(np.sort(order[middles]))).to_pylist()


def some_of(workload: Workload, count: int) -> Workload:
    """So many of its videos, see `chosen`."""
    ids = chosen(workload.manifest.table, count)
    return Workload.of(workload.manifest.keep(ids), [split.restricted_to(ids) for split in workload.splits])


def measure(
    workload: Workload, models: Sequence[PlannedModel], labels: Sequence[str], count: int, threads: int
) -> Sample:
    """Decodes and adapts to some of a run's videos.

    Args:
        workload: The run's.
        models: Loaded once to be known.
        labels: What each setting is called.
        count: Videos to measure.
        threads: CPU threads of a worker.

    Raises:
        RunError: None of the videos can be done.
    """
    own = models[0].settings[0].options
    streams = stream_methods(setting.options for model in models for setting in model.settings)
    some = some_of(workload, count)
    if not len(some.manifest):
        raise RunError("no video of the run can be opened, so there is nothing to measure; see `zar data show`")
    with tempfile.TemporaryDirectory(prefix="zar-plan-") as place:
        folder = RunFolder(Storage(place))
        spec = replace(planning.job_spec(some, models, labels, folder.storage, streams), features=None)
        if streams:
            StreamState(0, {}).write(folder.storage)
        as_pillow.compile_for(_pixels(workload.manifest.table))
        passes, videos, ledger = planning.passes_of(spec, models), some.table(), Ledger(folder)
        device, before = pick_device(own.device), torch.get_num_threads()
        placed = tuple(planning.on_device(one.settings, device.type) for one in models)
        blocks, decoding, adapting, waiting, loading = [], 0.0, 0.0, 0.0, 0.0
        try:
            for one in passes:
                todo = unseen(videos, one, ledger, folder) if streams else lacking(videos, one, ledger)
                decode = DecodeStage(one)
                adapt, loading, _ = _timed(lambda one=one: AdaptStage(one, placed, threads))
                if not streams:
                    adapt(decode(todo.slice(0, 1)))  # libraries are loaded, and what all videos share is computed
                batches = [todo.slice(first, own.batch_size) for first in range(0, len(todo), own.batch_size)]
                with _busy(usable_cpus() - 1):
                    for batch in batches:
                        block, cpu, _ = _timed(lambda batch=batch, decode=decode: decode(batch))
                        blocks.append(block)
                        decoding += cpu
                        _, cpu, seconds = _timed(lambda block=block, adapt=adapt: adapt(block))
                        adapting, waiting = adapting + cpu, waiting + seconds
                if not streams:  # which have seen these videos
                    waiting = sum(_timed(lambda block=block, adapt=adapt: adapt(block))[2] for block in blocks)
        finally:
            torch.set_num_threads(before)
        rows = folder.results()
        parts = [len(folder.storage.read(name)) for name in folder.row_files()]
    done = rows.filter(pc.field("error").is_null())
    failed = len(set(rows["video_id"].to_pylist()) - set(done["video_id"].to_pylist()))
    good = len(videos) - failed
    if not good:
        raise RunError(f"none of {len(videos)} videos could be done: {rows['error'][0].as_py()}")
    of_passes = [pc.field("case_id").isin([case.case_id for case in one.cases]) for one in passes]
    encoder = sum(_encoder_operations(done.filter(part), models, spec.labels) for part in of_passes)
    return Sample(
        videos=good,
        failed=failed,
        decode_cpu=decoding / len(videos),
        adapt_cpu=adapting / good,
        adapt_seconds=waiting / good,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=threads,
        encoder_operations=encoder / good,
        tuning_operations=tuning_operations(models),
        bytes_read=pc.call_function("mean", [some.manifest.table["size"]]).as_py(),
        bytes_shipped=sum(block["inputs"].nbytes for block in blocks) / len(videos),
        bytes_written=sum(parts) / (len(videos) if streams else 2 * len(videos) + 1),
        largest=DecodeStage(spec).largest(workload.manifest.table.filter(pc.field("error").is_null())),
        decode_start=_start_of(_STAGES[0]),
        adapt_start=_start_of(_STAGES[1]) + loading,
    )


def _pixels(videos: pa.Table) -> float:
    """All that some manifest rows' videos show."""
    return float(sum(np.prod([videos[name].fill_null(0).to_numpy() for name in ("frames", "height", "width")], axis=0)))


def _timed(work: Callable[[], _T]) -> tuple[_T, float, float]:
    """What something gives, its CPU seconds over all threads, and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return found, time.process_time() - cpu, time.perf_counter() - wall


@contextmanager
def _busy(cores: int) -> Iterator[None]:
    """Keeps so many cores busy with matrix products, as in a run: cores share caches, and often arithmetic."""
    code = "import numpy as np; a = np.ones((256, 256), 'f4'); print(flush=True)\nwhile True: a @ a"
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    others = [subprocess.Popen([sys.executable, "-c", code], env=alone, stdout=subprocess.PIPE) for _ in range(cores)]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        yield
    finally:
        for other in others:
            with other:
                other.kill()


def _start_of(module: str) -> float:
    """CPU seconds of a new process that imports a module."""
    code = f"import time, ray, {module}; print(time.process_time())"
    ran = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return float(ran.stdout.split()[-1])


def _encoder_operations(done: pa.Table, models: Sequence[PlannedModel], labels: Sequence[str]) -> float:
    """Of the image encoders for all videos of some rows."""
    encoder = 0.0
    for label, model in zip(labels, models, strict=True):
        of_model = done.filter(pc.field("model") == label).group_by("video_id").aggregate([("images_encoded", "max")])
        encoder += (
            sum(filter(None, of_model["images_encoded_max"].to_pylist())) * model.costs[0].image_gflops * OPERATIONS
        )
    return encoder
