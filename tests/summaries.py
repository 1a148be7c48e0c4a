"""Summaries of runs with given accuracies, for tests of what is made of several runs."""

from __future__ import annotations

from collections.abc import Mapping

from zar_ray.results.record import (
    Accuracy,
    CaseMetrics,
    Costs,
    Estimate,
    ProtocolAverage,
    RunSummary,
    Scores,
    SplitSummary,
    Throughput,
)


def summary_of(
    seed: int, top1: Mapping[tuple[str, str], float | None], averages: tuple[ProtocolAverage, ...] = ()
) -> RunSummary:
    """A run over 40 videos with these accuracies by (split, method); None for a split without labels."""

    def case(split: str, method: str, value: float | None) -> CaseMetrics:
        scores = None
        if value is not None:
            accuracy = Accuracy(*(Estimate(value, value - 0.05, value + 0.05) for _ in range(3)))
            scores = Scores(40, accuracy, accuracy, None)
        labelled = 40 if scores else 0
        return CaseMetrics(f"{method}-0", method, 40, 40, 0, labelled, 8, 0.125, scores, scores, 1.0, 1.0, 0.1, split)

    return RunSummary(
        name=f"seed{seed}",
        dataset="demo",
        split=None,
        model="tiny",
        model_fingerprint="0123",
        random_weights=False,
        seed=seed,
        classes=8,
        videos=40,
        finished=40,
        failed=0,
        unlabelled=0,
        warned=0,
        resumed=0,
        cases=tuple(case(split, method, value) for (split, method), value in top1.items()),
        failures=(),
        costs=Costs(None, None, None, None, None, None),
        throughput=Throughput(40, 1.0),
        results="predictions.parquet",
        run_file="run.json",
        splits=tuple(SplitSummary(split, 8, 40) for split in dict.fromkeys(split for split, _ in top1)),
        averages=averages,
    )
