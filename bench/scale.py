"""What the driver's own steps cost at the size of large data sets: made-up rows, no video, no model, no worker.

    python bench/scale.py                              10,000 and 100,000 videos; a few minutes
    python bench/scale.py --videos 10000 1000000       other sizes
    python bench/scale.py --latency 0.03               the run's folder behind requests of 30 ms, which are counted

Each step runs in a process of its own, so that its peak of memory is its own; that of none is what is loaded before
any. Seconds are of the wall and of the CPUs. The last column is the power of the number of videos that the CPU seconds
beyond those of nothing grow with, from the smallest to the largest: 1 is linear. Aims are for a million videos.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from slow_storage import SlowStorage

from zar_ray.adaptation.options import Setting
from zar_ray.data.class_texts import prompts_of
from zar_ray.data.manifest import MANIFEST_SCHEMA, Manifest, write_manifest
from zar_ray.evaluation.blocks import block_size
from zar_ray.evaluation.pipeline import Evaluated
from zar_ray.evaluation.planning import PlannedModel, identity
from zar_ray.evaluation.recovery import lacking
from zar_ray.options.base import meaning
from zar_ray.provenance import provenance
from zar_ray.reporting.comparison import compare_runs
from zar_ray.reporting.comparison_views import write_comparison
from zar_ray.reporting.html_report import write_report
from zar_ray.reporting.study_tables import print_study, study_markdown
from zar_ray.results.case import Case
from zar_ray.results.folder import MANIFEST, PARTS, PARTS_AT_ONCE, SUMMARY, Ledger, RunFolder, write_part
from zar_ray.results.metrics import check_counts
from zar_ray.results.rows import KEYS, RESULT_SCHEMA
from zar_ray.results.stored_rows import StoredRows
from zar_ray.storage import Storage
from zar_ray.study.collect import collect, write_class_files
from zar_ray.study.options import EvalConfig
from zar_ray.study.plan import Study, describe, plan_study
from zar_ray.tracking import log_run_folder
from zar_ray.video.transforms import Preprocessing

CASES = (Case("zar-00000000", "zar"), Case("zero_shot-00000000", "zero_shot"))
CLASSES = 400
VIEWS = 48
FEATURE = 512
BATCH = 8
WORKERS = 100
MILLION = 1_000_000


def names_of(first: int, videos: int) -> list[str]:
    """Ids of made-up videos."""
    return [f"class_{n % CLASSES:03}/{n:09}.mp4" for n in range(first, first + videos)]


def made_up(first: int, videos: int) -> pa.Table:
    """Rows of some videos under all cases, as large as those of a run of ViT-B/16."""
    rng = np.random.default_rng(first)
    count = videos * len(CASES)

    def lists(width: int, values: np.ndarray, type_: pa.DataType) -> pa.Array:
        return pa.LargeListArray.from_arrays(
            pa.array(np.arange(count + 1) * width, pa.int64()), pa.array(values.ravel(), type_.value_type)
        )

    label = np.repeat(np.arange(first, first + videos) % CLASSES, len(CASES))
    top5 = (label[:, None] + rng.integers(3, size=(count, 1)) + np.arange(5)) % CLASSES
    columns = {
        "video_id": np.repeat(names_of(first, videos), len(CASES)),
        "case_id": [case.case_id for case in CASES] * videos,
        "method": [case.method for case in CASES] * videos,
        "model": ["ViT-B-16"] * count,
        "label_id": label,
        "label": [f"class {one}" for one in label],
        "correct_before": top5[:, 0] == label,
        "correct_after": top5[:, 0] == label,
        "correct5_before": (top5 == label[:, None]).any(axis=1),
        "correct5_after": (top5 == label[:, None]).any(axis=1),
        "views": [VIEWS] * count,
        "entropy_before": rng.random(count),
        "entropy_after": rng.random(count),
        "seconds_adapt": rng.random(count),
        "seconds_case": rng.random(count),
        "seconds_decode": rng.random(count),
        "seconds_encode": rng.random(count),
        "worker": ["10.0.0.1:12345"] * count,
        "recorded_at": rng.random(count),
    }
    for when in ("before", "after"):
        columns |= {f"{name}_{when}": rng.random(count) for name in ("nll", "brier", "energy")}
        columns[f"top5_{when}"] = lists(5, top5, RESULT_SCHEMA.field(f"top5_{when}").type)
        name = f"top5_scores_{when}"
        columns[name] = lists(5, rng.random((count, 5), np.float32), RESULT_SCHEMA.field(name).type)
    feature = rng.standard_normal((count, FEATURE), np.float32).astype(np.float16)
    columns["video_feature"] = lists(FEATURE, feature, RESULT_SCHEMA.field("video_feature").type)
    entropies = rng.random((count, VIEWS), np.float32)
    columns["view_entropies"] = lists(VIEWS, entropies, RESULT_SCHEMA.field("view_entropies").type)
    table = pa.table(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
            for field in RESULT_SCHEMA
        ],
        schema=RESULT_SCHEMA,
    )
    # A feature stands in the row of the first case alone.
    index = RESULT_SCHEMA.get_field_index("video_feature")
    second = pa.array(np.arange(count) % len(CASES) > 0)
    nothing = pa.scalar(None, table.schema.field(index).type)
    column = pc.call_function("if_else", [second, nothing, table.column(index)])
    return table.set_column(index, RESULT_SCHEMA.field(index), column)


def write_inputs(place: Path, videos: int) -> None:
    """The manifest of a data set."""
    label = np.arange(videos) % CLASSES
    classes = tuple(f"class {one}" for one in range(CLASSES))
    sizes = {"frames": 250, "width": 340, "height": 256, "size": 10**6, "fps": 25.0, "duration": 10.0}
    columns: dict[str, Any] = {
        "video_id": names_of(0, videos),
        "path": [f"/videos/{name}" for name in names_of(0, videos)],
        "label_id": label,
        "class_name": [classes[one] for one in label],
        **{name: [value] * videos for name, value in {**sizes, "split": "all", "decoder": "pyav"}.items()},
    }
    unknown = [None] * videos
    table = pa.table(
        [pa.array(columns.get(one.name, unknown), one.type) for one in MANIFEST_SCHEMA], schema=MANIFEST_SCHEMA
    )
    write_manifest(Manifest(table, classes, "/videos", "made-up"), place / "manifest.parquet")


def planned(place: Path) -> tuple[Study, PlannedModel]:
    """A study of the data set as `zar eval` plans it, and a model as if it had been loaded."""
    told: dict[str, Any] = {"dataset": str(place / "manifest.parquet"), "output": str(place), "name": "run"}
    options = EvalConfig(**told, method=("zar", "zero_shot"))
    study = plan_study(options, Console(file=io.StringIO()))
    describe(study)
    own = study.asked()[0].settings[0]
    setting = Setting(own, prompts_of(study.workload.class_sets, own))
    return study, PlannedModel("tiny", "tiny", "0", Preprocessing(224), False, (), (), (setting,), (CASES,))


def nothing(place: Path, folder: RunFolder) -> None:
    """What is loaded before any step."""


def starting(place: Path, folder: RunFolder) -> None:
    """From the command to the first block, but for Ray, the model and the blocks themselves."""
    study, model = planned(place)
    folder.open(identity(study.workload, [model]), resume=False, overwrite=True)
    write_manifest(study.workload.manifest, folder.storage.path(MANIFEST))
    assert len(lacking(study.workload.table(), job(), Ledger(folder))) == len(study.workload.manifest)


def job() -> Any:
    """What `lacking` must know of a run."""
    return SimpleNamespace(models=(None,), cases=CASES)


def running(place: Path, folder: RunFolder) -> tuple[float, float]:
    """What workers write, a block at a time, put together as a run does; the seconds are of that alone.

    Blocks are as large as such a run's where their frames fit into memory.
    """
    videos, most = len(planned(place)[0].workload.manifest), 0
    size = block_size(BATCH, videos, WORKERS, math.inf, gpus=True)
    wall = cpu = 0.0
    local = Storage(folder.storage.location)
    for block, first in enumerate(range(0, videos, size), start=1):
        write_part(local, made_up(first, min(size, videos - first)))
        if block % PARTS_AT_ONCE == 0:
            most = max(most, len(local.names(PARTS)))
            began, used = time.perf_counter(), time.process_time()
            folder.compact()
            wall, cpu = wall + time.perf_counter() - began, cpu + time.process_time() - used
    print(f"{max(most, len(local.names(PARTS))):,} files of rows at most, blocks of {size}", file=sys.stderr)
    return wall, cpu


def resuming(place: Path, folder: RunFolder) -> None:
    """The same start when all rows are there."""
    study, model = planned(place)
    folder.open(identity(study.workload, [model]), resume=True, overwrite=False)
    assert not len(lacking(study.workload.table(), job(), Ledger(folder)))


def gathering(place: Path, folder: RunFolder) -> None:
    """All rows into one file, sorted."""
    folder.gather()


def collecting(place: Path, folder: RunFolder) -> None:
    """From the gathered rows to the printed table: counts, metrics, files by class, the record."""
    study, model = planned(place)
    rows = folder.gather()
    check_counts(study.workload.expected_rows(CASES), rows.read(KEYS))
    evaluated = Evaluated(rows, (model,), 0, len(study.workload.manifest), 1.0)
    record = collect(study, evaluated)
    write_class_files(study, evaluated, folder)
    about = {"config": study.options.model_dump(mode="json"), "provenance": provenance()}
    folder.write_json(SUMMARY, {"study": record.to_json(), **about})
    print_study(record, Console(file=io.StringIO()))


def logging(place: Path, folder: RunFolder) -> None:
    """The run in MLflow."""
    log_run_folder(folder.storage.location, f"sqlite:///{place}/mlflow.db", describe=study_markdown)


def reporting(place: Path, folder: RunFolder) -> None:
    """The report as HTML."""
    _, files = write_report(folder.storage.location, attention=False)
    for name, page in files.items():
        print(f"{name}: {len(page) / 1e6:.2f} MB", file=sys.stderr)


def comparing(place: Path, folder: RunFolder) -> None:
    """The run held against another of the same videos, as HTML."""
    other = place / "other"
    other.symlink_to(folder.storage.location)
    compared = compare_runs([folder.storage.location, str(other)], meaning(EvalConfig()).keys())
    written = Path(write_comparison(compared, str(place / "compare.html")))
    print(f"{written.stat().st_size / 1e6:.2f} MB", file=sys.stderr)


def sampling(place: Path, folder: RunFolder) -> None:
    """A heavy column of all rows, a piece at a time."""
    stored = StoredRows(folder.storage)
    videos = sum(len(one) for one in stored.pieces(["video_feature"], pc.field("video_feature").is_valid()))
    assert videos == len(planned(place)[0].workload.manifest)


def training_videos(place: Path, _: RunFolder) -> None:
    """What a training makes of its manifest, sends to its processes, and takes of it in an epoch's first steps."""
    # PyTorch and Ray, which are in no other step's memory; their import is in this one's seconds.
    from zar_ray.data.manifest import read_manifest
    from zar_ray.training.options import TrainConfig
    from zar_ray.training.samples import samples_of_step
    from zar_ray.training.videos import VideoTable, usable_videos

    manifest = read_manifest(place / "manifest.parquet")
    videos = len(manifest)
    usable = usable_videos(manifest)
    usable.fingerprint()
    sent = pickle.loads(pickle.dumps(VideoTable.of(usable), protocol=5))
    samples = [sample for step in range(40) for sample in samples_of_step(step, videos, TrainConfig())]
    assert [sent[sample.video].label_id for sample in samples] == [sample.video % CLASSES for sample in samples]


STEPS: dict[str, Callable[[Path, RunFolder], tuple[float, float] | None]] = {
    "nothing": nothing,
    "start": starting,
    "putting parts together": running,
    "resume, looking": resuming,
    "gathering": gathering,
    "collecting, table": collecting,
    "MLflow": logging,
    "report": reporting,
    "comparison": comparing,
    "features, all": sampling,
    "a training's videos": training_videos,
}

# Of a million videos: which steps, what of them together, and how much of it.
AIMS: tuple[tuple[str, tuple[str, ...], str, float], ...] = (
    ("start to first block, our part", ("start",), "seconds", 60),
    ("end of last block to printed table", ("gathering", "collecting, table"), "seconds", 180),
    ("a resume's look", ("resume, looking",), "seconds", 60),
    ("peak memory of any step", tuple(STEPS), "memory", 2),
)


def measured(step: str, place: Path, videos: int, latency: float) -> dict[str, Any]:
    """Seconds, CPU seconds, the peak of resident memory in GB, requests, and what it says, of a step by itself."""
    told = {"--step": step, "--place": place, "--videos": videos, "--latency": latency}
    command = [sys.executable, __file__, *(str(word) for pair in told.items() for word in pair)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{step}: {done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "said": done.stderr.strip().splitlines()[-1:]}


def peak_bytes() -> int:
    """The most memory that this process has held, of which the kernel's `ru_maxrss` would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def run_step(step: str, place: Path, latency: float) -> None:
    """Runs one step and prints what it took."""
    location = str(place / "run")
    storage = SlowStorage(location, latency) if latency else Storage(location)
    wall, cpu = time.perf_counter(), time.process_time()
    own = STEPS[step](place, RunFolder(storage))
    wall, cpu = (time.perf_counter() - wall, time.process_time() - cpu) if own is None else own
    peak = peak_bytes() / 1e9
    requests = storage.requests if isinstance(storage, SlowStorage) else 0
    print(json.dumps({"seconds": wall, "cpu": cpu, "memory": peak, "requests": requests}))


def main() -> None:
    """Runs all steps at each size and prints the table and the aims; or, told so, one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--latency", type=float, default=0.0, help="seconds a request to the run's folder takes")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        run_step(options.step, options.place, options.latency)
        return
    sizes = sorted(options.videos)
    found: dict[str, list[dict[str, Any]]] = {step: [] for step in STEPS}
    for videos in sizes:
        place = Path(tempfile.mkdtemp(prefix="zar-scale-"))
        try:
            write_inputs(place, videos)
            for step in STEPS:
                found[step].append(measured(step, place, videos, options.latency))
                print(f"{videos:,}: {step}: {found[step][-1]}", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(place)
    table = Table("step", *(f"{videos:,} videos" for videos in sizes), "growth")
    for step, of_sizes in found.items():
        cells = []
        for one in of_sizes:
            cell = f"{one['seconds']:.1f} s ({one['cpu']:.1f} CPU), {one['memory']:.2f} GB"
            cell += f", {one['requests']:,} requests" if options.latency else ""
            cells.append("; ".join([cell, *one["said"]]))
        table.add_row(step, *cells, growth(of_sizes, sizes))
    console = Console(width=170)
    console.print(table)
    for about, steps, what, most in AIMS:
        of_steps = [found[step][-1][what] for step in steps]
        value = max(of_steps) if what == "memory" else sum(of_steps)
        factor = 1 if what == "memory" else MILLION / sizes[-1]
        how = "" if sizes[-1] == MILLION else f" (from {sizes[-1]:,} videos)"
        verdict = "met" if value * factor <= most else "not met"
        unit = "GB" if what == "memory" else "s"
        console.print(f"{about}: {value * factor:.1f} {unit}{how}, aim {most} {unit}: {verdict}", highlight=False)


def growth(of_sizes: list[dict[str, Any]], sizes: list[int]) -> str:
    """The power of the number of videos that a step's CPU seconds grow with."""
    first, last = of_sizes[0]["cpu"], of_sizes[-1]["cpu"]
    known = len(sizes) > 1 and min(first, last) > 0.05
    return f"{math.log(last / first) / math.log(sizes[-1] / sizes[0]):.2f}" if known else ""


if __name__ == "__main__":
    main()
