"""How much passes the model at once: as much as is asked for, until memory runs out; from then on what fits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from zar_ray.models.device_faults import within_memory

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_T = TypeVar("_T")

MORE_MEMORY = "leave the process more memory (fewer of them on a device), or take a smaller model"
"""The way out where the least that can pass the model is too much."""

# So long a size is remembered before twice as much is tried: what was short may be of another process, or of one large
# request, and a service would get slower with each of them. In vain it costs one pass.
_SECONDS_REMEMBERED = 600.0


class Fitting:
    """The size of one kind of pass, which is halved where memory runs out, and remembered once it works.

    Now and then twice as much is tried again.

    Args:
        what: What is counted, for the line that says so.
        way_out: How to begin with a size, as a format of that size; none where no option says it.
    """

    def __init__(self, what: str, way_out: str | None = None) -> None:
        self._what, self._way_out = what, way_out
        self._most: int | None = None
        self._told: int | None = None
        self._since = 0.0

    def of(self, asked: int) -> int:
        """The size asked for, or what is known to fit."""
        return asked if self._most is None else min(asked, self._most)

    def once(self, asked: int, call: Callable[[int], _T], least: int = 1) -> _T | None:
        """Calls with a size; with half of it, anew from the start, while memory runs out.

        Args:
            asked: The size to begin with, unless less is known to fit.
            call: What is done, in passes of the size; gives something else than None.
            least: The smallest size that makes a difference.

        Returns:
            What the call gave; None where there was not enough memory for `least`, of which nothing is remembered.
        """
        first = size = self._first(asked)
        while (made := within_memory(partial(call, size))) is None:
            if size <= least:
                return None
            size = max(least, size // 2)
        if self._most is not None and size > self._most:
            self._most = size
        elif size < first:
            self._most, self._since = size, time.monotonic()
        if size < first and size != self._told:
            self._told = size
            way_out = "" if self._way_out is None else f"; {self._way_out.format(size)} begins with them"
            logger.warning("out of memory with %d %s: goes on with %d%s", first, self._what, size, way_out)
        return made

    def _first(self, asked: int) -> int:
        """The size to begin with: what is known to fit or, after a while, once twice as much."""
        size = self.of(asked)
        if self._most is not None and size < asked and time.monotonic() - self._since > _SECONDS_REMEMBERED:
            self._since = time.monotonic()
            return min(asked, 2 * size)
        return size

    def each(
        self, items: Sequence[_Item], asked: int, call: Callable[[Sequence[_Item]], _T], size: int = 1
    ) -> Iterator[tuple[Sequence[_Item], _T | None]]:
        """Calls with all items, several after one another at a time, in order.

        Args:
            items: The items.
            asked: The size of a pass.
            call: What is done with some of them, one at least.
            size: The size of an item.

        Yields:
            Items that passed together, and what the call gave; None for a single item that does not fit.
        """
        first = 0
        while first < len(items):

            def take(most: int, first: int = first) -> tuple[Sequence[_Item], _T]:
                part = items[first : first + max(1, most // size)]
                return part, call(part)

            left = len(items) - first
            part, made = self.once(min(asked, size * left), take, least=size) or (items[first : first + 1], None)
            yield part, made
            first += len(part)
