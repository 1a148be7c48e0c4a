"""What decoding may take, and how it is told that it took more."""

from __future__ import annotations

import errno
import os

import pytest

from zar_ray.errors import VideoError
from zar_ray.video.limits import lacks_memory


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), True),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable; [swscaler] Failed initializing"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("std::bad_alloc"), True),
        (ValueError("Invalid data found when processing input"), False),
    ],
)
def test_what_says_that_memory_is_gone(error, lacks):
    wrapped = VideoError("cannot be decoded")
    wrapped.__cause__ = error
    assert [lacks_memory(one) for one in (error, wrapped)] == [lacks, lacks]
