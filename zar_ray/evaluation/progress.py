"""How far a run is: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zar_ray.evaluation.spec import FeatureUse

# A log that someone reads afterwards wants a line often enough to see life, seldom enough to be read.
_SECONDS_BETWEEN_LINES = 10.0

# Oddities of the feature store that are shown one by one.
_NOTES = 10
_USES: dict[FeatureUse, str] = {
    "read": "videos read from the store",
    "computed": "computed and stored",
    "replaced": "computed anew in place of what could not be used",
}


class VideoProgress:
    """Counts finished videos, as a context manager.

    Args:
        console: Where it shows.
        total: Videos of the whole run.
        done: Videos that an earlier session finished.
    """

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self._console = console
        self._before = done
        self._failed = 0
        self._features: Counter[FeatureUse] = Counter()
        self._notes = 0
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("videos"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar.add_task("evaluating", total=total, completed=done)

    def __enter__(self) -> VideoProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if self._features:
            counts = ", ".join(f"{self._features[use]} {words}" for use, words in _USES.items() if self._features[use])
            self._console.print(f"image features: {counts}", highlight=False)
        if self._notes > _NOTES:
            self._console.print(f"(and {self._notes - _NOTES} more such videos)", highlight=False)

    def advance(self, videos: int, failed: int) -> None:
        """Adds finished videos, of which some failed."""
        (task,) = self._bar.tasks
        self._failed += failed
        about = f"evaluating ({self._failed} failed)" if self._failed else "evaluating"
        self._bar.update(task.id, advance=videos, description=about)
        now, left = time.monotonic(), task.remaining or 0
        if not self._console.is_terminal and (now - self._last_line >= _SECONDS_BETWEEN_LINES or not left):
            self._last_line = now
            rate = (task.completed - self._before) / (now - self._started)
            seconds = left / rate if rate else 0
            done = f"{task.completed:.0f}/{task.total:.0f}"
            self._console.print(f"{about} {done} videos, {rate:.2f}/s, about {seconds:.0f} s left")

    def count(self, status: pa.Table) -> None:
        """Adds the videos of some rows of `STATUS_SCHEMA`, and what they say of the feature store.

        The first oddities are shown at once.
        """
        rows = status.to_pylist()
        self.advance(len(rows), failed=sum(row["failed"] for row in rows))
        for row in rows:
            if not row["failed"]:
                self._features.update(row["feature_uses"] or ())
            for note in row["feature_notes"] or ():
                self._notes += 1
                if self._notes <= _NOTES:
                    self.say(f"{row['video_id']}: {note}")

    def say(self, line: str) -> None:
        """Shows a line of its own above the bar."""
        self._console.print(line)
