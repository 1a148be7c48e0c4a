"""Evaluations on a cluster's machines, and what is expected of their tables."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pytest

from zar_ray.results.folder import RunFolder
from zar_ray.results.rows import to_rows

DRIVE = Path(__file__).with_name("drive.py")
VIDEOS = 36
POISON = "up/08-poison.mp4"
# A minute where nothing else runs; where much does, Ray's processes alone take minutes to start.
LONGEST = 600.0


@dataclass
class Evaluation:
    """A running `zar eval`.

    Attributes:
        process: The driver.
        folder: The run's folder.
        log: What it prints.
    """

    process: subprocess.Popen[bytes]
    folder: RunFolder
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def finished(self) -> int:
        """Blocks, of a video each, that have their rows; those that it was started with do not count."""
        return len(self.folder.storage.names("parts"))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits while it runs, `LONGEST` seconds at most; one that takes longer is ended."""
        limit = time.monotonic() + LONGEST
        while not condition():
            assert self.process.poll() is None, self.said
            if time.monotonic() > limit:
                self._stands_still()
            time.sleep(0.05)

    def end(self) -> int:
        """Waits for its end likewise; its exit status."""
        try:
            return self.process.wait(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return self._stands_still()

    def _stands_still(self) -> NoReturn:
        self.process.kill()
        raise AssertionError(f"it stands still:\n{self.said}")


def assert_equal(table: pa.Table, expected: pa.Table) -> None:
    """No row lost, doubled or failed, and all numbers within 1e-5."""
    ours, theirs = to_rows(table), to_rows(expected)
    assert [(row.video_id, row.case_id, row.error) for row in ours] == [
        (row.video_id, row.case_id, None) for row in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        for when in ("before", "after"):
            for name in (f"top5_scores_{when}", f"entropy_{when}"):
                assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)
