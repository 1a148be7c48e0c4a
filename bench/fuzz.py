"""Whether mutated videos cost more than themselves: `python bench/fuzz.py --files 5000 --seed 1`.

The generator and the stages are those of `tests/fuzz`. Beside them the files go through commands: `zar data index`,
whose manifest must have a row a file, `zar predict`, which must have said something of each, and `zar eval` on a Ray of
its own, whose table must have a row a file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Annotated

# Before PyTorch: it says how OpenMP's threads wait.
import zar_ray  # noqa: F401  # isort: skip

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from zar_ray.data.manifest import read_manifest
from zar_ray.data.probing import usable_cpus
from zar_ray.options.base import Options
from zar_ray.results.folder import PREDICTIONS

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_REPOSITORY / "tests" / "fuzz"))

from fuzz_stages import FINE, STAGES, Outcome, counts, send_through  # noqa: E402
from mutated_videos import mutants, seed_files  # noqa: E402

_AT_ONCE = 500  # files that lie on the disk at a time
_CLASSES = ("even", "odd")


class FuzzOptions(Options):
    """Sends mutated videos through everything that opens videos, and counts what becomes of them."""

    files: int = Field(default=2000, ge=1, description="Mutated files.")
    seed: int = Field(default=0, ge=0, description="What they depend on, with their numbers.")
    timeout: float = Field(default=10.0, gt=0, description="Seconds that decoding one may take.")
    workers: int = Field(default_factory=usable_cpus, ge=1, description="Processes at a time.")
    samples: Path = Field(
        default=_REPOSITORY.parent / "shared" / "videos", description="Folder of real videos that are mutated too."
    )
    keep: Path | None = Field(default=None, description="Keep the files that crash, hang or surprise a decoder here.")
    commands: bool = Field(default=True, description="Send them through commands too.")
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all outcomes but the good ones to this file too."
    )


def run(options: FuzzOptions, say: Callable[[str], None]) -> tuple[list[Outcome], list[str]]:
    """Sends all files through; returns what became of each at each stage, and what was wrong with commands."""
    outcomes, wrong = [], []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        checkpoint = _checkpoint(work / "tiny.safetensors") if options.commands else None
        seeds = seed_files(work / "seeds", options.samples)
        made = enumerate(mutants(seeds, options.files, options.seed))
        for number in count():
            folder, batch = work / f"batch{number}", list(islice(made, _AT_ONCE))
            if not batch:
                break
            for place, mutant in batch:
                path = folder / _CLASSES[place % 2] / mutant.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(mutant.content)
            found = send_through(folder, options.timeout, options.workers, say)
            outcomes += found
            if checkpoint is not None:
                wrong += list(_commands(folder, checkpoint, options, say))
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                for file in {one.file for one in found if one.kind not in ("read", "warned", "refused")}:
                    shutil.copy(folder / file, options.keep)
            shutil.rmtree(folder)
    return outcomes, wrong


def _checkpoint(path: Path) -> Path:
    from serve import make_checkpoint

    return make_checkpoint(path)


def _commands(folder: Path, checkpoint: Path, options: FuzzOptions, say: Callable[[str], None]) -> Iterator[str]:
    """What is wrong with the commands, a line each."""
    files = sorted(map(str, folder.glob("*/*")))
    manifest = folder.with_suffix(".parquet")
    ended = _zar("data", "index", str(folder), "--output", str(manifest))
    rows = len(read_manifest(manifest)) if ended.returncode == 0 else 0
    say(f"zar data index: exit status {ended.returncode}, {rows} rows of {len(files)} files")
    if ended.returncode != 0 or rows != len(files) or "Traceback" in ended.stderr:
        yield f"zar data index: exit status {ended.returncode}, {rows} of {len(files)} rows: {ended.stderr[-300:]}"
    how = (
        *("--checkpoint", str(checkpoint), "--device", "cpu", "--method", "zero_shot"),
        *("--views.frames", "4", "--views.eval-frames", "4", "--decode-timeout", f"{options.timeout}"),
    )
    ended = _zar("predict", *files, "--labels", ",".join(_CLASSES), *how, "--json-lines")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    said = {str(line["video"]) for line in lines}
    failed = sum(line.get("error") is not None for line in lines)
    say(f"zar predict: exit status {ended.returncode}, {len(lines)} answers ({failed} errors) of {len(files)} files")
    if ended.returncode not in (0, 1) or said != set(files) or "Traceback" in ended.stderr:
        yield f"zar predict: exit status {ended.returncode}, {len(said)} of {len(files)} files: {ended.stderr[-300:]}"
    ended = _zar(
        *("eval", "--dataset", str(manifest), "--output", str(folder.parent), "--name", f"run-{folder.name}"),
        *("--no-mlflow", "--max-failed", "1", "--address", "local", *how),
    )
    table = folder.parent / f"run-{folder.name}" / PREDICTIONS
    errors = pq.read_table(table)["error"] if table.is_file() else pa.chunked_array([], pa.string())
    failed = len(errors.drop_null())
    say(f"zar eval: exit status {ended.returncode}, {len(errors)} rows ({failed} errors) of {len(files)} files")
    if ended.returncode != 0 or len(errors) != len(files) or "Traceback" in ended.stderr:
        yield f"zar eval: exit status {ended.returncode}, {len(errors)} of {len(files)} rows: {ended.stderr[-300:]}"


def _zar(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zar_ray.commands.main", *words]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def show(outcomes: Sequence[Outcome], wrong: Sequence[str], console: Console) -> None:
    """Prints a line for each stage, and what must not be."""
    found = counts(outcomes)
    kinds = (*FINE, "unforeseen", "dead", "escaped", "lost")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in ("files", *kinds, "longest s"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in STAGES:
        longest = max((one.seconds for one in outcomes if one.stage == stage), default=0.0)
        row = [str(found[stage].total()), *(str(found[stage][kind]) for kind in kinds)]
        table.add_row(stage, *row, f"{longest:.1f}" if longest else "")
    console.print(table)
    for one in outcomes:
        if one.kind not in ("read", "warned", "refused"):
            console.print(f"{one.stage}: {one.kind}: {one.file}: {one.said[:200]}", highlight=False, markup=False)
    for line in wrong:
        console.print(line, highlight=False, markup=False)


def main(argv: Sequence[str]) -> int:
    """Runs the bench; returns the exit status, 1 if anything is not as it should be."""
    options = tyro.cli(FuzzOptions, args=list(argv), prog="fuzz.py")
    outcomes, wrong = run(options, lambda line: print(line, file=sys.stderr, flush=True))
    show(outcomes, wrong, Console(width=120, soft_wrap=True))
    if options.json_file is not None:
        bad = [asdict(one) for one in outcomes if one.kind not in ("read", "warned", "refused")]
        kinds = {stage: dict(Counter(found)) for stage, found in counts(outcomes).items()}
        options.json_file.write_text(json.dumps({"counts": kinds, "files": bad, "commands": wrong}, indent=1) + "\n")
    return 1 if wrong or any(one.kind not in FINE for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
