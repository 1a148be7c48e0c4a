"""How a process ends that was told to: SIGTERM as Ctrl-C, and a Ray head that no longer answers."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

CONTINUES = "what is finished is kept, and the same command continues it"

# Ray ends a process, without a word, whose head has not answered for a minute, or as long as this variable says.
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAY_WAITS = 60.0
_LOOK_EVERY = 1.0
_TOLD_AFTER = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, from a scheduler, `ray job stop` or a machine that is going down."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Has SIGTERM raise `Terminated` in the main thread, once; a second one ends the process on the spot.

    Elsewhere than in the main thread nothing changes.
    """
    before = take_sigterm()
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def take_sigterm() -> Any:
    """Sets the handler of `sigterm_interrupts`, again after a library has set its own; returns the one before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


@contextmanager
def head_watched(address: str) -> Iterator[None]:
    """Ends this process with one line where a Ray head stays gone, just before Ray would do so without any.

    Args:
        address: ``HOST:PORT`` of the head.
    """
    host, _, port = address.rpartition(":")
    left = threading.Event()
    watcher = threading.Thread(target=_watch, args=(host.strip("[]"), int(port), left), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        left.set()


def _watch(host: str, port: int, left: threading.Event) -> None:
    patience = max(0.8 * float(os.environ.get(_RECONNECT, _RAY_WAITS)), 2 * _LOOK_EVERY)
    answered, told = time.monotonic(), False
    while not left.wait(_LOOK_EVERY):
        now = time.monotonic()
        if _answers(host, port):
            answered, told = now, False
            continue
        silent = time.monotonic() - answered
        if silent > _TOLD_AFTER and not told:
            _say(f"Ray: the head at {host}:{port} does not answer; waiting {patience - silent:.0f} s for it")
            told = True
        if silent >= patience and not left.is_set():
            _say(f"Ray: the head at {host}:{port} has not answered for {silent:.0f} s; {CONTINUES}")
            # Whatever would be cleaned up would ask the head, and wait.
            os._exit(1)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_TOLD_AFTER).close()
    except OSError:
        return False
    return True


def _say(line: str) -> None:
    print(f"\nzar: {line}" if sys.stderr.isatty() else f"zar: {line}", file=sys.stderr, flush=True)
