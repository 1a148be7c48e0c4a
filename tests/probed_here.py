"""Lists of videos opened in the test's own process: each process of their own takes half a second of a core to start.

What such processes protect from is held by tests/data/test_probing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from zar_ray.data import probing


def _in_this_process(items: Sequence[Any], work: Callable[[Any], Any], *_, **__) -> list[Any]:
    """As `probing.in_processes`, without any."""
    found = [probing._answer(work, item) for item in items]
    for answer in found:
        if isinstance(answer, Exception):
            raise answer
    return found


@contextmanager
def probed_here() -> Iterator[None]:
    """Has lists' videos opened in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "in_processes", _in_this_process)
        yield
