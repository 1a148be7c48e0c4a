"""Native code's own words, kept from the terminal: what is wrong is raised, and a command's lines are its own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_silencing: list[int] = []
"""For each block that is under way, from whatever thread: the terminal, as it was before the first of them."""


@contextmanager
def native_stderr_silenced() -> Iterator[None]:
    """Keeps what this process writes to its standard error from it while the block runs."""
    with _lock:
        if not _silencing:
            sys.stderr.flush()
        _silencing.append(_silencing[0] if _silencing else os.dup(2))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
    try:
        yield
    finally:
        with _lock:
            terminal = _silencing.pop()
            if not _silencing:
                os.dup2(terminal, 2)
                os.close(terminal)
