"""What the service costs on top of its engine, and what it does beyond its capacity: `python bench/serve.py --help`.

One video goes over and over to a service on this machine, from 1, 4 and 16 clients, and in between through the same
decoder and adapter in this process (*direct*). Then come more clients than the service takes at a time. A client asks
again as soon as it has its answer; one that was refused waits as long as it was told.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from typing import Annotated, Any

# Before PyTorch: it says how OpenMP's threads wait, without which the direct side takes ten times as long.
import zar_ray  # noqa: F401  # isort: skip

import httpx2
import numpy as np
import torch
import tyro
from inputs import MOST_CLASSES, made_up_names
from measure import machine_facts, percentile
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table
from service import cpu_of, make_checkpoint, make_video, memory_of, started_service

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.predict import rank_labels
from zar_ray.adaptation.rankings import RankedLabel
from zar_ray.client import ServiceError
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, ZarError
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model
from zar_ray.options.base import Options
from zar_ray.serving.backend import Query
from zar_ray.serving.methods import ServiceOptions, adaptation_options
from zar_ray.serving.schema import Classification
from zar_ray.video.decoding import decode_video
from zar_ray.video.plans import plan_video

# Of a load's time; what is answered in it is not counted: queues fill, and text features are made.
_RAMP = 0.2
_WARM_UP = 3
_OK = "ok"
WANTED_OVERHEAD = 0.030
WANTED_GOODPUT = 0.85


class ServeBenchOptions(Options):
    """Measures a service on this machine against its engine, at several loads and beyond its capacity."""

    url: str | None = Field(
        default=None, description="A running service; by default one is started, on a Ray of its own."
    )
    token: str | None = Field(default=None, description="Its bearer token; by default $ZAR_TOKEN.")
    checkpoint: Path | None = Field(
        default=None, description="The model of both sides; by default the demo's architecture with random weights."
    )
    video: Path | None = Field(default=None, description="The video; by default one of the demo's kind is drawn.")
    class_count: int = Field(default=51, ge=2, le=MOST_CLASSES, description="Candidate labels, which are made up.")
    clients: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 4, 16), min_length=1, description="Clients at a time, one load each."
    )
    seconds: float = Field(default=10.0, gt=0, description="Length of a load; its first fifth is not counted.")
    direct: int = Field(default=20, ge=1, description="Videos that the direct side runs before the loads.")
    rounds: int = Field(
        default=2, ge=1, description="How often all this is done, in turn: what the machine does besides changes."
    )
    concurrent: int = Field(default=8, ge=1, description="The service's limits.concurrent.")
    queued: int = Field(default=16, ge=0, description="The service's limits.queued.")
    overload: float = Field(
        default=16.0, ge=0, description="Clients of the last load, as a multiple of what the service takes; 0 for none."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the model, on both sides; by default all CPUs."
    )
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all numbers to this file too."
    )


@dataclass(frozen=True)
class Answer:
    """What a client got.

    Attributes:
        at: Seconds from the load's start to the answer.
        seconds: From the request to the answer, the upload included.
        code: ``ok``, or the error's code.
        engine: Seconds that the service says it decoded, encoded and adapted; None with an error.
    """

    at: float
    seconds: float
    code: str
    engine: float | None = None


@dataclass(frozen=True)
class Direct:
    """Decoder and adapter in this process, a video at a time.

    Attributes:
        videos: How many were run.
        decode: Seconds to decode, the median.
        adapt: Seconds to encode and adapt, the median.
        p50: Seconds of both together, the median.
        p95: Likewise, of which 95 % of the videos stay below.
        per_second: Videos a second.
    """

    videos: int
    decode: float
    adapt: float
    p50: float
    p95: float
    per_second: float


@dataclass(frozen=True)
class Load:
    """The service under so many clients. Rates and times are of what was answered after the load's first fifth.

    Attributes:
        clients: Clients at a time.
        answered: Answers with status 200, all of them.
        refused: Refusals for lack of capacity, all of them.
        others: Other errors by code, all of them.
        per_second: Answers with status 200 a second.
        p50: Seconds of an answer, the median; None without any.
        p95: Seconds that 95 % of the answers stay below.
        overhead_p50: Seconds beyond those that the service decoded, encoded and adapted; waiting for others included.
        overhead_p95: Likewise.
    """

    clients: int
    answered: int
    refused: int
    others: dict[str, int]
    per_second: float
    p50: float | None
    p95: float | None
    overhead_p50: float | None
    overhead_p95: float | None


@dataclass(frozen=True)
class Report:
    """A run of the bench.

    Attributes:
        machine: What it ran on.
        options: The command line, without file names and secrets.
        video: What the video is: bytes, frames, width, height.
        direct: The engine by itself.
        loads: The service at each number of clients.
        overload: The service beyond its capacity; None where it was left out.
        difference: The largest difference of a score between the service and the engine.
        memory: Peak resident bytes of the service's processes, by title; empty for a service that was there before.
        memory_before: The same processes' bytes before the first load.
        cpu: CPU seconds of one answer at one client, by process, and of one video on the direct side: of all figures
            what other programs on the machine disturb least. Empty as `memory` is.
    """

    machine: dict[str, Any]
    options: dict[str, Any]
    video: dict[str, int]
    direct: Direct
    loads: tuple[Load, ...]
    overload: Load | None
    difference: float
    memory: dict[str, int]
    memory_before: dict[str, int]
    cpu: dict[str, float]

    @property
    def peak(self) -> float:
        """Answers a second of the load that had most."""
        return max(load.per_second for load in self.loads)

    @property
    def goodput(self) -> float | None:
        """Answers a second beyond capacity, as a share of the peak."""
        return self.overload.per_second / self.peak if self.overload is not None and self.peak else None


def summarise_direct(laps: Sequence[tuple[float, float]]) -> Direct:
    """What the direct side's (decode, adapt) seconds come to."""
    both = [decode + adapt for decode, adapt in laps]
    return Direct(
        videos=len(laps),
        decode=median(decode for decode, _ in laps),
        adapt=median(adapt for _, adapt in laps),
        p50=median(both),
        p95=float(np.quantile(both, 0.95)),
        per_second=len(both) / sum(both),
    )


def summarise(clients: int, rounds: Sequence[Sequence[Answer]], seconds: float) -> Load:
    """What a load's answers come to.

    Args:
        clients: Clients at a time.
        rounds: All answers of each time the load ran, also those that came after its end.
        seconds: The load's length; no client asks after it.
    """
    ramp = _RAMP * seconds
    answers = [one for answers in rounds for one in answers]
    counted = [one for one in answers if one.code == _OK and ramp <= one.at <= seconds]
    codes = Counter(one.code for one in answers)
    beyond = [one.seconds - one.engine for one in counted if one.engine is not None]
    return Load(
        clients=clients,
        answered=codes.pop(_OK, 0),
        refused=codes.pop("overloaded", 0),
        others=dict(codes),
        per_second=len(counted) / (len(rounds) * (seconds - ramp)),
        p50=percentile([one.seconds for one in counted], 0.5),
        p95=percentile([one.seconds for one in counted], 0.95),
        overhead_p50=percentile(beyond, 0.5),
        overhead_p95=percentile(beyond, 0.95),
    )


def largest_difference(ours: Sequence[RankedLabel], theirs: dict[str, float]) -> float:
    """The largest difference between the scores of the same labels."""
    return max(abs(one.score - theirs[one.label]) for one in ours)


class DirectSide:
    """The service's decoder and adapter without the service.

    Args:
        model: The model.
        labels: The candidate labels.
        video: The file.
        config: The service's options.
    """

    def __init__(self, model: ClipModel, labels: Sequence[str], video: Path, config: ServiceOptions) -> None:
        self.options = adaptation_options(config, Query("direct", tuple(labels), "zar", seed=config.seed))
        self._labels = tuple(labels)
        self._video = video
        self._plan_of = lambda info: plan_video(
            video.name, info, config.views, model.preprocessing, config.seed, needs_views=True
        )
        self._preprocessing = model.preprocessing
        self._adapter = VideoAdapter(model, prompts_of([self._labels], self.options), ("zar",), self.options)

    def run(self) -> tuple[float, float]:
        """Runs the video once; returns the seconds of decoding, and of encoding and adapting."""
        _, *seconds = self._run()
        return seconds[0], seconds[1]

    def scores(self) -> dict[str, float]:
        """The scores of all labels after adaptation."""
        logits, *_ = self._run()
        return {one.label: one.score for one in rank_labels([logits], self._labels, len(self._labels))}

    def _run(self) -> tuple[torch.Tensor, float, float]:
        started = time.perf_counter()
        way, options = self._preprocessing.scaling, self.options
        decoded = decode_video(self._video, self._plan_of, way, options.decoder, resizer=options.resize)
        plan = self._plan_of(decoded.info)
        between = time.perf_counter()
        prediction = self._adapter(decoded.frames, plan)
        ended = time.perf_counter()
        return prediction.cases[0].decision.logits_after, between - started, ended - between


class PreparedClient:
    """Sends one request again and again, made once: a client that takes the service's CPU measures itself.

    Args:
        url: The service.
        token: Its bearer token.
        parts: The multipart body, as httpx takes it.
    """

    def __init__(self, url: str, token: str | None, parts: dict[str, Any]) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = httpx2.Request("POST", f"{url}/v1/classify", headers=headers, **parts)
        self._url, self._body, self._headers = url, request.read(), dict(request.headers)
        self._connection = HTTPConnection(request.url.host, request.url.port, timeout=300)

    def __call__(self) -> Classification:
        """Asks once; see `Client.classify` for what is raised."""
        try:
            self._connection.request("POST", "/v1/classify", self._body, self._headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise ServiceError(self._url, f"nothing answers there ({error})") from error
        if response.status == 200:
            return Classification.model_validate_json(content)
        problem = json.loads(content)
        wait = float(response.headers.get("Retry-After", 0))
        raise ServiceError(self._url, problem["detail"], response.status, problem["code"], retry_after=wait)


def run_load(ask: Callable[[], Callable[[], Classification]], clients: int, seconds: float) -> list[Answer]:
    """Lets clients ask for so many seconds, each again as soon as it has its answer.

    Args:
        ask: Makes a client: a function that asks once.
        clients: How many there are.
        seconds: For how long they begin to ask; what is asked is waited for.
    """
    answers: list[Answer] = []
    askers = [ask() for _ in range(clients)]
    started = time.perf_counter()

    def work(client: Callable[[], Classification]) -> None:
        while (began := time.perf_counter() - started) < seconds:
            wait = 0.0
            try:
                timings = client().timings
                code, engine = _OK, timings.decode + timings.encode + timings.adapt
            except ServiceError as error:
                code, engine, wait = error.code, None, error.retry_after or 0.0
            at = time.perf_counter() - started
            answers.append(Answer(at, at - began, code, engine))
            time.sleep(max(0.0, min(wait, seconds - at)))

    threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in askers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def run(options: ServeBenchOptions, say: Callable[[str], None] = lambda _: None) -> Report:
    """Measures everything that the options ask for.

    Args:
        options: The options.
        say: Is told what has been done.

    Raises:
        ZarError: The service, a file or the model cannot be used.
    """
    if options.url is not None and options.checkpoint is None:
        raise ConfigError("--url goes with --checkpoint: the direct side needs the service's model")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = options.video or make_video(folder / "video.mp4")
        config = ServiceOptions.model_validate(
            {
                "checkpoint": options.checkpoint or make_checkpoint(folder / "tiny.safetensors"),
                "device": "cpu",
                "threads": options.threads,
                "limits": {"concurrent": options.concurrent, "queued": options.queued},
            }
        )
        if options.url is not None:
            return _measure(options, config, video, options.url, None, say)
        with started_service(config) as (url, pid):
            say(f"service started on {url}")
            return _measure(options, config, video, url, pid, say)


def _measure(
    options: ServeBenchOptions,
    config: ServiceOptions,
    video: Path,
    url: str,
    pid: int | None,
    say: Callable[[str], None],
) -> Report:
    labels = made_up_names(options.class_count)
    model = load_model(config)
    side = DirectSide(model, labels, video, config)

    fields = {"candidate_labels": labels, "method": "zar", "seed": str(config.seed), "top_k": str(len(labels))}
    parts = {"data": fields, "files": {"video": (video.name, video.read_bytes())}}
    ask = partial(PreparedClient, url, options.token or os.environ.get("ZAR_TOKEN"), parts)

    first = ask()
    answer = first()
    if answer.model.fingerprint != model.fingerprint:
        raise ConfigError(f"{url}: serves another model than --checkpoint holds")
    for _ in range(_WARM_UP):
        first()
        side.run()
    before = {} if pid is None else memory_of(pid, "VmRSS")
    loaded = os.getloadavg()[0]  # what else goes on says whether the figures mean anything
    beyond = max(1, round(options.overload * (options.concurrent + options.queued))) if options.overload else None
    answers: dict[int, list[list[Answer]]] = {}
    laps: list[tuple[float, float]] = []
    cpu: dict[str, float] = {}
    for _ in range(options.rounds):
        for _ in range(options.direct):
            busy = time.process_time()
            laps.append(side.run())
            cpu["direct"] = cpu.get("direct", 0.0) + time.process_time() - busy
        say(f"direct: {1e3 * median(map(sum, laps)):.1f} ms a video")
        for clients in (*options.clients, *([] if beyond is None else [beyond])):
            busy = _busy(pid) if clients == 1 else {}
            answers.setdefault(clients, []).append(run_load(ask, clients, options.seconds))
            for name, seconds in (_busy(pid) if clients == 1 else {}).items():
                cpu[name] = cpu.get(name, 0.0) + seconds - busy.get(name, 0.0)
            load = summarise(clients, answers[clients][-1:], options.seconds)
            say(f"{clients} clients: {load.per_second:.1f} answers a second, {load.refused} refusals")
    loads = {clients: summarise(clients, rounds, options.seconds) for clients, rounds in answers.items()}
    for name in cpu:
        cpu[name] /= len(laps) if name == "direct" else max(1, loads[1].answered)
    return Report(
        machine={**machine_facts(torch.device("cpu")), "load_average": loaded},
        options=options.model_dump(mode="json", exclude={"url", "token", "checkpoint", "video", "json_file"})
        | {"model": model.name, "random_weights": model.random_weights, "own_service": pid is not None},
        video={
            "bytes": video.stat().st_size,
            "frames": answer.video.frames,
            "width": answer.video.width,
            "height": answer.video.height,
        },
        direct=summarise_direct(laps),
        loads=tuple(loads[clients] for clients in options.clients),
        overload=None if beyond is None else loads[beyond],
        difference=largest_difference(answer.after, side.scores()),
        memory={} if pid is None else memory_of(pid, "VmHWM"),
        memory_before=before,
        cpu=cpu if pid is not None else {},
    )


def _busy(pid: int | None) -> dict[str, float]:
    """CPU seconds so far of the service, and of this process, in which the clients are."""
    return {} if pid is None else {**cpu_of(pid), "clients": time.process_time()}


def show(report: Report, console: Console) -> None:
    """Prints the loads against the direct side, then overhead, overload and memory."""
    machine, video, direct = report.machine, report.video, report.direct
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    say(
        f"{machine['cpu']}, {machine['cpus']} CPUs, torch {machine['torch']};"
        f" load average {machine['load_average']:.1f} as it began"
    )
    say(
        f"{report.options['class_count']} labels; a video of {video['frames']} frames of"
        f" {video['width']}x{video['height']}, {video['bytes'] / 1024:.0f} KiB"
    )
    say(
        f"direct: {1e3 * direct.p50:.1f} ms a video (decode {1e3 * direct.decode:.1f}, adapt {1e3 * direct.adapt:.1f}),"
        f" {direct.per_second:.1f} a second; scores differ by {report.difference:.1g}"
    )
    names = ("clients", "answers/s", "of direct", "p50 ms", "of direct", "p95 ms", "of direct", "503", "others")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right")
    for load in (*report.loads, *([] if report.overload is None else [report.overload])):
        cells = [str(load.clients), f"{load.per_second:.1f}", f"{load.per_second / direct.per_second:.2f}"]
        for seconds, other in ((load.p50, direct.p50), (load.p95, direct.p95)):
            cells += ["", ""] if seconds is None else [f"{1e3 * seconds:.0f}", f"{seconds / other:.2f}"]
        others = ", ".join(f"{count} {code}" for code, count in load.others.items()) or "0"
        table.add_row(*cells, str(load.refused), others)
    console.print(table)
    alone = next((load for load in report.loads if load.clients == 1), None)
    if alone is not None and alone.overhead_p50 is not None and alone.overhead_p95 is not None:
        say(
            f"overhead at one client: {1e3 * alone.overhead_p50:.1f} ms beyond decode and adapt,"
            f" p95 {1e3 * alone.overhead_p95:.1f}; wanted: at most {1e3 * WANTED_OVERHEAD:.0f}"
        )
    if report.goodput is not None:
        say(f"beyond capacity: {report.goodput:.2f} of the peak; wanted: at least {WANTED_GOODPUT}")
    if report.cpu:
        parts = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in report.cpu.items() if name != "direct")
        say(f"CPU ms a video: {1e3 * report.cpu['direct']:.1f} direct; of an answer to one client: {parts}")
    for name, most in sorted(report.memory.items()):
        grown = most - report.memory_before.get(name, most)
        say(f"memory of {name}: {most / 2**20:.0f} MiB at most, {grown / 2**20:+.0f} over the loads")


def main(argv: Sequence[str]) -> int:
    """Runs the bench; returns the exit status."""
    options = tyro.cli(ServeBenchOptions, args=list(argv), prog="serve.py")
    try:
        if options.json_file is not None and not options.json_file.absolute().parent.is_dir():
            raise ConfigError(f"--json {options.json_file}: there is no such folder")
        report = run(options, lambda line: print(line, file=sys.stderr))
    except ZarError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    show(report, Console())
    if options.json_file is not None:
        values = {**asdict(report), "peak": report.peak, "goodput": report.goodput}
        partial_file = options.json_file.with_name(f".{options.json_file.name}.partial")
        partial_file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        partial_file.replace(options.json_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
