"""What the driver's own steps cost at the size of large data sets: made-up rows, no video, no model, no Ray.

    python bench/scale.py                              10,000 and 100,000 videos; a few minutes
    python bench/scale.py --videos 10000 1000000       other sizes

Each step runs in a process of its own, so that its peak of memory is its own. The last column is the power of the
number of videos that the seconds grow with, from the smallest to the largest: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from zar_ray.results import metrics
from zar_ray.results.case import Case
from zar_ray.results.folder import PARTS_AT_ONCE, Ledger, RunFolder, write_part
from zar_ray.results.rows import RESULT_SCHEMA
from zar_ray.storage import Storage

CASES = (Case("zar-00000000", "zar"), Case("zero_shot-00000000", "zero_shot"))
CLASSES = 400
VIEWS = 48
FEATURE = 512
BLOCK = 8


def made_up(first: int, videos: int) -> pa.Table:
    """Rows of some videos under all cases, as large as those of a run of ViT-B/16."""
    rng = np.random.default_rng(first)
    count = videos * len(CASES)

    def lists(width: int, values: np.ndarray, type_: pa.DataType) -> pa.Array:
        return pa.LargeListArray.from_arrays(
            pa.array(np.arange(count + 1) * width, pa.int64()), pa.array(values.ravel(), type_.value_type)
        )

    label = rng.integers(CLASSES, size=count)
    top5 = rng.integers(CLASSES, size=(count, 5))
    columns = {
        "video_id": np.repeat([f"class_{n % CLASSES}/{n:09}.mp4" for n in range(first, first + videos)], len(CASES)),
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
        "seconds_decode": rng.random(count),
        "seconds_encode": rng.random(count),
        "worker": ["10.0.0.1:12345"] * count,
        "recorded_at": rng.random(count),
    }
    for when in ("before", "after"):
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


def writing_parts(folder: RunFolder, videos: int) -> None:
    """What workers write, a block at a time, compacted as a run does."""
    for block, first in enumerate(range(0, videos, BLOCK), start=1):
        write_part(folder.storage, made_up(first, min(BLOCK, videos - first)))
        if block % PARTS_AT_ONCE == 0:
            folder.compact()


def looking_for_the_rest(folder: RunFolder, videos: int) -> None:
    """What a resume looks at: which cases of which videos have a row."""
    ledger = Ledger(folder)
    ledger.refresh()
    lacking = sum(bool(ledger.lacks(f"class_{n % CLASSES}/{n:09}.mp4", CASES)) for n in range(videos))
    assert not lacking


def collecting(folder: RunFolder, videos: int) -> None:
    """All rows, each once."""
    assert len(folder.results()) == videos * len(CASES)


def computing_metrics(folder: RunFolder, videos: int) -> None:
    """Counts, costs and each case's accuracies, from the table."""
    table = folder.results()
    assert metrics.video_counts(table)["videos"] == videos
    metrics.costs(table)
    for case in CASES:
        metrics.case_metrics(table, case.case_id, case.method, CLASSES)


def finishing(folder: RunFolder, videos: int) -> None:
    """The table in place of the parts."""
    folder.finish(folder.results(), {"videos": videos})
    assert not folder.storage.names("parts")


def training_videos(_: RunFolder, videos: int) -> None:
    """What a training makes of its manifest, sends to its processes, and takes of it in an epoch's first steps."""
    # PyTorch and Ray, which are in no other step's memory; their import is in this one's seconds.
    from zar_ray.data.manifest import MANIFEST_SCHEMA, Manifest
    from zar_ray.training.options import TrainConfig
    from zar_ray.training.samples import samples_of_step
    from zar_ray.training.videos import VideoTable, usable_videos

    ids = pc.call_function("binary_join_element_wise", [pa.array(np.arange(videos).astype(str)), ".mp4", "/"])
    sizes = {"frames": 300, "width": 340, "height": 256, "size": 10**6}
    columns = {
        **{"video_id": ids, "path": pc.call_function("binary_join_element_wise", ["/data", ids, "/"])},
        **{"label_id": np.arange(videos) % CLASSES, "class_name": [f"class {n % CLASSES}" for n in range(videos)]},
        **{"split": ["all"] * videos, **{name: np.full(videos, size) for name, size in sizes.items()}},
    }
    rest = {field.name: pa.nulls(videos, field.type) for field in MANIFEST_SCHEMA if field.name not in columns}
    manifest = Manifest(pa.table({**columns, **rest}), tuple(f"class {n}" for n in range(CLASSES)), "/data", "made up")
    usable = usable_videos(manifest)
    usable.fingerprint()
    sent = pickle.loads(pickle.dumps(VideoTable.of(usable), protocol=5))
    samples = [sample for step in range(40) for sample in samples_of_step(step, videos, TrainConfig())]
    assert [sent[sample.video].label_id for sample in samples] == [sample.video % CLASSES for sample in samples]


STEPS: dict[str, Callable[[RunFolder, int], None]] = {
    "writing and compacting parts": writing_parts,
    "looking for the rest": looking_for_the_rest,
    "collecting": collecting,
    "collecting, metrics": computing_metrics,
    "collecting, finishing": finishing,
    "a training's videos": training_videos,
}


def measured(step: str, place: str, videos: int) -> dict[str, float]:
    """Wall seconds and the peak of resident memory, in GB, of one step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--place", place, "--videos", str(videos)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    """Runs all steps at each size and prints the table; or, told so, one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        folder = RunFolder(Storage(options.place))
        started = time.perf_counter()
        STEPS[options.step](folder, *options.videos)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({"seconds": seconds, "memory": peak}))
        return
    sizes = sorted(options.videos)
    found: dict[str, list[dict[str, float]]] = {step: [] for step in STEPS}
    for videos in sizes:
        place = tempfile.mkdtemp(prefix="zar-scale-")
        try:
            for step in STEPS:
                found[step].append(measured(step, str(Path(place) / "run"), videos))
        finally:
            shutil.rmtree(place)
    table = Table("step", *(f"{videos:,} videos" for videos in sizes), "growth")
    for step, of_sizes in found.items():
        cells = [f"{one['seconds']:.1f} s, {one['memory']:.2f} GB" for one in of_sizes]
        grown = math.log(of_sizes[-1]["seconds"] / of_sizes[0]["seconds"]) / math.log(sizes[-1] / sizes[0])
        table.add_row(step, *cells, f"{grown:.2f}" if len(sizes) > 1 else "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
