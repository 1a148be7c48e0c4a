"""What a command prints to, and native code's own words kept from there: what is wrong is raised."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

# Of a line in a file or a pipe: nothing is to be cut or broken there.
_NO_END = 10_000

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


def output_console(**more: Any) -> Console:
    """Where a command prints: as wide as the terminal, or without end where it is none and COLUMNS says nothing."""
    made = Console(highlight=False, **more)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _NO_END
    return made


def take_every_letter() -> None:
    """Lets standard output write letters that its encoding lacks as escapes: no name is to end a command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def json_text(value: object, indent: int | None = None) -> str:
    """JSON for standard output: letters that its encoding lacks are JSON's own escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text
