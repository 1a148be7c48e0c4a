"""How many requests there may be at a time, and how many bytes of theirs; whoever comes beyond that is told at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from zar_ray.serving.options import LimitConfig
from zar_ray.serving.problems import RequestError, at_capacity


class Admission:
    """Counts the requests of one ingress replica and the bodies they hold.

    Attributes:
        turn: To be held while a request is worked on.
        requests: Those that are worked on or wait.
        streams: Those of them whose videos come window by window; they have places of their own, and wait for no turn.
        bytes: What their bodies may come to.

    Args:
        limits: How many may be worked on, how many may wait, and how many bytes all may hold.
    """

    def __init__(self, limits: LimitConfig) -> None:
        self._limits = limits
        self.turn = asyncio.Semaphore(limits.concurrent)
        self.requests = 0
        self.streams = 0
        self.bytes = 0

    @contextmanager
    def admitted(self, size: int, stream: bool = False) -> Iterator[None]:
        """Lets a request in for as long as the block lasts.

        Args:
            size: Bytes that its body may come to.
            stream: Whether its video comes window by window.

        Raises:
            RequestError: There are too many requests, or too many bytes (``overloaded``).
        """
        limits = self._limits
        count, most = self.requests - self.streams, limits.concurrent + limits.queued
        if stream:
            count, most = self.streams, limits.streams
        if count >= most:
            raise at_capacity(count, "streams" if stream else "requests", limits.retry_after)
        if self.requests and self.bytes + size > limits.queued_bytes:
            raise RequestError(
                "overloaded",
                f"{self.bytes} bytes of bodies are held, and this one may come to {size};"
                f" try again in {limits.retry_after} s",
                limits.retry_after,
            )
        self.requests += 1
        self.streams += stream
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.streams -= stream
            self.bytes -= size
