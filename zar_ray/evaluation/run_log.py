"""The run's own log, a file in its folder: why blocks were lost, which nodes came and went, what was waited for."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from types import TracebackType

from ray.exceptions import RayTaskError

from zar_ray.errors import RunError, StorageError
from zar_ray.interruption import CONTINUES
from zar_ray.storage import Storage

RUN_LOG = "run.log"

# Where Ray Data (2.60) says why it goes on without a block.
_LOST_BLOCKS = "ray.data._internal.execution.streaming_executor_state"
_LINES = 20_000
_LONGEST = 1_000


class RunLog(logging.Handler):
    """Lines with their time, beneath those of earlier sessions; the newest 20,000.

    As a context manager it gets a line for each block that Ray Data goes on without, with its reason. A block that
    could not be written ends the run with what said so, as all others would be lost in the same way.

    Args:
        storage: The run's folder. Object stores add nothing to a file: it is written anew as a whole.

    Raises:
        RunError: The file is there and cannot be read.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(logging.ERROR)
        self._storage = storage
        before = storage.read(RUN_LOG).decode(errors="replace").splitlines() if storage.exists(RUN_LOG) else []
        self._lines: deque[str] = deque(before, maxlen=_LINES)
        self._changes = threading.Lock()
        self._new = False
        self._logger = logging.getLogger(_LOST_BLOCKS)

    def __enter__(self) -> RunLog:
        self._before = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.ERROR)
        self._logger.propagate = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._logger.removeHandler(self)
        self._logger.level, self._logger.propagate = self._before
        if error is None:
            self.write()
        elif not isinstance(error, StorageError):
            self.add(f"the run ended: {type(error).__name__} {error}")
            self.write()

    def add(self, line: str) -> None:
        """Adds a line, from any thread; `write` puts it into the file."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._changes:
            self._lines.append(f"{now} {' '.join(line.split())[:_LONGEST]}")
            self._new = True

    def write(self) -> None:
        """Writes the file where lines have come.

        Raises:
            RunError: It cannot be written.
        """
        with self._changes:
            if not self._new:
                return
            self._new = False
            content = "".join(f"{line}\n" for line in self._lines).encode()
        self._storage.write(RUN_LOG, content)

    def emit(self, record: logging.LogRecord) -> None:
        """Takes in what Ray Data says of a lost block.

        Raises:
            RunError: The block could not be written.
        """
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
            error = error.cause
        said = record.getMessage().partition(" Ignoring this exception")[0]
        self.add(f"a block was lost: {said} {type(error).__name__}: {error}")
        if isinstance(error, RunError):
            # Out of Ray Data's loop, which knows no errors but those that it counts, and adds lines of its own to them.
            raise type(error)(f"{str(error).splitlines()[0]}; {CONTINUES}") from error
