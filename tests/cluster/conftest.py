"""A cluster of several machines, and evaluations on it that take long enough to lose some of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluations import DRIVE, POISON, VIDEOS, Evaluation, assert_equal
from machines import Machines

from zar_ray.data.datasets import list_dataset
from zar_ray.data.manifest import write_manifest
from zar_ray.data.probing import probe_listing
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> Iterator[Machines]:
    with Machines(tmp_path_factory.mktemp("machines")) as all_of_them:
        yield all_of_them


@pytest.fixture(scope="module")
def manifest(make_video, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(VIDEOS):
        name = POISON if number == 8 else f"{('left', 'right', 'up')[number % 3]}/{number:02}.mp4"
        make_video(root / name, frames=10, seed=number)
    write_manifest(probe_listing(list_dataset(root)), root / "videos.parquet")
    return root / "videos.parquet"


@pytest.fixture(scope="module")
def begin(machines, manifest, tiny_checkpoint, tmp_path_factory):
    """Begins an evaluation on the machines, its driver on the head's; further words of the command line come last."""
    output = tmp_path_factory.mktemp("runs")
    started: list[subprocess.Popen[bytes]] = []

    def run(name: str, *words: str, poison: bool = False) -> Evaluation:
        command = machines.at_head(
            *(sys.executable, str(DRIVE), "--dataset", str(manifest), "--checkpoint", str(tiny_checkpoint)),
            *("--output", str(output), "--name", name, "--address", machines.address, "--no-mlflow"),
            *("--views.frames", "2", "--views.eval-frames", "2", "--method", "zar", "--batch-size", "1"),
            *("--num-workers", "2", "--decode-workers", "2", "--max-failed", "0.1", *words),
        )
        environment = {**machines.environment, "ZAR_TEST_POISON": "poison" if poison else "none"}
        log = output / f"{name}.{len(started)}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        started.append(process)
        return Evaluation(process, RunFolder(Storage(str(output / name))), log)

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def undisturbed(machines, begin) -> Evaluation:
    """A run in one process, which joins the cluster as any run does; it is begun, and ends beside the first test."""
    machines.fill(1)
    return begin("undisturbed", "--here")


@pytest.fixture(scope="session")
def equal():
    return assert_equal
