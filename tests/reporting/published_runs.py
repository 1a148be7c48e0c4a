"""Finished runs of benchmarks, and what the published tables make of them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import pytest
from finished_runs import make_case, make_model_cost, make_record, make_summary_of, write_record
from rich.console import Console

from zar_ray.data.datasets import load_benchmark
from zar_ray.options.layers import validate
from zar_ray.reporting.blocks import Form
from zar_ray.reporting.published.matching import Measured
from zar_ray.reporting.published.tables import load_table
from zar_ray.reporting.published.view import Cell, compare, report_table
from zar_ray.results.record import Costs, ModelCost, PairedComparison, ProtocolAverage
from zar_ray.results.study_record import find_runs
from zar_ray.study.options import EvalConfig

OWN = make_model_cost()
TABLES = ("actionclip", "ezclip", "field", "zar-table1", "zar-table2", "zar-table3", "zar-table4", "zar-table5")


@pytest.fixture
def write_run(tmp_path):
    """Writes a finished run of a benchmark; `values` are the top-1 shares of its splits, or of the asked one."""
    count = 0

    def write(
        name: str,
        dataset: str,
        values: Sequence[float],
        method: str = "zar",
        *,
        before: float = 0.4,
        failed: int = 0,
        videos: int | None = None,
        random_weights: bool = False,
        model: str = "ViT-B-16-quickgelu",
        cost: ModelCost | None = OWN,
        change: PairedComparison | None = None,
        **options,
    ) -> None:
        nonlocal count
        count += 1
        benchmark = load_benchmark(dataset)
        defaults = {"dataset": dataset, "name": name, "method": (method,), **benchmark.options}
        config = validate(EvalConfig, {**defaults, **options}, name)
        specs = [spec for spec in benchmark.splits if config.split in (None, spec.name)]
        sizes = [videos or spec.count or 100 for spec in specs]
        cases = tuple(
            make_case(method, value, before=before, split=spec.name, videos=size, failed=failed, classes=51)
            for spec, value, size in zip(specs, values, sizes, strict=True)
        )
        averages = ()
        if len(specs) > 1:
            harmonic = "base2novel" in dataset
            value = 2 / sum(1 / one for one in values) if harmonic else sum(values) / len(values)
            kind, std = ("harmonic", None) if harmonic else ("mean", 0.005)
            splits = tuple(spec.name for spec in specs)
            averages = tuple(
                ProtocolAverage(method, metric, kind, number, std, splits, change if metric == "top1" else None)
                for metric, number in (("top1", value), ("top1_before", before), ("top5", value + 0.1))
            )
        folder = tmp_path / "runs" / name
        summary = make_summary_of(
            cases,
            folder,
            dataset=dataset,
            split=config.split,
            model=model,
            random_weights=random_weights,
            seed=config.seed,
            costs=Costs(None, None, 235.0, 70.0, None, None),
            averages=averages,
            model_cost=cost,
        )
        values = config.model_dump(mode="json")
        write_record(folder, make_record(summary, [values]), values)
        # Written within one tick of the clock, they would have no order.
        os.utime(folder / "run.json", (1_000_000 + count, 1_000_000 + count))

    return write


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "runs")


def cell(output: str, table: str, row: str, column: str) -> Cell:
    cells = compare(load_table(table), find_runs(output).runs)
    return next(one for one in cells if (one.row.label, one.column.name) == (row, column))


def measured(output: str, table: str, row: str, column: str) -> Measured:
    found = cell(output, table, row, column).measured
    assert found is not None
    return found


def differences(output: str, table: str, row: str, column: str) -> list[str]:
    return [
        text
        for text in measured(output, table, row, column).differences
        if not text.startswith("uses the right labels")
    ]


def reported(name: str, output: str, form: Form, width: int = 100, encoding: str = "utf-8") -> str:
    stream = io.BytesIO()
    text = io.TextIOWrapper(stream, encoding=encoding, newline="")
    report_table(name, output, form, Console(file=text, width=width), told_output=output)
    text.flush()
    return stream.getvalue().decode(encoding)
