"""How far `zar plan`'s forecast is from the real job: `python bench/plan.py --help`.

The same videos are forecast and run, each in a process of its own, with so many model replicas on this machine's cores.
Compared are the wall seconds of the pass over the videos, with the workers' start, as a run's summary has them.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import tyro
from pipeline import PipelineOptions, make_inputs
from pydantic import Field
from rich.console import Console

from zar_ray.options.base import Options
from zar_ray.study.options import EvalConfig, PlanConfig

_SHOWN = ("decode_cpu", "adapt_cpu", "adapt_seconds", "decode_start", "adapt_start", "job_start", "job_share")


class PlanBenchOptions(Options):
    """Forecasts a run and runs it, and compares their seconds."""

    videos: int = Field(default=448, ge=20, description="Short videos; they are drawn first.")
    demo: bool = Field(default=False, description="The demo's 192 videos in place of them, which `zar eval` has made.")
    workers: tuple[int, ...] = Field(default=(1, 2, 4), description="Model replicas.")
    sample: int = Field(default=20, ge=1, description="Videos that the forecast measures.")
    folder: Path | None = Field(default=None, description="Where the videos are drawn, or lie from an earlier time.")


def forecast_of(values: dict[str, Any], answer: Any) -> None:
    """Answers with the forecast's seconds and what it measured."""
    from zar_ray.study.forecasts import cost_of

    costs = cost_of(PlanConfig.model_validate(values), Console(file=io.StringIO()))
    answer.put(costs.to_json())


def seconds_of(values: dict[str, Any], answer: Any) -> None:
    """Answers with the seconds of the real job, on a Ray of its own, in all and until the first row."""
    import ray

    from zar_ray.results.folder import RunFolder
    from zar_ray.storage import Storage
    from zar_ray.study.run import run_study

    ray.init(address="local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    record = run_study(EvalConfig.model_validate(values), Console(file=io.StringIO()))
    ray.shutdown()
    rows = RunFolder(Storage(record.whole.run_file.rpartition("/")[0])).results()["recorded_at"].to_pylist()
    seconds = record.whole.throughput.seconds
    answer.put((seconds, seconds - (max(rows) - min(rows))))


def apart(target: Any, values: dict[str, Any]) -> Any:
    """What a function answers in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=target, args=(values, answer))
    process.start()
    while True:
        try:
            found = answer.get(timeout=1)
            break
        except multiprocessing.queues.Empty:  # type: ignore[attr-defined]
            if not process.is_alive():
                raise SystemExit(f"bench: {target.__name__} ended with status {process.exitcode}") from None
    process.join()
    return found


def main() -> int:
    """Compares one number of replicas after the other; returns the exit status."""
    options = tyro.cli(PlanBenchOptions, prog="plan.py")
    with tempfile.TemporaryDirectory() as folder:
        drawn = options.folder or Path(folder)
        if options.demo:
            from zar_ray.study.demo import checkpoint_file

            own = EvalConfig(dataset="demo", checkpoint=checkpoint_file(), mlflow=False)
        else:
            own = make_inputs(drawn, PipelineOptions(videos=options.videos))
        for workers in options.workers:
            values = {**own.model_dump(mode="json"), "num_workers": workers, "output": str(Path(folder) / str(workers))}
            found = apart(forecast_of, {**values, "sample": options.sample})
            real, first = apart(seconds_of, values)
            told, sample = found["asked"], found["sample"]
            line = {
                "workers": workers,
                "forecast": round(told["seconds"], 1),
                "measured": round(real, 1),
                "off": f"{told['seconds'] / real - 1:+.1%}",
                "start": round(told["start_seconds"], 1),
                "measured start": round(first, 1),
                "short": told["short"],
                **{name: round(sample[name], 4) for name in _SHOWN},
            }
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
