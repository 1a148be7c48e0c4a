"""Evaluations and trainings whose stages run one after the other in this process, in place of Ray's."""

from __future__ import annotations

import queue
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
import torch
from probed_here import probed_here
from ray.train import Checkpoint
from ray.util.queue import Empty

from zar_ray import cluster
from zar_ray.evaluation import capacity, pipeline, preflight, supply
from zar_ray.evaluation.attempts import Attempts
from zar_ray.evaluation.planning import plan_model
from zar_ray.evaluation.resources import Resources, Wanted
from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.study import collect
from zar_ray.training import job as training_job
from zar_ray.training import samples, worker
from zar_ray.training.videos import VideoTable
from zar_ray.training.workers import WorkerNeeds


def _run_blocks(videos, block_size, attempts, *, decode, told, resources, folder, progress) -> None:
    if len(videos):
        stage = pipeline.AdaptStage(*told)
        for start in range(0, len(videos), block_size):
            progress.count(stage(decode(videos.slice(start, block_size))))


@contextmanager
def stages_here() -> Iterator[None]:
    """Has an evaluation run its stages in this process, in place of Ray's pools; Ray itself is joined all the same.

    For runs that others are compared with, and for what does not depend on processes: their start takes seconds. A
    folder's videos are opened here, too.
    """
    with probed_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_blocks", _run_blocks)
        patch.setattr(preflight, "check_nodes", lambda paths, storage: None)
        patch.setattr(preflight, "check_model", lambda *asked: plan_model(*asked[1:]))
        # A picture takes as long as a small evaluation.
        patch.setattr(collect, "confusion_picture", lambda *_: b"")
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)


@contextmanager
def without_ray() -> Iterator[None]:
    """Has evaluations and trainings run in this process, and start or join no Ray: on one machine of one CPU."""

    def room_for(options, console, most=None) -> Resources:
        return Resources(Wanted.of(options, "cpu", 0.0, most), 1, 1.0, 1, 1.0, 0, 1)

    kept = tempfile.TemporaryDirectory(prefix="zar-ray-")
    with kept as root, stages_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "place_to_join", lambda *_: cluster.LOCAL)
        patch.setattr(pipeline, "connected", lambda address: nullcontext())
        patch.setattr(pipeline, "ClusterWatch", lambda *_: nullcontext())
        # Not those of the session's Ray, which take notes on the local disk.
        patch.setattr(pipeline, "DecodeStage", DecodeStage)
        patch.setattr(pipeline, "AdaptStage", AdaptStage)
        patch.setattr(capacity, "room_for", room_for)
        patch.setattr(Attempts, "unfinished", lambda _: [])
        patch.setattr(supply, "_cluster_gpus", tuple)
        patch.setattr(training_job, "connected", lambda address: nullcontext())
        patch.setattr(training_job, "worker_needs", lambda config: WorkerNeeds(threads=1, gpus=0.0, decoders=0))
        patch.setattr(training_job, "NodeAffinitySchedulingStrategy", lambda *_, **__: None)
        patch.setattr(training_job.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: ""))
        patch.setattr(training_job, "Queue", _Said)
        patch.setattr(training_job, "_fit", partial(_fit, Path(root)))
        patch.setattr(samples, "decoder_processes", lambda reader, _: samples.decoder_threads(reader, 1))
        patch.setattr(VideoTable, "shared", lambda table: table)
        yield


class _Said(queue.Queue):
    """What a training says of itself, read by a thread of `zar_ray.training.listening`."""

    def __init__(self, **_) -> None:
        super().__init__()

    def get(self, block=True, timeout=None):
        try:
            return super().get(block, timeout)
        except queue.Empty:
            raise Empty from None

    def shutdown(self, **_) -> None:
        pass


def _fit(root: Path, job, *_) -> SimpleNamespace:
    """Takes a training's steps as its only process, from the first one; returns what Ray Train would.

    Its checkpoints are kept below `root`.
    """
    kept = []

    def report(metrics, checkpoint, **_) -> None:
        with checkpoint.as_directory() as made:
            folder = shutil.copytree(made, tempfile.mkdtemp(dir=root), dirs_exist_ok=True)
        kept.append((Checkpoint.from_directory(folder), metrics))

    group = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.train, "get_context", lambda: group)
        patch.setattr(ray.train, "get_checkpoint", lambda: None)
        patch.setattr(ray.train, "report", report)
        patch.setattr(ray.train.torch, "prepare_model", lambda model, **_: model)
        patch.setattr(worker.ray, "get", lambda told: told)
        worker.train_worker({"job": job, "lacking": 0})
    checkpoint, metrics = kept[-1]
    return SimpleNamespace(checkpoint=checkpoint, metrics=metrics, best_checkpoints=kept)
