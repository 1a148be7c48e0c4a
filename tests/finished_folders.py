"""Folders of finished runs as an evaluation leaves them, from decisions that are drawn rather than computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from zar_ray.adaptation.base import Decision
from zar_ray.data.manifest import Manifest, VideoRow, write_manifest
from zar_ray.results.metrics import (
    case_metrics,
    costs,
    failure_groups,
    multi_label_case_metrics,
    video_counts,
)
from zar_ray.results.record import RunSummary, SplitSummary, Throughput
from zar_ray.results.rows import ResultRow, to_table
from zar_ray.study.options import EvalConfig

CLASSES = ("archery", "bowling", "cartwheel <b>&", "diving")


def write_finished_run(
    folder: Path,
    *,
    videos: int = 24,
    classes: Sequence[str] = CLASSES,
    methods: Sequence[str] = ("zero_shot", "zar"),
    labelled: bool = True,
    failures: int = 2,
    multi_label: bool = False,
    random_weights: bool = False,
    features: bool = True,
    draw: int = 0,
    root: Path | None = None,
    **options,
) -> Path:
    """Writes a run of `videos` videos, whose ids are ``v00.mp4`` and so on.

    Args:
        folder: Where; it is made.
        videos: How many.
        classes: Candidate classes.
        methods: Methods; all but ``zero_shot`` change the scores.
        labelled: Whether the videos have labels.
        failures: So many of the first videos failed.
        multi_label: Whether they show several classes.
        random_weights: Whether the model is untrained.
        features: Whether the run keeps the videos' features.
        draw: Seed of the decisions after adaptation; those before are the same in all runs.
        root: Folder of the video files, which need not be there.
        options: Options of the run.
    """
    names, count = tuple(classes), len(classes)
    before_rng, after_rng = np.random.default_rng(7), np.random.default_rng(100 + draw)
    root = root or folder / "nowhere"
    rows, manifest_rows = [], []
    for number in range(videos):
        video_id, label = f"v{number:02}.mp4", number % count
        several = tuple(sorted({label, (label + 1) % count}))
        right = {} if not labelled else {"labels": several} if multi_label else {"label_id": label}
        before = before_rng.normal(size=count).astype(np.float32)
        after = (before + after_rng.normal(size=count)).astype(np.float32)
        after[label] += 1.0
        feature = before_rng.normal(size=8)
        for place, method in enumerate(methods):
            facts = {**right, "frames": 12, "seconds_decode": 0.01}
            if number < failures:
                error = {"error": f"the file ends in frame {number}", "stage": "decode" if number else "open"}
                rows.append(ResultRow.failed(video_id, method, method, **error, **facts))
                continue
            decision = Decision(torch.from_numpy(before), torch.from_numpy(before if method == "zero_shot" else after))
            kept = tuple((feature / np.linalg.norm(feature)).tolist()) if features and not place else None
            measured = {"seconds_encode": 0.02, "seconds_adapt": 0.003, "images_encoded": 235, "bytes_shipped": 9000}
            rows.append(
                ResultRow.from_decision(
                    video_id, method, method, decision, **facts, **measured, frames_decoded=9, video_feature=kept
                )
            )
        shown = {"labels": tuple(names[one] for one in several)} if multi_label else {}
        single = {"label_id": label, "class_name": names[label]} if labelled and not multi_label else {}
        manifest_rows.append(
            VideoRow(
                video_id, str(root / video_id), frames=12, width=64, height=48, **single, **(shown if labelled else {})
            )
        )
    table = to_table([replace(row, recorded_at=1.0e9 + index / 10) for index, row in enumerate(rows)])
    measure = multi_label_case_metrics if multi_label else case_metrics
    counts = video_counts(table)
    config = EvalConfig.model_validate(
        {"dataset": "somewhere", "name": folder.name, "method": tuple(methods), "mlflow": False, **options}
    )
    summary = RunSummary(
        name=folder.name,
        dataset="somewhere",
        split=None,
        model="tiny",
        model_fingerprint="0123456789ab",
        random_weights=random_weights,
        seed=config.seed,
        classes=count,
        videos=counts.videos,
        finished=counts.finished,
        failed=counts.failed,
        unlabelled=counts.unlabelled,
        warned=counts.warned,
        resumed=0,
        cases=tuple(measure(table, one, one, count, resamples=100) for one in methods),
        failures=failure_groups(table),
        costs=costs(table),
        throughput=Throughput(videos, 12.0),
        results=f"{folder}/predictions.parquet",
        run_file=f"{folder}/run.json",
        splits=(SplitSummary("all", count, videos),),
    )
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "predictions.parquet")
    write_manifest(Manifest.of(manifest_rows, names, root, "somewhere"), str(folder / "manifest.parquet"))
    record = {
        "summary": summary.to_json(),
        "config": config.model_dump(mode="json"),
        "provenance": {"git": "f00d", "packages": {"torch": "2"}},
    }
    (folder / "run.json").write_text(json.dumps(record))
    identity = {"splits": {"all": {"classes": list(names), "videos": "abc"}}}
    (folder / "identity.json").write_text(json.dumps(identity))
    return folder
