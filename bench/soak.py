"""Keeps a service busy with requests of all kinds while its processes are killed: `python bench/soak.py --help`.

Everything must add up: each request is answered once, by a status that docs/service.md has for its kind; only what was
in flight in a process that was killed, or came before there was another, may be lost. What does not add up is said, a
line each, and the exit status is 1.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Annotated

import tyro
from measure import machine_facts, percentile
from pydantic import Field
from recovery import recovery_of
from rich import box
from rich.console import Console
from rich.table import Table
from service import TARGETS, held_by, kill, logs_in, make_checkpoint, processes, started_service
from torch import device
from traffic import LEFT, OK, REFUSED, UNANSWERED, Kind, Reply, Site, kinds_of, make_files, send

from zar_ray.errors import ConfigError, ZarError
from zar_ray.options.base import Options
from zar_ray.serving.methods import ServiceOptions

_TOKEN = "a token of the soak"
_BODY_BYTES = 4 * 2**20
_CLIENTS = 64
# Longer than the service may take over a request.
_ANSWER_SECONDS = 150.0
_PROBE = "whole video"
_PROBE_PAUSE = 0.2
_CALM_SECONDS = 2.0
_SAMPLE_SECONDS = 2.0
# What a killed process may take to be gone on a busy machine; until then its port takes connections.
_DYING_SECONDS = 2.0
_GIVEN_BACK_SECONDS = 15.0
# Of fewer requests a process's growth says nothing.
_ENOUGH = 500
_MIB = 2**20
# What else a request may get, whatever it is, when a process of this name was killed.
_LOSSES = {
    "decoding process": {"unusable-video"},
    "decoder": {"replica-lost", "timeout"},
    "model": {"replica-lost", "not-ready", "timeout"},
    "ingress": {"replica-lost", "not-ready", UNANSWERED},
    "proxy": {REFUSED, UNANSWERED, "not-ready"},
}
_LOGGED = re.compile(r"request (\S+) [A-Z]+ \S+ (\d+) [\d.]+ s$", re.MULTILINE)


class SoakOptions(Options):
    """Asks a service all kinds of things, kills its processes meanwhile, and holds the counts against each other."""

    minutes: float = Field(default=5.0, gt=0, description="For how long requests begin.")
    rate: float = Field(default=4.0, gt=0, description="Requests a second, at random moments.")
    kill_every: float = Field(
        default=15.0, ge=0, description="Mean seconds from when the service is back to the next kill; 0 for none."
    )
    targets: tuple[str, ...] = Field(default=TARGETS, min_length=1, description="What is killed, by chance.")
    back: float = Field(default=60.0, gt=0, description="Seconds within which the service must be back.")
    growth: float = Field(default=32.0, gt=0, description="MiB that a process may grow by in 1,000 requests.")
    tokens: bool = Field(default=False, description="The service wants a token, and takes any host name.")
    seed: int = Field(default=0, ge=0, description="Seed of the requests and the kills.")
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all numbers to this file too."
    )


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        name: Its id.
        kind: Its kind.
        began: When it was sent.
        ended: When the answer was read.
        reply: The answer.
    """

    name: str
    kind: str
    began: float
    ended: float
    reply: Reply


@dataclass(frozen=True)
class Kill:
    """A process that was killed.

    Attributes:
        target: Which.
        at: When.
        back: Seconds until the service was back; None if it was not.
    """

    target: str
    at: float
    back: float | None


@dataclass(frozen=True)
class Sample:
    """A process's memory at a moment.

    Attributes:
        name: What it does.
        pid: Which.
        requests: Requests that had been answered.
        bytes: Resident.
    """

    name: str
    pid: int
    requests: int
    bytes: int


@dataclass(frozen=True)
class Growth:
    """How a process grew.

    Attributes:
        bytes: By 1,000 requests.
        requests: Those that it was measured over.
    """

    bytes: float
    requests: int


def explains(killed: Kill, outcome: Outcome, kind: Kind) -> bool:
    """Whether a kill explains what became of a request: it was under way then, or began while the service was away."""
    reply = outcome.reply
    until = float("inf") if killed.back is None else killed.at + killed.back
    if outcome.ended < killed.at or outcome.began > until or reply.code not in _LOSSES[killed.target]:
        return False
    if killed.target == "decoding process":
        return "SIGKILL" in reply.detail
    if reply.code == UNANSWERED:
        # Of an ingress, a stream that it was sending; of a proxy, whatever it held, or had let in before it was gone.
        return outcome.began <= killed.at + _DYING_SECONDS and (killed.target == "proxy" or kind.stream)
    return True


def check(
    outcomes: Sequence[Outcome], kills: Sequence[Kill], kinds: Mapping[str, Kind]
) -> tuple[list[str], Counter[str]]:
    """What does not add up, a line each, and how many requests of each kind were lost in killed processes."""
    wrong, lost = [], Counter[str]()
    blamed = Counter[Kill]()
    for one in outcomes:
        kind, reply = kinds[one.kind], one.reply
        said = f"{one.name} ({one.kind}): {reply.status or ''} {reply.code}".replace("  ", " ")
        wrong += [f"{said}: {fault}" for fault in reply.faults]
        posts = kind.reaches and reply.code == "overloaded"
        if reply.code in kind.codes or posts:
            continue
        killed = next((killed for killed in kills if explains(killed, one, kind)), None)
        if killed is None:
            wrong.append(
                f"{said} where {' or '.join(sorted(kind.codes))} is documented: {reply.detail}{_since(one, kills)}"
            )
            continue
        lost[one.kind] += 1
        blamed[killed] += 1
        if killed.target == "decoding process" and blamed[killed] > 1:
            wrong.append(f"{said}: the decoding process that was killed held one video, and this is another")
    return wrong, lost


def _since(outcome: Outcome, kills: Sequence[Kill]) -> str:
    before = [killed for killed in kills if killed.at < outcome.ended]
    return f" ({outcome.began - before[-1].at:+.2f} s from the {before[-1].target}'s end)" if before else ""


def check_logs(outcomes: Sequence[Outcome], kills: Sequence[Kill], kinds: Mapping[str, Kind], log: str) -> list[str]:
    """What the ingress logged in another way than its clients saw it: each request once, with the same status."""
    logged: dict[str, list[int]] = {}
    for name, status in _LOGGED.findall(log):
        logged.setdefault(name, []).append(int(status))
    wrong = []
    for one in outcomes:
        seen = logged.get(one.name, [])
        said = f"{one.name} ({one.kind}): {one.reply.status}, and the ingress has logged {seen or 'nothing'}"
        # It logs when all is sent, and may be killed just before.
        killed = any(kill.target == "ingress" and one.began <= kill.at <= one.ended + 1 for kill in kills)
        unlike = one.reply.code == OK and kinds[one.kind].reaches and seen != [one.reply.status]
        if len(seen) > 1 or (unlike and not killed):
            wrong.append(said)
    return wrong


def growth_of(samples: Sequence[Sample]) -> dict[str, Growth]:
    """How processes grew in the second half of the requests that each saw; of several of a name, who saw most."""
    lives: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        lives.setdefault((sample.name, sample.pid), []).append(sample)
    found: dict[str, Growth] = {}
    for (name, _), life in lives.items():
        middle = (life[0].requests + life[-1].requests) / 2
        first = next(sample for sample in life if sample.requests >= middle)
        requests = life[-1].requests - first.requests
        if requests > (found[name].requests if name in found else 0):
            found[name] = Growth(1000 * (life[-1].bytes - first.bytes) / requests, requests)
    return found


@dataclass(frozen=True)
class Report:
    """A run.

    Attributes:
        outcomes: All requests.
        kills: What was killed.
        growth: Of the service's processes, by what they do.
        lost: Requests that were lost in killed processes, by kind.
        wrong: What does not add up.
    """

    outcomes: list[Outcome]
    kills: list[Kill]
    growth: dict[str, Growth]
    lost: Counter[str]
    wrong: list[str]


class Soak:
    """A run against a service that has been started.

    Args:
        options: The bench's options.
        site: The service.
        pid: The process above its processes.
        say: Is told what goes on.
    """

    def __init__(self, options: SoakOptions, site: Site, pid: int, say: Callable[[str], None]) -> None:
        self.kinds = kinds_of(options.tokens)
        self.outcomes: list[Outcome] = []
        self.kills: list[Kill] = []
        self.samples: list[Sample] = []
        self.asked = 0
        self._options, self._site, self._pid, self._say = options, site, pid, say
        self._guard = threading.Lock()
        self._over = threading.Event()

    def run(self) -> None:
        """Asks, kills and looks at the memory until the time is over and all is answered."""
        options, chance = self._options, Random(self._options.seed)
        names, weights = list(self.kinds), [kind.weight for kind in self.kinds.values()]
        ended = time.monotonic() + 60 * options.minutes
        watchers = [threading.Thread(target=self._watch_memory)]
        if options.kill_every:
            watchers.append(threading.Thread(target=self._kill_again_and_again, args=(ended,)))
        for watcher in watchers:
            watcher.start()
        try:
            with ThreadPoolExecutor(_CLIENTS) as clients:
                futures = []
                while time.monotonic() < ended:
                    futures.append(clients.submit(self.ask, chance.choices(names, weights)[0]))
                    time.sleep(chance.expovariate(options.rate))
            for future in futures:
                future.result()  # its error is the bench's own
        finally:
            self._over.set()
            for watcher in watchers:
                watcher.join()

    def ask(self, kind_name: str) -> Outcome:
        """Sends one request, and waits for what becomes of it."""
        with self._guard:
            self.asked += 1
            number = self.asked
        name, kind = f"soak-{self._options.seed}-{number}", self.kinds[kind_name]
        ask = kind.make(self._site, Random(name), name)
        began = time.monotonic()
        reply = send(self._site, kind, ask, name, _ANSWER_SECONDS)
        outcome = Outcome(name, kind_name, began, time.monotonic(), reply)
        self.outcomes.append(outcome)
        return outcome

    def _kill_again_and_again(self, ended: float) -> None:
        chance = Random(f"kills {self._options.seed}")
        waiting = list(self._options.targets)
        chance.shuffle(waiting)
        # Not while requests no longer come: what is lost must be seen.
        while not self._over.wait(self._options.kill_every * chance.uniform(0.5, 1.5)) and time.monotonic() < ended:
            # Each once, in any order, and then by chance.
            target = waiting.pop() if waiting else chance.choice(self._options.targets)
            try:
                at = kill(self._pid, target)
            except StopIteration:
                self._say(f"{target}: there is none to kill at the moment")
                continue
            back = self._await_recovery(at)
            self.kills.append(Kill(target, at, back))
            self._say(f"{target} killed: " + ("not back" if back is None else f"back after {back:.2f} s"))

    def _await_recovery(self, killed: float) -> float | None:
        """Asks for a whole video until there are answers again, and no more errors."""
        back = None
        while time.monotonic() < killed + self._options.back:
            self.ask(_PROBE)
            answers = [(one.began, one.ended, one.reply.code) for one in tuple(self.outcomes) if one.kind == _PROBE]
            back, _ = recovery_of(answers, killed)
            if back is not None and time.monotonic() > killed + back + _CALM_SECONDS:
                break
            time.sleep(_PROBE_PAUSE)
        return back

    def _watch_memory(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            for name, process in processes(self._pid):
                if name in TARGETS and (held := held_by(process, "VmRSS")):
                    self.samples.append(Sample(name, process.pid, len(self.outcomes), held))

    def check_rest(self) -> list[str]:
        """What a service is without that has nothing to do, and what it still holds of requests that are over."""
        until, held = time.monotonic() + _GIVEN_BACK_SECONDS, ["it has no measures"]
        while held and time.monotonic() < until:
            time.sleep(_PROBE_PAUSE)
            with closing(HTTPConnection("127.0.0.1", self._site.port, timeout=_ANSWER_SECONDS)) as connection:
                connection.request("GET", "/metrics", headers=self._site.token_header)
                text = connection.getresponse().read().decode()
            held = re.findall(r"^(zar_(?:requests|body_bytes)_held)\{.*\} (?!0\.0)(.+)$", text, re.MULTILINE)
        there = {name for name, _ in processes(self._pid)}
        return [f"after all requests: {' '.join(one)}" for one in held] + [
            f"after all requests: there is no {name}" for name in TARGETS if name not in there
        ]


def run(options: SoakOptions, say: Callable[[str], None]) -> Report:
    """Starts a service and keeps it busy.

    Raises:
        ZarError: The service does not start.
    """
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        files = make_files(folder)
        config = ServiceOptions.model_validate(
            {
                "checkpoint": make_checkpoint(folder / "tiny.safetensors"),
                "device": "cpu",
                "threads": 1,
                "roots": [files.root],
                "tokens": [sha256(_TOKEN.encode()).hexdigest()] if options.tokens else [],
                "limits": {"body_bytes": _BODY_BYTES, "receive_seconds": 10.0, "head_seconds": 5.0},
            }
        )
        with started_service(config, folder / "ray") as (url, pid):
            say(f"service started on {url}")
            site = Site(int(url.rpartition(":")[2]), _BODY_BYTES, _TOKEN if options.tokens else None, files)
            soak = Soak(options, site, pid, say)
            soak.run()
            rest = soak.check_rest()
        log = logs_in(folder / "ray", "ingress")
    wrong, lost = check(soak.outcomes, soak.kills, soak.kinds)
    wrong += check_logs(soak.outcomes, soak.kills, soak.kinds, log) + rest
    if soak.asked != len(soak.outcomes):
        wrong.append(f"{soak.asked} requests were sent, and {len(soak.outcomes)} have an outcome")
    wrong += [
        f"{one.target}: not back {options.back:g} s after it was killed" for one in soak.kills if one.back is None
    ]
    growth = growth_of(soak.samples)
    wrong += [
        f"{name}: grew by {one.bytes / _MIB:.0f} MiB in 1,000 requests, over {one.requests}"
        for name, one in growth.items()
        if one.requests >= _ENOUGH and one.bytes > options.growth * _MIB
    ]
    return Report(soak.outcomes, soak.kills, growth, lost, wrong)


def show(report: Report, console: Console) -> None:
    """Prints what became of each kind, what the kills cost, how processes grew, and what does not add up."""
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("kind", "asked", "p50 s", "lost", "answers"):
        table.add_column(name, justify="left" if name in ("kind", "answers") else "right")
    for kind, ones in sorted(_by_kind(report.outcomes).items()):
        answers = ", ".join(f"{count} {code}" for code, count in Counter(one.reply.code for one in ones).most_common())
        middle = percentile([one.ended - one.began for one in ones], 0.5)
        table.add_row(kind, str(len(ones)), f"{middle:.2f}", str(report.lost[kind]), answers)
    console.print(table)
    left = sum(one.reply.code == LEFT for one in report.outcomes)
    lost = report.lost.total()
    say(f"{len(report.outcomes)} requests: {len(report.outcomes) - left - lost} answered, {left} left, {lost} lost")
    for target in sorted({one.target for one in report.kills}):
        times = ["not" if one.back is None else f"{one.back:.2f}" for one in report.kills if one.target == target]
        say(f"{target}: killed {len(times)} times, back after {', '.join(times)} s")
    for name, one in sorted(report.growth.items()):
        say(f"{name}: {one.bytes / _MIB:+.1f} MiB in 1,000 requests, over {one.requests}")
    for line in report.wrong:
        say(line)
    say(f"{len(report.wrong)} things do not add up" if report.wrong else "everything adds up")


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for one in outcomes:
        found.setdefault(one.kind, []).append(one)
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the bench; returns the exit status."""
    options = tyro.cli(SoakOptions, args=list(argv), prog="soak.py")
    try:
        unknown = set(options.targets) - set(TARGETS)
        if unknown:
            raise ConfigError(f"--targets: there is no {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
        report = run(options, lambda line: print(line, file=sys.stderr, flush=True))
    except ZarError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    show(report, Console())
    if options.json_file is not None:
        values = {
            "machine": machine_facts(device("cpu")),
            "options": options.model_dump(mode="json", exclude={"json_file"}),
            "answers": {
                kind: Counter(one.reply.code for one in ones) for kind, ones in _by_kind(report.outcomes).items()
            },
            "lost": report.lost,
            "kills": [{"target": one.target, "back": one.back} for one in report.kills],
            "growth": {name: asdict(one) for name, one in report.growth.items()},
            "wrong": report.wrong,
        }
        options.json_file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
