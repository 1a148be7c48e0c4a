"""Benchmarks and manifests in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from zar_ray.data.manifest import Manifest, VideoRow, count_rows
from zar_ray.data.protocols import Benchmark, SplitSpec
from zar_ray.reporting.blocks import Block, print_block
from zar_ray.reporting.numbers import counted, digits


def print_benchmarks(benchmarks: Sequence[Benchmark], console: Console, data_root: Path | None = None) -> None:
    """Prints benchmarks, a line a split, and how to make the manifests that are missing.

    A manifest is NAME/manifest.parquet in `data_root`, by default in ZAR_HOME/datasets.
    """
    rows = []
    missing: dict[str, None] = {}
    for benchmark in benchmarks:
        there = count_rows(benchmark.manifest_path(data_root))
        if there is None:
            missing[benchmark.make_command(data_root)] = None
        made = "-" if there is None else counted(there, "video")
        whole = SplitSpec(name=benchmark.split or "all", count=benchmark.videos)
        for number, split in enumerate(benchmark.splits or (whole,)):
            name, title, held = ("", "", "") if number else (benchmark.name, benchmark.title, made)
            classes = len(split.class_names()) or benchmark.classes or 0
            videos = "?" if split.count is None else f"{'~' if split.about else ''}{split.count:,}"
            rows.append((name, title, split.name, str(classes), videos, held))
    columns = ("benchmark", "", "split", "classes", "videos", "manifest")
    print_block(Block(None, columns, rows, words=3, words_behind=1), console)
    if missing:
        console.print("\nA manifest is made with")
        for command in missing:
            console.print(Text(f"  {command}"), soft_wrap=True)


def print_manifest(manifest: Manifest, console: Console, rows: int = 10) -> None:
    """Prints what a manifest holds: counts by split, how it was read, and its first rows and broken files."""
    videos = list(manifest.rows())
    title = f"{manifest.name}: {counted(len(videos), 'video')}, {len(manifest.class_names)} classes"
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(Text(f"root {manifest.root}"), soft_wrap=True)
    decoders = Counter(row.decoder for row in videos if row.decoder).most_common()
    read_by = [f"read by {', '.join(f'{name} ({count})' for name, count in decoders)}"] if decoders else []
    columns = ("split", "videos", "labelled", "classes", "broken", "hours")
    of_splits = [_split_row(split, videos) for split in manifest.splits]
    print_block(Block(None, columns, of_splits, read_by, words=1), console)
    if not rows or not videos:
        return
    console.print()
    more = [f"... and {len(videos) - rows} more"] if len(videos) > rows else []
    first = [_video_row(row) for row in videos[:rows]]
    print_block(Block(None, ("video", "class", "frames", "size", "fps"), first, more, words=2), console)
    broken = [row for row in videos if row.error is not None]
    for row in broken[:rows]:
        console.print(Text(f"broken: {row.video_id}: {row.error}", style="red"), soft_wrap=True)
    if len(broken) > rows:
        console.print(Text(f"... and {len(broken) - rows} more broken ones", style="red"))


def _split_row(split: str, videos: Sequence[VideoRow]) -> tuple[str, ...]:
    of_split = [row for row in videos if split in row.memberships]
    counts = (
        len(of_split),
        sum(bool(row.label_names) for row in of_split),
        len({label for row in of_split for label in row.label_names}),
        sum(row.error is not None for row in of_split),
    )
    return (split, *map(str, counts), f"{sum(row.duration or 0.0 for row in of_split) / 3600:.2f}")


def _video_row(row: VideoRow) -> tuple[str, ...]:
    return (
        row.video_id,
        ", ".join(row.label_names) or "-",
        "-" if row.frames is None else str(row.frames),
        "-" if row.width is None else f"{row.width}x{row.height}",
        "-" if row.fps is None else digits(row.fps, 4),
    )
