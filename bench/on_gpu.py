"""Ten minutes on one GPU: `bench/on_gpu.sh --help`.

Every step of `gpu_steps` runs in a process of its own for a limited time, so that none can hurt another. What could not
be measured is null, with the reason beside it. This module needs Python alone; a step that needs a package which is not
there is left out.

Exit status: 0 if every check of the numbers ran and held, 1 if one did not, 2 for a command line that cannot be used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import gpu_steps

ENGINE = ("torch", "torchvision", "open_clip", "pydantic", "numpy", "pyarrow", "yaml", "safetensors", "tyro", "rich")
# A step that has been ended is gone by then, unless it never goes.
_ENDING_SECONDS = 10.0
DECODING = ("av", "PIL", "numpy", "psutil", "pydantic", "yaml")


@dataclass(frozen=True)
class Step:
    """One thing to find out.

    Attributes:
        name: The function in `gpu_steps`.
        seconds: How long it may take.
        needs: Packages that it cannot do without.
        figures: What it measures, with what the table calls it.
        checks: Whether it compares numbers, which the exit status tells of.
    """

    name: str
    seconds: float
    needs: tuple[str, ...]
    figures: dict[str, str]
    checks: bool = False


_ENCODER = {
    f"{name}_{batch}": f"{batch} images a pass, {label}"
    for batch in gpu_steps.ENCODER_BATCHES
    for name, label in (
        ("images_per_second", "images a second"),
        ("of_product", "of the fastest matrix product"),
        ("of_peak", "of the GPU's stated peak"),
    )
}

# In the order of what is missed most where time runs out.
STEPS = (
    Step(
        "machine",
        40,
        ("torch",),
        {
            "gpu": "GPU",
            "torch": "torch",
            "driver": "driver",
            "cpus": "CPUs",
            "compiler": "C compiler",
            "stated_peak": "stated bf16 peak, FLOP/s",
        },
    ),
    Step(
        "methods",
        100,
        ENGINE,
        {
            **{f"difference_{part}": f"largest difference of a logit, {part}" for part in ("before", "after")},
            "compared": "methods compared",
        },
        checks=True,
    ),
    Step(
        "lstm",
        40,
        ENGINE,
        {f"difference_{method}": f"largest difference of a logit, {method}" for method in gpu_steps.LSTM_METHODS},
        checks=True,
    ),
    Step(
        "out_of_memory",
        60,
        ENGINE,
        {
            "difference": "largest difference of a logit",
            "refused": "allocations that were refused",
            "held": "MiB held afterwards that were not held before",
        },
        checks=True,
    ),
    Step("synchronisations", 50, ENGINE, {"a_video": "a video, 8 at a time", "most": "most often at"}),
    Step("encoder", 60, ENGINE, _ENCODER),
    Step(
        "text_step",
        50,
        ENGINE,
        {
            f"{name}_{batch}": f"{batch} at a time, {label}"
            for batch in gpu_steps.TEXT_BATCHES
            for name, label in (("milliseconds", "ms a video"), ("kernels", "kernels"))
        },
    ),
    Step(
        "k600_row",
        150,
        ENGINE,
        {
            "videos_per_second": "videos a second",
            "ratio": "times the plain loop",
            "encoder_share": "share of the image encoder",
            "of_product": "encoder, of the fastest matrix product",
            "same_top1": "share of the same first class as the plain loop",
        },
    ),
    Step(
        "decode",
        60,
        DECODING,
        {"videos_per_second": "videos a second", "cpu": "CPU ms a video", "processes": "at once"},
    ),
    Step(
        "training_step",
        50,
        ENGINE,
        {
            "images_per_second": "images a second",
            "of_product": "of the fastest matrix product",
            "memory": "MiB an image",
        },
    ),
    Step("encoder_compiled", 120, ENGINE, _ENCODER),
)


@dataclass
class Outcome:
    """What became of a step.

    Attributes:
        status: ``ran``, ``wrong`` (a number is), ``failed``, or ``not measured``.
        why: The reason of anything but ``ran``.
        seconds: How long it took.
        figures: All of the step's figures; None where one was not measured.
        details: What else it found out.
    """

    status: Literal["ran", "wrong", "failed", "not measured"]
    why: str | None = None
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def run_step(step: Step, dry: bool, seconds: float) -> Outcome:
    """Runs a step in a process of its own; what it measured before it failed, or its time was over, is kept.

    Args:
        step: The step.
        dry: Whether to do it in miniature on the CPU.
        seconds: How long it may take.
    """
    outcome = Outcome("failed", figures=dict.fromkeys(step.figures))
    missing = [name for name in step.needs if importlib.util.find_spec(name) is None]
    if missing:
        outcome.status, outcome.why = "not measured", f"needs {', '.join(missing)}"
        return outcome
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(step.name, dry, sender))
    started = time.monotonic()
    try:
        process.start()
    except (OSError, EOFError) as error:
        outcome.why = f"no process could be started ({type(error).__name__}: {error})"
        return outcome
    sender.close()
    try:
        if not _listen(receiver, started + seconds, step, outcome):
            outcome.why = f"took longer than the {seconds:.0f} s that it had"
    finally:
        _end(process)
        # One that waits within a driver which hangs cannot be ended by anybody.
        process.join(_ENDING_SECONDS)
        outcome.seconds = time.monotonic() - started
    if outcome.why is None and outcome.status == "failed":
        outcome.why = f"its process ended with status {process.exitcode}"
    return outcome


def _listen(receiver: Connection, until: float, step: Step, outcome: Outcome) -> bool:
    """Takes in what a step says, until it has ended; False where its time is over before that."""
    while True:
        if not receiver.poll(max(0.0, until - time.monotonic())):
            return False
        try:
            kind, told = receiver.recv()
        except EOFError:
            return True
        if kind == "figures":
            outcome.figures |= {name: value for name, value in told.items() if name in step.figures}
            outcome.details |= {name: value for name, value in told.items() if name not in step.figures}
        else:
            outcome.status, outcome.why = kind, told


def _end(process: BaseProcess) -> None:
    """Ends a step, if it has not ended, with all processes that it started: they are a group by the time it works."""
    if process.is_alive() and process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()


def _prepare() -> None:
    """Loads what the steps have in common, so that none pays for that, nor suffers where a library ends its process."""
    context = multiprocessing.get_context("forkserver")
    for preloaded in (["preloaded"], []):
        context.set_forkserver_preload(preloaded)
        process = context.Process(target=_nothing)
        try:
            process.start()
        except (OSError, EOFError):
            continue
        process.join(_ENDING_SECONDS)
        return


def _nothing() -> None:
    pass


def _work(name: str, dry: bool, sender: Connection) -> None:
    os.setpgid(0, 0)

    def note(**figures: Any) -> None:
        sender.send(("figures", figures))

    try:
        getattr(gpu_steps, name)(gpu_steps.Size.of(dry), note)
        sender.send(("ran", None))
    except gpu_steps.WrongError as error:
        sender.send(("wrong", str(error)))
    except gpu_steps.NotMeasuredError as error:
        sender.send(("not measured", str(error)))
    except Exception as error:
        sender.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
        raise


def show(steps: Sequence[Step], outcomes: dict[str, Outcome]) -> str:
    """The table: a line a step, and one a figure."""
    lines = []
    for step in steps:
        outcome = outcomes[step.name]
        why = f": {outcome.why}" if outcome.why else ""
        lines.append(f"{step.name} — {outcome.status} ({outcome.seconds:.0f} s){why}")
        lines += [f"    {label:<55} {_shown(outcome.figures[name])}" for name, label in step.figures.items()]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(outcomes: dict[str, Outcome], dry: bool, place: Path) -> None:
    """Writes everything as JSON; the file is there as a whole or not at all."""
    values = {"dry": dry, "steps": {name: asdict(outcome) for name, outcome in outcomes.items()}}
    partial = place.with_name(f".{place.name}.partial")
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    partial.replace(place)


def main(argv: Sequence[str]) -> int:
    """Runs the steps; returns the exit status."""
    parser = argparse.ArgumentParser(prog="on_gpu.sh", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--dry", action="store_true", help="in miniature on the CPU, which shows that the script works")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    parser.add_argument("--seconds", type=float, default=570.0, help="for all steps together (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write everything to this file, after each step")
    options = parser.parse_args(argv)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        print(f"bench: --json {options.json}: there is no such folder", file=sys.stderr)
        return 2
    steps = [step for step in STEPS if options.only is None or step.name in options.only]
    until = time.monotonic() + options.seconds
    _prepare()
    outcomes: dict[str, Outcome] = {}
    for step in steps:
        left = min(step.seconds, until - time.monotonic())
        if left <= 0:
            outcomes[step.name] = Outcome("not measured", "no time was left", figures=dict.fromkeys(step.figures))
        else:
            outcomes[step.name] = run_step(step, options.dry, left)
        print(f"{step.name}: {outcomes[step.name].status}", file=sys.stderr)
        if options.json is not None:
            write(outcomes, options.dry, options.json)
    print(show(steps, outcomes))
    held = all(outcomes[step.name].status == "ran" for step in steps if step.checks)
    return 0 if held else 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    if multiprocessing.active_children():
        os._exit(status)  # Python would wait for a process that cannot be ended
    sys.exit(status)
