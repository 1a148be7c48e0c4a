"""The decoder replicas, with the processes that read strangers' files; they load no PyTorch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ray import serve
from ray.serve.handle import DeploymentHandle

from zar_ray.errors import ConfigError, VideoError
from zar_ray.serving.backend import DecodingNeeds, Job, Query, VideoSource
from zar_ray.serving.calls import in_time
from zar_ray.serving.logs import CHECK_SECONDS, QUIET, log_stage, log_to_serve, logger
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.problems import RequestError, refusal_of
from zar_ray.serving.schema import WindowParameters, WindowResult
from zar_ray.video.sandbox import BACKGROUND, PROGRAM, DecoderProcess
from zar_ray.video.sandbox_process import DecodedViews, DecodeRequest
from zar_ray.video.windows import WindowCut


@serve.deployment(name="decoder", logging_config=QUIET, health_check_period_s=CHECK_SECONDS)
class DecoderDeployment:
    """Holds a decoding process that takes one whole video at a time, and a slower one for each stream of windows.

    Args:
        config: The service's options.
        model: The model deployment.
    """

    async def __init__(self, config: ServeConfig, model: DeploymentHandle) -> None:
        log_to_serve()
        self._config = config
        self._model = model
        self._process = self._new_process(PROGRAM)
        self._streams = 0
        self._idle: list[DecoderProcess] = []  # of streams that have ended
        # Of the streams' own, so that whole videos never wait for a thread.
        self._threads = ThreadPoolExecutor(config.limits.streams)
        self._needs: DecodingNeeds = await model.decoding_needs.remote()
        await asyncio.to_thread(self._process.start)

    async def decode(self, video: VideoSource, query: Query) -> Job | RequestError:
        """A whole video's frames, or what is wrong with it."""
        request, seconds, started = self._request(video, query), self._config.decode_timeout, time.monotonic()
        try:
            decoded = await asyncio.to_thread(self._process.decode, video.source, request, seconds)
            outcome: Job | RequestError = Job(query, video.name, decoded)
        except (VideoError, ConfigError) as error:
            outcome = _refused(error, query)
        log_stage(query.request_id, "decode", time.monotonic() - started, seconds, outcome)
        return outcome

    async def classify_windows(
        self, video: VideoSource, query: Query, windows: WindowParameters
    ) -> AsyncIterator[WindowResult | RequestError]:
        """A long video's windows, each as soon as a model has answered; or at the end what is wrong.

        The model is asked here, one window after the other, because whoever reads a stream of Ray's is not waited for,
        and references within its items are lost: pixels would pile up or be gone. Two windows are decoded meanwhile.
        """
        limits, started = self._config.limits, time.monotonic()
        if self._streams >= limits.streams:
            yield RequestError("overloaded", "all streams of a decoder are taken; try again", limits.retry_after)
            return
        process = self._idle.pop() if self._idle else self._new_process(BACKGROUND)
        self._streams += 1
        seconds, until, number = self._config.decode_timeout, started + limits.stream_seconds, 0
        cut = WindowCut(windows.window, windows.stride)
        found = process.decode_windows(video.source, self._request(video, query), cut, seconds)
        ended, loop = False, asyncio.get_running_loop()
        try:
            while True:
                try:
                    # Shielded: where the client leaves, its thread goes on until the process is gone.
                    window = await asyncio.shield(loop.run_in_executor(self._threads, next, found, None))
                except (VideoError, ConfigError) as error:
                    ended = True
                    raise _refused(error, query) from None
                if window is None:
                    ended = True
                    return
                span, info = window.span, window.info
                assert span is not None
                log_stage(query.request_id, f"decode of window {number}", window.seconds, seconds)
                due = started + info.width * info.height * span.start_frame / limits.stream_pixels
                await asyncio.sleep(min(due, until) - time.monotonic())
                if time.monotonic() >= until:
                    raise RequestError("timeout", f"the stream took longer than {limits.stream_seconds:g} s")
                response = self._model.classify.remote(Job(query, video.name, window))
                answer = await in_time(response, limits.adapt_seconds + limits.wait_seconds, query)
                if isinstance(answer, RequestError):
                    raise answer
                yield WindowResult(
                    number=number, start=span.start, end=span.end, start_frame=span.start_frame, result=answer
                )
                number += 1
                query = replace(query, received=0.0)  # the body has arrived once
        except RequestError as error:
            log_stage(query.request_id, f"window {number}", time.monotonic() - started, limits.stream_seconds, error)
            yield error
        finally:
            self._streams -= 1
            if ended:
                self._idle.append(process)
            else:
                # Not awaited: Ray may cancel more than once.
                loop.run_in_executor(None, _leave, process, found)

    def _new_process(self, program: str) -> DecoderProcess:
        config = self._config
        return DecoderProcess(config.limits.decoding, program, resizer=config.resize, decoder=config.decoder)

    def _request(self, video: VideoSource, query: Query) -> DecodeRequest:
        config, needs = self._config, self._needs
        return DecodeRequest(
            video.name,
            config.views,
            query.seed,
            needs.preprocessing,
            query.method in needs.methods_with_views,
            config.decoder,
        )

    def __del__(self) -> None:
        for process in (getattr(self, "_process", None), *getattr(self, "_idle", ())):
            if process is not None:  # else it could not be started
                process.close()


def _refused(error: VideoError | ConfigError, query: Query) -> RequestError:
    for traceback in getattr(error, "__notes__", ()):
        logger.warning("request %s: decoding failed as nobody foresaw:\n%s", query.request_id, traceback)
    return refusal_of(error)


def _leave(process: DecoderProcess, found: Generator[DecodedViews]) -> None:
    """Ends a stream that nobody waits for any more, wherever its process is."""
    process.close()
    with contextlib.suppress(ValueError):  # amid a window, whose thread meets the end of the process
        found.close()
