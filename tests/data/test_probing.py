"""A file may crash or hang what opens it: the other files must not notice."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from zar_ray.data.probing import Failure, in_processes
from zar_ray.errors import ManifestError, VideoError
from zar_ray.video.reading import VideoInfo

hoard = []

GOOD = VideoInfo(frames=3, fps=25.0, width=8, height=6, duration=0.12, decoder="pyav")


def act(path: str) -> VideoInfo:
    """Does what the file's name says; runs in the probing process."""
    kind = Path(path).name.split("_")[0]
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        time.sleep(600)
    if kind == "once":
        # Dies the first time only, as a process does that the system kills for want of memory.
        mark = Path(path)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "video":
        raise VideoError("no picture in it", stage="open")
    if kind == "swell":
        np.empty(5 * 2**30, np.uint8)
    if kind == "leak":
        hoard.append(np.empty(3 * 2**29, np.uint8))
    if kind == "bug":
        raise RuntimeError("a decoder's\n\n  own words")
    return GOOD


def refuse_to_start() -> None:
    raise RuntimeError("cannot be unpickled")


class Unstartable:
    """A probe whose process dies before it has started."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return (refuse_to_start, ())

    def __call__(self, path: str) -> VideoInfo:
        raise NotImplementedError


@pytest.mark.process
def test_a_file_that_kills_or_hangs_its_process_costs_itself_alone(tmp_path: Path) -> None:
    names = ["good_1", "kill_1", "good_2", "hang", "video", "good_3", "exit", "bug", "once", "good_4"]
    seen: list[tuple[int, int]] = []
    answers = in_processes(
        [str(tmp_path / name) for name in names],
        act,
        workers=2,
        timeout=1.0,
        progress=lambda done, total: seen.append((done, total)),
    )
    found = dict(zip(names, answers, strict=True))
    assert {name for name, answer in found.items() if answer == GOOD} == {
        "good_1",
        "good_2",
        "good_3",
        "good_4",
        "once",
    }
    assert found["kill_1"] == Failure("crashes its decoder (killed by SIGKILL)")
    assert found["exit"] == Failure("crashes its decoder (its process ended with exit code 3)")
    assert found["hang"] == Failure("took longer than 1 s to open")
    assert found["video"] == Failure("no picture in it")
    assert found["bug"] == Failure("RuntimeError: a decoder's own words")
    assert seen == [(n, len(names)) for n in range(1, len(names) + 1)]


@pytest.mark.process
def test_a_process_has_so_much_memory_and_is_replaced_when_it_has_lost_half(tmp_path: Path) -> None:
    names = ["swell_1", "leak_1", "leak_2", "leak_3", "leak_4", "good"]
    answers = in_processes([str(tmp_path / name) for name in names], act, workers=1)
    assert answers == [Failure(f"takes more memory than the limit of {4 * 2**30} bytes"), *[GOOD] * 5]


def test_processes_that_cannot_start_are_an_error_and_not_a_broken_file(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ManifestError, match="processes that open videos cannot start"):
        in_processes(["good"], Unstartable(), workers=1)


def test_no_files_need_no_processes() -> None:
    assert in_processes([], act) == []
