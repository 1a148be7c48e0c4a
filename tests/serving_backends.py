"""The service without Ray: its application over its own classifier, on videos decoded in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from zar_ray.errors import VideoError
from zar_ray.serving.backend import Job
from zar_ray.serving.classifier import Classifier
from zar_ray.serving.http_app import build_app
from zar_ray.serving.methods import ServiceOptions, served_methods
from zar_ray.serving.problems import RequestError, refusal_of
from zar_ray.serving.schema import WindowResult
from zar_ray.video.decoding import decode_video
from zar_ray.video.plans import plan_video
from zar_ray.video.sandbox_process import DecodedViews


def local_app(options, backend):
    """The application as an ingress replica builds it: it is told of the methods, and has none of their classes."""
    return build_app(options.without_methods(), served_methods(options), backend)


class LocalBackend:
    """Classifies in threads of this process; `gate` holds every video until it is set."""

    def __init__(self, config, folder):
        self.classifier = Classifier(config)
        self.folder = folder
        self.gate = threading.Event()
        self.gate.set()
        self.seen = []

    async def classify(self, video, query):
        self.seen.append((video, query))
        return await asyncio.to_thread(self._classify, video, query)

    async def classify_windows(self, video, query, windows):
        result = await self.classify(video, query)
        for number in range(2):
            yield WindowResult(
                number=number,
                start=number * windows.window,
                end=(number + 1) * windows.window,
                start_frame=0,
                result=result,
            )

    async def model(self):
        return self.classifier.card

    def _classify(self, video, query):
        path = video.source
        if not isinstance(path, str):
            path = self.folder / f"{query.request_id}.video"
            np.asarray(video.source).tofile(path)
        self.gate.wait(30)
        preprocessing = self.classifier.model.preprocessing
        plan_of = partial(
            plan_video,
            video.name,
            views=self.classifier.config.views,
            preprocessing=preprocessing,
            seed=query.seed,
            needs_views=query.method in self.classifier.decoding_needs.methods_with_views,
        )
        try:
            decoded = decode_video(path, plan_of, preprocessing.scaling)
        except VideoError as error:
            raise refusal_of(error) from None
        plan = plan_of(decoded.info)
        views = DecodedViews(decoded.frames, plan, decoded.info, decoded.warning, decoded.seconds)
        (answer,) = self.classifier.answer([Job(query, video.name, views)])
        if isinstance(answer, RequestError):
            raise answer
        return answer


@contextmanager
def served_here(options: dict[str, Any], uploads: Path) -> Iterator[str]:
    """Serves under uvicorn, with everything behind it in this process; gives the address."""
    config = ServiceOptions.model_validate({"device": "cpu", "threads": 1, **options})
    app = local_app(config, LocalBackend(config, uploads))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it had started"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
