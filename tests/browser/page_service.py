"""The service behind the page, with canned answers in the model's place: the real application on a port of its own."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import uvicorn
from PIL import Image, ImageDraw

from zar_ray.adaptation.rankings import RankedLabel
from zar_ray.serving.backend import Query, VideoSource
from zar_ray.serving.http_app import build_app
from zar_ray.serving.methods import ServiceOptions, served_methods
from zar_ray.serving.problems import RequestError
from zar_ray.serving.schema import (
    Classification,
    ExplainedFrame,
    Explanation,
    ServedModel,
    Timings,
    VideoFacts,
    ViewEntropy,
    WindowParameters,
    WindowResult,
)

FRAMES = 300
FPS = 25.0
SELECTED = 38
RATES = (1.0, 0.5, 0.25, 0.125)
CROPS = ("left", "centre", "right")
SIDE, PATCHES = 224, 14
# A video's length in the stream; the last window is shorter.
SECONDS = 47.0
# Stands on the screenshot, which must not pass for a real model's answer.
MODEL = "canned example answers"
PROMISED_WAIT = 7


class FakeBackend:
    """Answers at once; a file's name says what else is to happen.

    Attributes:
        asked: The videos and questions so far.
        random_weights: What the model says of itself.
    """

    def __init__(self, random_weights: bool = False) -> None:
        self.asked: list[tuple[VideoSource, Query, WindowParameters | None]] = []
        self.random_weights = random_weights

    async def model(self) -> ServedModel:
        return ServedModel(
            name=MODEL,
            fingerprint="9f2c7b1e4d60",
            version="0.1.0",
            input_size=SIDE,
            methods=("zar", "zero_shot"),
            random_weights=self.random_weights,
        )

    async def classify(self, video: VideoSource, query: Query) -> Classification:
        self.asked.append((video, query, None))
        if "broken" in video.name:
            raise RequestError("unusable-video", f"{video.name}: no frame of it can be decoded (moov atom not found)")
        if "busy" in video.name:
            raise RequestError("overloaded", "8 requests are worked on and 16 wait", retry_after=PROMISED_WAIT)
        if "endless" in video.name:
            await asyncio.sleep(600)
        return self._answer(video, query, await self.model(), seed=3)

    async def classify_windows(
        self, video: VideoSource, query: Query, windows: WindowParameters
    ) -> AsyncIterator[WindowResult]:
        self.asked.append((video, query, windows))
        starts = np.arange(0.0, SECONDS, windows.stride or windows.window).tolist()
        for number, start in enumerate(starts):
            if number == 2 and "breaks-later" in video.name:
                raise RequestError("timeout", "decoding took more than 30 s")
            if number == 2 and "endless" in video.name:
                await asyncio.sleep(600)
            await asyncio.sleep(0.05)
            yield WindowResult(
                number=number,
                start=start,
                end=min(start + windows.window, SECONDS),
                start_frame=round(start * FPS),
                result=self._answer(video, query, await self.model(), seed=number),
            )

    def _answer(self, video: VideoSource, query: Query, model: ServedModel, seed: int) -> Classification:
        tuned = query.method == "zar"
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 1, len(query.labels))
        before = _softmax(logits)
        after = _softmax(logits * 1.6 + rng.normal(0, 0.3, len(logits))) if tuned else before
        ranked_after = _ranked(query.labels, after, query.top_k)
        views = _views(rng, math.log(len(query.labels) + 1)) if tuned else ()
        certainty = None if query.reject_below is None else float(after.max())
        return Classification(
            request_id=query.request_id,
            model=model,
            method=query.method,
            seed=query.seed,
            steps=query.options.get("steps", 1) if tuned else 0,
            candidates=len(query.labels),
            before=_ranked(query.labels, before, query.top_k),
            after=ranked_after,
            entropy_before=_entropy(before),
            entropy_after=_entropy(after),
            certainty=certainty,
            reject=None if certainty is None or query.reject_below is None else certainty < query.reject_below,
            views=views,
            images_encoded=412,
            video=VideoFacts(
                name=video.name,
                frames=FRAMES,
                fps=FPS,
                width=640,
                height=360,
                duration=FRAMES / FPS,
                decoder="pyav",
                warning="3 frames are damaged and were left out" if "damaged" in video.name else None,
                frames_decoded=171,
                evaluation_frames=_evaluation_frames(),
            ),
            timings=Timings(receive=0.021, decode=0.164, encode=0.41, adapt=0.052, explain=0.23, total=0.9),
            explanation=_explanation(ranked_after[0].label) if query.explain and "plain" not in video.name else None,
            explanation_missing="the model has no attention maps" if "plain" in video.name else None,
        )


def drawn_clip(path: Path, frames: int = 60) -> Path:
    """Writes the video that the canned frames are of."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            picture, _ = _scene(index / (frames - 1))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return path


@contextmanager
def running_service(backend: FakeBackend, **options) -> Iterator[str]:
    """The application in a thread; yields its address."""
    config = ServiceOptions.model_validate(options)
    app = build_app(config.without_methods(), served_methods(config), backend)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _entropy(scores: np.ndarray) -> float:
    return float(-(scores * np.log(scores)).sum())


def _ranked(labels: tuple[str, ...], scores: np.ndarray, top_k: int) -> tuple[RankedLabel, ...]:
    order = np.argsort(-scores, kind="stable")[:top_k]
    return tuple(RankedLabel(label=labels[at], score=float(scores[at])) for at in order)


def _views(rng: np.random.Generator, most: float) -> tuple[ViewEntropy, ...]:
    spots = [(rate, sample, crop) for rate in RATES for sample in range(4) for crop in CROPS]
    entropies = most * np.clip(rng.normal(0.55, 0.12, len(spots)), 0.05, 0.98)
    limit = np.sort(entropies)[SELECTED - 1]
    views = []
    for (rate, sample, crop), entropy in zip(spots, entropies.tolist(), strict=True):
        length = round(rate * FRAMES)
        start = round((FRAMES - length) * sample / 3)
        views.append(
            ViewEntropy(
                rate=rate,
                sample=sample,
                crop=crop,
                start=start,
                length=length,
                entropy=entropy,
                selected=entropy <= limit,
            )
        )
    return tuple(views)


def _evaluation_frames() -> tuple[int, ...]:
    return tuple(int(one) for one in np.linspace(9, FRAMES - 10, 16).round())


def _explanation(label: str) -> Explanation:
    shown = _evaluation_frames()[::2]
    frames = []
    for index, frame in enumerate(shown):
        picture, (ball_x, ball_y) = _scene(index / (len(shown) - 1))
        before = 0.35 * _blob(110, 120, 60) + 0.45 * _blob(40, 60, 34)
        after = 0.25 * _blob(110, 120, 60) + 0.75 * _blob(ball_x, ball_y, 26)
        frames.append(
            ExplainedFrame(
                frame=frame,
                seconds=frame / FPS,
                image=_data_url(picture),
                before=tuple(map(tuple, before.round(4).tolist())),
                after=tuple(map(tuple, after.round(4).tolist())),
            )
        )
    return Explanation(label=label, frames=tuple(frames))


def _blob(x: float, y: float, width: float) -> np.ndarray:
    """(PATCHES, PATCHES), 1 at a place of the picture and falling off around it."""
    centres = (np.arange(PATCHES) + 0.5) * SIDE / PATCHES
    return np.exp(-((centres[None] - x) ** 2 + (centres[:, None] - y) ** 2) / (2 * width**2))


def _scene(progress: float) -> tuple[Image.Image, tuple[float, float]]:
    """A drawn player whose ball is at a place of its arc towards a hoop."""
    picture = Image.new("RGB", (SIDE, SIDE), "#c9d6e2")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 165, SIDE, SIDE), fill="#c98f5a")
    draw.line((0, 165, SIDE, 165), fill="#f3e6d8", width=3)
    draw.rectangle((188, 40, 194, 166), fill="#5b6470")
    draw.rectangle((176, 34, 182, 84), fill="#f7f7f7", outline="#5b6470")
    draw.line((150, 76, 178, 76), fill="#d3541f", width=4)
    draw.ellipse((50, 72, 74, 96), fill="#7a4b30")
    draw.rounded_rectangle((48, 96, 76, 146), 8, fill="#2f5fa8")
    draw.line((70, 104, 92, 84), fill="#7a4b30", width=8)
    for foot in (54, 70):
        draw.line((foot, 144, foot - 2, 196), fill="#22262e", width=9)
    x, y = 96 + 68 * progress, 78 - 4 * 58 * progress * (1 - progress) - 6 * progress
    draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill="#e07b2c", outline="#8a4312", width=2)
    return picture, (x, y)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
