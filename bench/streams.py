"""Whether streams of windows end well beside whole videos, and what those pay for it: `python bench/streams.py --help`.

A client sends whole videos of a window's usual length, one after the other, first alone and then beside streams of a
longer video, some at a time; so for each length of a window. The service is the one of `service.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Annotated

# Before PyTorch: it says how OpenMP's threads wait.
import zar_ray  # noqa: F401  # isort: skip

import tyro
from inputs import MOST_CLASSES, made_up_names
from measure import percentile
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table
from service import make_checkpoint, make_long_video, started_service

from zar_ray.client import Client, ServiceError
from zar_ray.errors import ZarError
from zar_ray.options.base import Options
from zar_ray.serving.methods import ServiceOptions

_WARM_UP = 3
WANTED_RATIO = 3.0


class StreamsBenchOptions(Options):
    """Streams a long video many times beside a client of whole videos."""

    streams: int = Field(default=25, ge=1, description="Streams for each length of a window.")
    windows: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(10.0, 5.0, 2.0, 1.0), min_length=1, description="Seconds of a window."
    )
    at_once: int = Field(default=2, ge=1, description="Streams at a time.")
    seconds: float = Field(default=60.0, gt=0, description="Of the streamed video.")
    whole_seconds: float = Field(default=10.0, gt=0, description="Of the whole videos.")
    alone: int = Field(default=30, ge=2, description="Whole videos before each length of a window, and after the last.")
    method: str = Field(default="zar", description="The method.")
    class_count: int = Field(default=51, ge=2, le=MOST_CLASSES, description="Candidate labels, which are made up.")
    checkpoint: Path | None = Field(
        default=None, description="The model; by default the demo's architecture with random weights."
    )
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all numbers to this file too."
    )


@dataclass(frozen=True)
class Whole:
    """What became of whole videos.

    Attributes:
        seconds: Of each answer, from the request on.
        errors: Refusals and errors by code.
    """

    seconds: list[float]
    errors: dict[str, int]


@dataclass(frozen=True)
class Streamed:
    """All streams of one length of a window.

    Attributes:
        window: Seconds of a window.
        asked: Streams.
        completed: Those that gave every window and an end.
        errors: What ended the others, by code.
        seconds: Of each that completed.
        beside: The whole videos meanwhile.
    """

    window: float
    asked: int
    completed: int
    errors: dict[str, int]
    seconds: list[float]
    beside: Whole


def ratio(beside: Sequence[float], alone: Sequence[float]) -> float | None:
    """The 95th percentile of the whole videos' times beside streams over what it is alone."""
    ours, theirs = percentile(beside, 0.95), percentile(alone, 0.95)
    return None if ours is None or theirs is None else ours / theirs


def ask_whole(ask: Callable[[], object], more: Callable[[int], bool]) -> Whole:
    """Asks again and again, for as long as `more` says so of the number that were asked."""
    seconds: list[float] = []
    errors: Counter[str] = Counter()
    while more(len(seconds) + errors.total()):
        started = time.perf_counter()
        try:
            ask()
            seconds.append(time.perf_counter() - started)
        except ServiceError as error:
            errors[error.code] += 1
            time.sleep(error.retry_after or 0.0)
    return Whole(seconds, dict(errors))


def stream_beside(
    stream: Callable[[], int], expected: int, ask: Callable[[], object], window: float, options: StreamsBenchOptions
) -> Streamed:
    """Runs all streams of one length beside a client of whole videos.

    Args:
        stream: Streams the long video once; returns its windows.
        expected: The windows that there should be.
        ask: Asks about a whole video.
        window: Seconds of a window.
        options: The bench's options.
    """
    over = threading.Event()
    seconds: list[float] = []
    errors: Counter[str] = Counter()

    def one(_: int) -> None:
        started = time.perf_counter()
        try:
            if (count := stream()) == expected:
                seconds.append(time.perf_counter() - started)
            else:
                errors[f"{count} windows"] += 1
        except ServiceError as error:
            errors[error.code] += 1

    with ThreadPoolExecutor(1) as client, ThreadPoolExecutor(options.at_once) as pool:
        whole = client.submit(ask_whole, ask, lambda _: not over.is_set())
        try:
            list(pool.map(one, range(options.streams)))
        finally:
            over.set()
    return Streamed(window, options.streams, len(seconds), dict(errors), seconds, whole.result())


def run(options: StreamsBenchOptions, say: Callable[[str], None]) -> tuple[list[Streamed], Whole]:
    """Measures all lengths of a window; returns what became of them, and of the whole videos alone.

    Raises:
        ZarError: The service or a file cannot be used.
    """
    labels = made_up_names(options.class_count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long, whole = (
            make_long_video(folder / "long.mp4", options.seconds),
            make_long_video(folder / "w.mp4", options.whole_seconds),
        )
        checkpoint = options.checkpoint or make_checkpoint(folder / "tiny.safetensors")
        config = ServiceOptions.model_validate({"checkpoint": checkpoint, "device": "cpu", "methods": [options.method]})
        with started_service(config) as (url, _), Client(url, retries=0) as client:
            say(f"service started on {url}")

            def ask() -> object:
                return client.classify(whole, labels)

            for _ in range(_WARM_UP):
                ask()
            alone = ask_whole(ask, lambda count: count < options.alone)
            found = []
            for window in options.windows:

                def stream(window: float = window) -> int:
                    return sum(1 for _ in client.classify_windows(long, labels, window=window))

                found.append(stream_beside(stream, ceil(options.seconds / window), ask, window, options))
                again = ask_whole(ask, lambda count: count < options.alone)
                alone = Whole(alone.seconds + again.seconds, {**alone.errors, **again.errors})
                paid = ratio(found[-1].beside.seconds, alone.seconds) or 0.0
                say(f"windows of {window:g} s: {found[-1].completed} of {options.streams} streams, p95 x {paid:.2f}")
            return found, alone


def show(found: Sequence[Streamed], alone: Whole, console: Console) -> None:
    """Prints a line for each length of a window."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("window s", "completed", "s a stream", "whole videos", "errors", "p50 ms", "p95 ms", "p95 of alone"):
        table.add_column(name, justify="right")

    def cells(whole: Whole) -> list[str]:
        times = [f"{1e3 * (percentile(whole.seconds, share) or 0.0):.0f}" for share in (0.5, 0.95)]
        others = ", ".join(f"{count} {code}" for code, count in whole.errors.items())
        return [str(len(whole.seconds)), others or "0", *times, f"{ratio(whole.seconds, alone.seconds) or 0.0:.2f}"]

    table.add_row("alone", "", "", *cells(alone))
    for one in found:
        failed = "".join(f" ({count} {code})" for code, count in one.errors.items())
        length = percentile(one.seconds, 0.5)
        table.add_row(
            f"{one.window:g}",
            f"{one.completed} of {one.asked}{failed}",
            "" if length is None else f"{length:.1f}",
            *cells(one.beside),
        )
    console.print(table)
    console.print(f"wanted: all streams, and whole videos' p95 within {WANTED_RATIO:g} of alone", highlight=False)


def main(argv: Sequence[str]) -> int:
    """Runs the bench; returns the exit status."""
    options = tyro.cli(StreamsBenchOptions, args=list(argv), prog="streams.py")
    try:
        found, alone = run(options, lambda line: print(line, file=sys.stderr, flush=True))
    except ZarError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    show(found, alone, Console())
    if options.json_file is not None:
        values = {"alone": asdict(alone), "streams": [asdict(one) for one in found]}
        options.json_file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
