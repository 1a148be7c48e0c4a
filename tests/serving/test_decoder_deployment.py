"""A decoder replica's own part, beside a process that a test controls."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from zar_ray.serving.backend import DecodingNeeds, Query, VideoSource
from zar_ray.serving.decoder_deployment import DecoderDeployment
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.schema import WindowParameters
from zar_ray.video.transforms import Preprocessing


class SlowProcess:
    """Decodes a window until it is told to end."""

    def __init__(self):
        self.begun, self.may_end, self.closed = threading.Event(), threading.Event(), threading.Event()

    def decode_windows(self, *_):
        try:
            self.begun.set()
            assert self.may_end.wait(30)
            yield SimpleNamespace()
        finally:
            self.closed.set()

    def close(self):
        pass


@pytest.fixture
def decoder():
    deployed = DecoderDeployment.func_or_class
    replica = deployed.__new__(deployed)
    replica._process = SlowProcess()
    replica._config = ServeConfig()
    replica._needs = DecodingNeeds(Preprocessing(32), ("zar",))
    return replica


def test_a_client_that_leaves_amid_a_window_waits_for_it(decoder):
    # What runs in a thread cannot be closed meanwhile: closing it raised, and left the process with its job.
    process = decoder._process

    async def leave() -> None:
        query = Query("a", ("b", "c"), "zar")
        windows = decoder.decode_windows(VideoSource("a.mp4", "a.mp4"), query, WindowParameters())
        window = asyncio.ensure_future(anext(windows))
        assert await asyncio.to_thread(process.begun.wait, 30)
        window.cancel()
        await asyncio.sleep(0.05)
        assert not process.closed.is_set()
        process.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await window

    asyncio.run(leave())
    assert process.closed.is_set()
