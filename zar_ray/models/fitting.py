"""How much passes the model at once: as much as is asked for, until memory runs out; from then on what fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from zar_ray.models.device_faults import within_memory

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_T = TypeVar("_T")

MORE_MEMORY = "leave the process more memory (fewer of them on a device), or take a smaller model"
"""The way out where the least that can pass the model is too much."""


class Fitting:
    """The size of one kind of pass, which is halved where memory runs out, and remembered once it works.

    Args:
        what: What is counted, for the line that says so.
        way_out: How to begin with a size, as a format of that size; none where no option says it.
    """

    def __init__(self, what: str, way_out: str | None = None) -> None:
        self._what, self._way_out = what, way_out
        self._most: int | None = None

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
        first = size = self.of(asked)
        while (made := within_memory(partial(call, size))) is None:
            if size <= least:
                return None
            size = max(least, size // 2)
        if size < first:
            self._most = size
            way_out = "" if self._way_out is None else f"; {self._way_out.format(size)} begins with them"
            logger.warning("out of memory with %d %s: goes on with %d%s", first, self._what, size, way_out)
        return made

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
