"""The shipped benchmarks, and which of them are ready to run: what `zar data list` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from zar_ray.data.datasets import Benchmark, known_benchmarks, load_benchmark


@dataclass(frozen=True)
class BenchmarkStatus:
    """A benchmark, and whether its manifest is there.

    Attributes:
        benchmark: The benchmark.
        splits: Its splits, each with its number of classes and, where known, of videos.
        place: Where its manifest lies or would lie.
        rows: How many videos the manifest holds, training videos too; None where there is none.
        make: The command that makes the manifest.
    """

    benchmark: Benchmark
    splits: tuple[tuple[str, int, str], ...]
    place: str
    rows: int | None
    make: str


def benchmark_statuses(data_root: Path | None = None) -> tuple[BenchmarkStatus, ...]:
    """All shipped benchmarks, in alphabetical order.

    Args:
        data_root: Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets.

    Raises:
        ConfigError: A benchmark's file is wrong.
    """
    statuses = []
    for name in known_benchmarks():
        benchmark = load_benchmark(name)
        place = benchmark.manifest_path(data_root)
        splits = [
            (s.name, len(s.class_names()) or benchmark.classes or 0, _count(s.count, s.about)) for s in benchmark.splits
        ]
        if not splits:
            splits = [(benchmark.split or "all", benchmark.classes or 0, _count(benchmark.videos, False))]
        statuses.append(
            BenchmarkStatus(benchmark, tuple(splits), place, _rows(place), benchmark.make_command(data_root))
        )
    return tuple(statuses)


def _count(count: int | None, about: bool) -> str:
    return "?" if count is None else f"{'~' if about else ''}{count:,}"


def _rows(place: str) -> int | None:
    """How many rows a manifest has, from its footer alone."""
    if "://" in place or not Path(place).is_file():
        return None
    try:
        return pq.read_metadata(place).num_rows
    except (OSError, pa.ArrowException):
        return None
