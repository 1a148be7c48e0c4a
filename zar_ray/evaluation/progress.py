"""How far a run is: a live bar on a terminal, a line now and then in a log.

Rates count from the first block that comes back, as workers start before it, and videos with a decision alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zar_ray.cluster_measures import tell
from zar_ray.evaluation.run_log import RunLog
from zar_ray.evaluation.spec import SECONDS_LOAD, FeatureUse

# A log that someone reads afterwards wants a line often enough to see life, seldom enough to be read.
_SECONDS_BETWEEN_LINES = 10.0

# What passes before a worker has its first block.
_STARTING = "starting workers, first block"

# Seconds from the first block after which there is a rate: those that several workers began with come together.
_TELLING = 1.0

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
        log: The run's log, which gets what is said, too.
        listener: Is told of all rows of `STATUS_SCHEMA` that are counted.

    Attributes:
        loads: Seconds that each worker which has finished a block took to load the models.
        last_video: When the last video was finished, or the first one begun to be waited for (`time.monotonic`).
    """

    def __init__(
        self,
        console: Console,
        total: int,
        done: int = 0,
        log: RunLog | None = None,
        listener: Callable[[pa.Table], None] | None = None,
    ) -> None:
        self._console = console
        self._log, self._listener = log, listener
        self.last_video = time.monotonic()
        self._failed = 0
        self._timed = 0  # videos with a decision after the first block
        self._features: Counter[FeatureUse] = Counter()
        self._notes = 0
        self.loads: list[float] = []
        self._started: float | None = None  # when the first block came back
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("videos"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar.add_task(_STARTING, start=False, total=total, completed=done, speed="")

    def __enter__(self) -> VideoProgress:
        self._console.print(f"{_STARTING} ...")
        tell("zar_videos_left", self._bar.tasks[0].remaining)
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if self._features:
            counts = ", ".join(f"{self._features[use]} {words}" for use, words in _USES.items() if self._features[use])
            self._console.print(f"image features: {counts}", highlight=False)
        if self._notes > _NOTES:
            self._console.print(f"(and {self._notes - _NOTES} more such videos)", highlight=False)

    @property
    def counted(self) -> tuple[int, int]:
        """Videos that are finished, earlier sessions' too, and how many of this session's failed."""
        return int(self._bar.tasks[0].completed), self._failed

    def advance(self, videos: int, failed: int) -> None:
        """Adds finished videos, of which some failed."""
        (task,) = self._bar.tasks
        self._failed += failed
        tell("zar_videos", videos - failed, outcome="finished")
        tell("zar_videos", failed, outcome="failed")
        now, speed = time.monotonic(), ""
        self.last_video = now
        if self._started is not None:
            self._timed += videos - failed
            passed, left = now - self._started, (task.remaining or 0) - videos
            if self._timed and passed >= _TELLING:
                speed = f"{self._timed / passed:.2f}/s, about {left * passed / self._timed:.0f} s left"
        elif videos > failed:
            self._started = now
            self._bar.start_task(task.id)
        about = _STARTING if self._started is None else "evaluating"
        about += f" ({self._failed} failed)" if self._failed else ""
        self._bar.update(task.id, advance=videos, description=about, speed=speed)
        tell("zar_videos_left", task.remaining)
        if not self._console.is_terminal and (now - self._last_line >= _SECONDS_BETWEEN_LINES or not task.remaining):
            self._last_line = now
            done = f"{task.completed:.0f}/{task.total:.0f}"
            self._console.print(f"{about}: {done} videos{f', {speed}' if speed else ''}")

    def count(self, status: pa.Table) -> None:
        """Adds the videos of some rows of `STATUS_SCHEMA`, and what they say of the feature store.

        The first oddities are shown at once.
        """
        if self._listener is not None:
            self._listener(status)
        rows = status.to_pylist()
        self.advance(len(rows), failed=sum(row["failed"] for row in rows))
        self.loads += [row[SECONDS_LOAD.name] for row in rows if row[SECONDS_LOAD.name] is not None]
        for row in rows:
            if not row["failed"]:
                self._features.update(row["feature_uses"] or ())
            for note in row["feature_notes"] or ():
                self._notes += 1
                if self._notes <= _NOTES:
                    self.say(f"{row['video_id']}: {note}")

    def say(self, line: str) -> None:
        """Shows a line of its own above the bar, and notes it."""
        self._console.print(line, highlight=False)
        self.note(line)

    def note(self, line: str) -> None:
        """Puts a line into the run's log alone."""
        if self._log is not None:
            self._log.add(line)
