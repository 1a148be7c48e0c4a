"""A run's summary as an evaluation makes it: two methods over a few videos, some failed, some without a label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zar_ray.adaptation.base import Decision
from zar_ray.evaluation.metrics import case_metrics, costs, failure_groups, video_counts
from zar_ray.evaluation.results import ResultRow, to_table
from zar_ray.reporting.summary import MlflowState, RunSummary, Throughput


@pytest.fixture(scope="session")
def make_summary():
    """Makes a summary of `videos` videos; keyword arguments replace fields."""

    def make(videos: int = 60, classes: int = 8, failures: int = 4, unlabelled: int = 2, **fields) -> RunSummary:
        rng = np.random.default_rng(videos)
        rows = []
        for index in range(videos):
            label = None if failures <= index < failures + unlabelled else index % classes
            logits = rng.normal(size=(2, classes)).astype(np.float32)
            if label is not None:
                logits[:, label] += (1.5, 2.0)
            for method in ("zero_shot", "zar"):
                if index < failures:
                    error = f"the file ends in frame {index}"
                    rows.append(
                        ResultRow.failed(f"v{index}.mp4", method, method, error=error, stage="decode", label_id=label)
                    )
                    continue
                after = logits[1 if method == "zar" else 0]
                decision = Decision(torch.from_numpy(logits[0]), torch.from_numpy(after))
                rows.append(
                    ResultRow.from_decision(
                        f"v{index}.mp4",
                        method,
                        method,
                        decision,
                        label_id=label,
                        images_encoded=235,
                        frames_decoded=70,
                        bytes_shipped=12_000_000,
                    )
                )
        table = to_table(rows)
        counts = video_counts(table)
        values = {
            "name": "demo_zar_seed0",
            "dataset": "demo",
            "split": "test",
            "model": "demo-tiny",
            "model_fingerprint": "0123456789ab",
            "random_weights": False,
            "seed": 0,
            "classes": classes,
            "videos": counts.videos,
            "finished": counts.finished,
            "failed": counts.failed,
            "unlabelled": counts.unlabelled,
            "warned": counts.warned,
            "resumed": 0,
            "cases": tuple(case_metrics(table, one, one, classes, resamples=200) for one in ("zero_shot", "zar")),
            "failures": failure_groups(table),
            "costs": costs(table),
            "throughput": Throughput(videos, 12.5),
            "results": "/somewhere/runs/demo_zar_seed0/predictions.parquet",
            "run_file": "/somewhere/runs/demo_zar_seed0/run.json",
            "mlflow": MlflowState("sqlite:////somewhere/runs/mlflow.db", "zar-ray", "abc123"),
        }
        return RunSummary(**{**values, **fields})

    return make
