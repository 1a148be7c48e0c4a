"""A finished run of so many videos that they are made up as columns, not decided one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from finished_runs import write_finished_run

from zar_ray.data.manifest import MANIFEST_SCHEMA, Manifest, write_manifest
from zar_ray.results.folder import MANIFEST, PREDICTIONS
from zar_ray.results.rows import RESULT_SCHEMA


def write_many_videos(
    folder: Path,
    videos: int,
    classes: Sequence[str],
    *,
    root: Path,
    failed_every: int = 700,
    warned_every: int = 500,
    seed: int = 0,
) -> Path:
    """Writes a run of method ``zar`` whose videos are ``c012/video 00345.webm`` and so on.

    Three videos of four are right before, a few are turned by the adaptation; each `failed_every`-th from the first
    failed, and each `warned_every`-th from the second has a warning.  Scores are drawn from `seed`.
    """
    write_finished_run(folder, videos=8, classes=classes, methods=("zar",), failures=0, features=False)
    rng, count = np.random.default_rng(seed), len(classes)
    place = np.arange(videos)
    label = place * count // videos
    # A class that is missed is often taken for the next.
    other = np.where(rng.random(videos) < 0.5, (label + 1) % count, rng.integers(0, count, videos))
    before = np.where(rng.random(videos) < 0.75, label, other)
    turned = rng.random(videos) < 0.05
    after = np.where(turned, np.where(before == label, other, label), before)
    failed = place % failed_every == 0
    ids = [f"c{one:03}/video {number:05}.webm" for one, number in zip(label.tolist(), place.tolist(), strict=True)]
    best = {when: np.column_stack([one, (one + 1) % count]) for when, one in (("before", before), ("after", after))}
    scores = {when: np.sort(rng.dirichlet([1, 1], videos))[:, ::-1] for when in best}

    def decided(values: np.ndarray) -> pa.Array:
        return pa.array([None if bad else one for one, bad in zip(values.tolist(), failed, strict=True)])

    columns = {
        "video_id": pa.array(ids),
        "case_id": pa.array(["zar"] * videos),
        "method": pa.array(["zar"] * videos),
        "label_id": pa.array(label),
        "warning": pa.array([f"frame {n} repeats" if n % warned_every == 1 else None for n in range(videos)]),
        "error": pa.array([f"frame {n} is cut" if bad else None for n, bad in enumerate(failed)], pa.string()),
        "error_stage": pa.array(["decode" if bad else None for bad in failed], pa.string()),
    }
    for when, one in (("before", before), ("after", after)):
        columns |= {
            f"top5_{when}": decided(best[when]),
            f"top5_scores_{when}": decided(scores[when]),
            f"entropy_{when}": decided(rng.random(videos) * 3),
            f"correct_{when}": decided(one == label),
            f"correct5_{when}": decided((best[when] == label[:, None]).any(axis=1)),
        }
    _write(RESULT_SCHEMA, columns, videos, folder / PREDICTIONS)
    held = {
        "video_id": pa.array(ids),
        "path": pa.array([str(root / one) for one in ids]),
        "label_id": pa.array(label),
        "class_name": pa.array([classes[one] for one in label]),
        "split": pa.array(["all"] * videos),
        **{name: pa.array(np.full(videos, size)) for name, size in (("frames", 12), ("width", 64), ("height", 48))},
    }
    write_manifest(
        Manifest(_table(MANIFEST_SCHEMA, held, videos), tuple(classes), str(root), "somewhere"), str(folder / MANIFEST)
    )
    return folder


def _table(schema: pa.Schema, columns: dict[str, pa.Array], rows: int) -> pa.Table:
    filled = [columns[one.name].cast(one.type) if one.name in columns else pa.nulls(rows, one.type) for one in schema]
    return pa.table(filled, schema=schema)


def _write(schema: pa.Schema, columns: dict[str, pa.Array], rows: int, file: Path) -> None:
    filled = _table(schema, columns, rows)
    moment = schema.get_field_index("recorded_at")
    pq.write_table(filled.set_column(moment, schema.field(moment), pa.array(np.arange(rows) / 10)), file)
