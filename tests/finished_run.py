"""The folder of a finished run as an evaluation leaves it, without the evaluation."""

from __future__ import annotations

import json
from pathlib import Path

from zar_ray.results.record import (
    Accuracy,
    CaseMetrics,
    Change,
    Costs,
    Estimate,
    FailureGroup,
    RunSummary,
    Scores,
    Throughput,
)

CONFIG = {
    "dataset": "demo",
    "method": ["zero_shot", "zar"],
    "split": None,
    "zar": {"lr": 0.005, "betas": [0.9, 0.999]},
    "class_names": ",".join(f"class number {i}" for i in range(600)),
    "mlflow_uri": "http://me:secret@host:5000",
    # More parameters than MLflow takes at once, as a longer configuration would have.
    "many": {f"option{i}": i for i in range(130)},
}


def make_case(method: str, top1: float) -> CaseMetrics:
    before = Accuracy(*(Estimate(value, value - 0.1, value + 0.1) for value in (0.4, 0.7, 0.35)))
    after = Accuracy(Estimate(top1, top1 - 0.1, top1 + 0.1), before.top5, before.mean_class)
    change = Change(Estimate(top1 - 0.4, -0.02, 0.2), 9, 4, 0.267) if method == "zar" else None
    scores = Scores(50, before, after, change)
    return CaseMetrics(f"{method}-0a1b2c", method, 52, 51, 1, 50, 8, 0.125, scores, scores, 1.5, 1.1, 0.2)


def make_run(folder: Path, top1: float = 0.5, seconds: float = 60.0) -> Path:
    """A run's folder as an evaluation leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = RunSummary(
        name=folder.name,
        dataset="demo",
        split="test",
        model="demo-tiny",
        model_fingerprint="0123456789ab",
        random_weights=False,
        seed=0,
        classes=8,
        videos=52,
        finished=51,
        failed=1,
        unlabelled=2,
        warned=0,
        resumed=0,
        cases=(make_case("zero_shot", 0.4), make_case("zar", top1)),
        failures=(FailureGroup("open", 1, (("a.mp4", "moov atom not found"),)),),
        costs=Costs(1.2e7, 13_000_000, 235.0, 70.0, 0.1, None),
        throughput=Throughput(52, seconds),
        results=f"{folder}/predictions.parquet",
        run_file=f"{folder}/run.json",
    )
    record = {"summary": summary.to_json(), "config": CONFIG, "provenance": {"git": "f00d+changes"}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text("dataset: demo\n")
    (folder / "identity.json").write_text(json.dumps({"manifest": {"videos": 52, "fingerprint": "0a1b2c3d4e5f"}}))
    (folder / "zar_per_class.csv").write_text("label_id\n0\n")
    (folder / "zar_confusion.png").write_bytes(b"\x89PNG")
    return folder
