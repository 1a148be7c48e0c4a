"""Summaries as an evaluation makes them: two methods over a few videos, some failed, some without a label."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from published_runs import output, write_run

from zar_ray.adaptation.base import Decision
from zar_ray.reporting import figures
from zar_ray.results.averages import protocol_averages
from zar_ray.results.metrics import case_metrics, costs, failure_groups, video_counts
from zar_ray.results.record import MlflowState, RunSummary, SplitSummary, Throughput
from zar_ray.results.rows import ResultRow, to_table

__all__ = ["output", "write_run"]


@pytest.fixture(autouse=True)
def short_layouts(request, monkeypatch):
    """Reports' maps are laid out in a quarter of the steps; but to their own tests it is no matter where videos lie."""
    if request.path.stem != "test_embedding_map":
        monkeypatch.setattr(figures, "TSNE", partial(figures.TSNE, max_iter=250))


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
        values = {
            "name": "demo_zar_seed0",
            "dataset": "demo",
            "split": "test",
            "model": "demo-tiny",
            "model_fingerprint": "0123456789ab",
            "random_weights": False,
            "seed": 0,
            "classes": classes,
            **video_counts(table),
            "resumed": 0,
            "cases": tuple(case_metrics(table, one, one, classes) for one in ("zero_shot", "zar")),
            "failures": failure_groups(table),
            "costs": costs(table),
            "throughput": Throughput(videos, 12.5),
            "results": "/somewhere/runs/demo_zar_seed0/predictions.parquet",
            "run_file": "/somewhere/runs/demo_zar_seed0/run.json",
            "mlflow": MlflowState("sqlite:////somewhere/runs/mlflow.db", "zar-ray", "abc123"),
        }
        return RunSummary(**{**values, **fields})

    return make


@pytest.fixture(scope="session")
def make_protocol(make_summary):
    """Makes a summary of several splits, each with a number of videos and classes of its own."""

    def make(names: tuple[str, ...] = ("1", "2", "3"), kind: str = "mean", failures: int = 4, **fields) -> RunSummary:
        parts = [make_summary(60 + 7 * i, 8 + i, failures=failures, unlabelled=0) for i in range(len(names))]
        cases = tuple(replace(case, split=name) for name, part in zip(names, parts, strict=True) for case in part.cases)
        splits = tuple(
            SplitSummary(name, part.classes, part.videos, (f"demo, split {name}: 3 classes have no video here",))
            for name, part in zip(names, parts, strict=True)
        )
        averages = protocol_averages(cases, kind)
        values = {"split": None, "cases": cases, "splits": splits, "averages": averages}
        return replace(parts[0], **{**values, **fields})

    return make


@pytest.fixture(scope="session")
def make_multi_label(make_summary):
    """Makes a summary of one multi-label split; keyword arguments replace fields."""

    def make(videos: int = 40, classes: int = 6, failures: int = 2, **fields) -> RunSummary:
        rng = np.random.default_rng(0)
        rows = []
        for index in range(videos):
            labels = tuple(np.flatnonzero(rng.random(classes) < 0.3).tolist())
            before, after = rng.normal(size=(2, classes)).astype(np.float32)
            for method in ("zero_shot", "zar"):
                name = f"v{index}.mp4"
                if index < failures:
                    rows.append(ResultRow.failed(name, method, method, error="cut", stage="open", labels=labels))
                    continue
                decision = Decision(*(torch.from_numpy(x) for x in (before, after if method == "zar" else before)))
                rows.append(ResultRow.from_decision(name, method, method, decision, labels=labels))
        table = to_table(rows)
        cases = tuple(
            case_metrics(table, one, one, classes, multi_label=True, split="test", resamples=50)
            for one in ("zero_shot", "zar")
        )
        values = {"cases": cases, "classes": classes, "splits": (SplitSummary("test", classes, videos),)}
        return replace(make_summary(), **{**values, **fields})

    return make
