"""Benchmarks and manifests in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.overview import BenchmarkStatus
from zar_ray.reporting.numbers import counted


def print_benchmarks(statuses: Sequence[BenchmarkStatus], console: Console) -> None:
    """Prints the benchmarks, a line a split, and how to make the manifests that are missing."""
    table = Table("benchmark", "", "split", "classes", "videos", "manifest", box=None, pad_edge=False)
    for column in (3, 4):
        table.columns[column].justify = "right"
    for status in statuses:
        known = "-" if status.rows is None else f"{counted(status.rows, 'video')}"
        for number, (split, classes, videos) in enumerate(status.splits):
            first = (status.benchmark.name, status.benchmark.title, known) if number == 0 else ("", "", "")
            table.add_row(Text(first[0], style="bold"), Text(first[1]), split, str(classes), videos, first[2])
    console.print(table)
    missing = {status.make: None for status in statuses if status.rows is None}
    if missing:
        console.print("\nA manifest is made with")
        for command in missing:
            console.print(Text(f"  {command}"), soft_wrap=True)


def print_manifest(manifest: Manifest, console: Console, rows: int = 10) -> None:
    """Prints what a manifest holds: counts by split, how it was read, and its first rows and broken files."""
    videos = list(manifest.rows())
    console.print(
        Text(f"{manifest.name}: {counted(len(videos), 'video')}, {len(manifest.class_names)} classes", style="bold"),
        soft_wrap=True,
    )
    console.print(Text(f"root {manifest.root}"), soft_wrap=True)
    counts = Table("split", "videos", "labelled", "classes", "broken", "hours", box=None, pad_edge=False)
    for split in manifest.splits:
        of_split = [row for row in videos if split in row.memberships]
        counts.add_row(
            Text(split),
            str(len(of_split)),
            str(sum(bool(_labels(row)) for row in of_split)),
            str(len({label for row in of_split for label in _labels(row)})),
            str(sum(row.error is not None for row in of_split)),
            f"{sum(row.duration or 0.0 for row in of_split) / 3600:.2f}",
        )
    console.print(counts)
    decoders = Counter(row.decoder for row in videos if row.decoder)
    if decoders:
        console.print(Text("read by " + ", ".join(f"{name} ({count})" for name, count in decoders.most_common())))
    if not rows or not videos:
        return
    console.print()
    shown = Table("video", "class", "frames", "size", "fps", box=None, pad_edge=False)
    shown.columns[0].overflow = shown.columns[1].overflow = "fold"
    for row in videos[:rows]:
        shown.add_row(
            Text(row.video_id),
            Text(", ".join(_labels(row)) or "-"),
            "-" if row.frames is None else str(row.frames),
            "-" if row.width is None else f"{row.width}x{row.height}",
            "-" if row.fps is None else f"{row.fps:.4g}",
        )
    console.print(shown)
    if len(videos) > rows:
        console.print(Text(f"... and {len(videos) - rows} more"))
    broken = [row for row in videos if row.error is not None]
    for row in broken[:rows]:
        console.print(Text(f"broken: {row.video_id}: {row.error}", style="red"), soft_wrap=True)
    if len(broken) > rows:
        console.print(Text(f"... and {len(broken) - rows} more broken ones", style="red"))


def _labels(row: VideoRow) -> tuple[str, ...]:
    """A video's class names: one, several or none."""
    if row.labels is not None:
        return row.labels
    return (row.class_name,) if row.class_name is not None else ()
