"""Whole files as a reader gives them."""

from __future__ import annotations

import pytest

from zar_ray.video.reading import has_decord, open_video

needs_decord = pytest.mark.skipif(not has_decord(), reason="decord has no wheel for this platform")


def read(path, decoder="auto", indices=None):
    with open_video(path, decoder) as reader:
        wanted = range(reader.info.frames) if indices is None else indices
        return list(reader.read(wanted)), reader.info, reader.warning
