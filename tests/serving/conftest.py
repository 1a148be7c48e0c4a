"""What tests of the service share."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import pytest
from canned_service import server
from fastapi.testclient import TestClient
from serving_backends import LocalBackend, local_app

from zar_ray.serving.methods import ServiceOptions

__all__ = ["server"]


@pytest.fixture(autouse=True)
def _loggers_as_before():
    """`log_to_serve` is for the whole life of a process, and pytest's own handlers are among those that it takes."""
    loggers = [logging.getLogger(name) for name in ("zar_ray.serving", "zar_ray.models")]
    before = [list(one.handlers) for one in loggers]
    yield
    for one, handlers in zip(loggers, before, strict=True):
        one.handlers[:] = handlers


@pytest.fixture
def video(make_video, tmp_path):
    """Of 1.2 seconds, with a space in its name."""
    return make_video(tmp_path / "some video.mp4", frames=30, seed=3)


@pytest.fixture(scope="module")
def served(tiny_checkpoint, tmp_path_factory):
    """Makes a client of the service: `client, backend = served(limits={...})`."""
    stack = ExitStack()

    def make(**options):
        config = ServiceOptions.model_validate(
            {"checkpoint": tiny_checkpoint, "device": "cpu", "threads": 1, **options}
        )
        backend = LocalBackend(config, tmp_path_factory.mktemp("uploads"))
        # Entered, all its requests share one event loop, as a replica's do.
        client = TestClient(local_app(config, backend), "http://127.0.0.1", raise_server_exceptions=False)
        return stack.enter_context(client), backend

    with stack:
        yield make


@pytest.fixture(scope="module")
def refusing(served):
    """One `served()` for all of a module's questions that it refuses, which leave nothing behind."""
    return served()
