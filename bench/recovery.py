"""How long the service is away after SIGKILL of each of its processes: `python bench/recovery.py --help`.

Clients ask for one video over and over, again as soon as they have an answer or an error. A process is killed; the
service is back with the first answer to a request that began after that, if no error comes later.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from inputs import made_up_names
from measure import machine_facts
from pydantic import Field
from service import TARGETS, kill, make_checkpoint, make_video, started_service
from torch import device

from zar_ray.client import Client, ServiceError
from zar_ray.errors import ZarError
from zar_ray.options.base import Options
from zar_ray.serving.methods import ServiceOptions

_OK = "ok"
# Clients that hammer at what is starting would be what it waits for.
_PAUSE = 0.2
_CALM_SECONDS = 3.0


class RecoveryOptions(Options):
    """Kills each of the service's processes under load and measures when the service is back."""

    clients: int = Field(default=6, ge=1, description="Clients at a time.")
    rounds: int = Field(default=3, ge=1, description="How often each process is killed.")
    targets: tuple[str, ...] = Field(default=TARGETS, description="What is killed, in this order.")
    seconds: float = Field(default=40.0, gt=0, description="The most that is waited for the service to be back.")
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all numbers to this file too."
    )


@dataclass(frozen=True)
class Recovery:
    """What a kill cost.

    Attributes:
        target: What was killed.
        seconds: From the kill to the first answer of a request that began later, and after the last error; None
            without any.
        errors: Errors of all clients from the kill on, by code.
    """

    target: str
    seconds: float | None
    errors: dict[str, int]


def recovery_of(answers: Sequence[tuple[float, float, str]], killed: float) -> tuple[float | None, dict[str, int]]:
    """Seconds from a kill to when answers come again, and the errors by code.

    Args:
        answers: When a request began, when it was answered, and ``ok`` or the error's code.
        killed: When the process was killed.
    """
    later = [one for one in answers if one[1] >= killed]
    last = max((end for _, end, code in later if code != _OK), default=killed)
    good = min((end for began, end, code in later if code == _OK and began >= killed and end >= last), default=None)
    return None if good is None else good - killed, dict(Counter(code for _, _, code in later if code != _OK))


def wait_until_back(answers: Sequence[tuple[float, float, str]], killed: float, seconds: float) -> float | None:
    """Waits until answers come again and go on coming; returns the seconds from the kill to then.

    Args:
        answers: See `recovery_of`; others add to it.
        killed: When the process was killed.
        seconds: The most that is waited; None is returned then.
    """
    recovered = None
    while time.monotonic() < killed + seconds:
        time.sleep(_CALM_SECONDS)
        before, recovered = recovered, recovery_of(tuple(answers), killed)[0]
        if recovered is not None and recovered == before:
            break
    return recovered


def run(options: RecoveryOptions) -> list[Recovery]:
    """Kills and measures all that the options ask for."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        video, checkpoint = make_video(Path(name) / "video.mp4"), make_checkpoint(Path(name) / "tiny.safetensors")
        config = ServiceOptions.model_validate({"checkpoint": checkpoint, "device": "cpu"})
        labels = made_up_names(51)
        with started_service(config) as (url, pid):
            answers: list[tuple[float, float, str]] = []
            over = threading.Event()

            def work() -> None:
                with Client(url, retries=0, timeout=60) as client:
                    while not over.is_set():
                        began, code = time.monotonic(), _OK
                        try:
                            client.classify(video, labels, method="zero_shot")
                        except ServiceError as error:
                            code = error.code
                        answers.append((began, time.monotonic(), code))
                        time.sleep(0 if code == _OK else _PAUSE)

            threads = [threading.Thread(target=work, daemon=True) for _ in range(options.clients)]
            for thread in threads:
                thread.start()
            try:
                for target in options.targets * options.rounds:
                    time.sleep(_CALM_SECONDS)
                    killed = kill(pid, target)
                    recovered = wait_until_back(answers, killed, options.seconds)
                    found.append(Recovery(target, *recovery_of(tuple(answers), killed)))
                    said = "not back" if recovered is None else f"back after {found[-1].seconds:.2f} s"
                    print(f"{target}: {said}; errors {found[-1].errors or 'none'}", flush=True)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the bench; returns the exit status."""
    options = tyro.cli(RecoveryOptions, args=list(argv), prog="recovery.py")
    try:
        found = run(options)
    except ZarError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.json_file is not None:
        values = {"machine": machine_facts(device("cpu")), "recoveries": [asdict(one) for one in found]}
        options.json_file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
