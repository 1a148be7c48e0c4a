"""The commands `zar data VERB`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from zar_ray.commands.common import command, verb
from zar_ray.commands.parsing import parse
from zar_ray.data.options import AuditConfig, IndexConfig, ShotsConfig


@command
def data_index_command(argv: Sequence[str]) -> int:
    """Find a benchmark's, a folder's or a list's videos, probe them and write the manifest."""
    about = "Probes every file in parallel and writes one Parquet row a video; bad files stay in with their error."
    options = parse(IndexConfig, argv, "zar data index", description=about)
    from zar_ray.data.index import run_index

    run_index(options, Console(highlight=False, soft_wrap=True))
    return 0


@verb("zar data show")
def data_show_command(manifest: Annotated[str, tyro.conf.Positional], rows: int = 10) -> int:
    """Shows a manifest's counts by split and its first rows.

    Args:
        manifest: The manifest's file.
        rows: Rows to show.
    """
    from zar_ray.data.manifest import read_manifest
    from zar_ray.reporting.manifest_tables import print_manifest

    print_manifest(read_manifest(manifest), Console(highlight=False), rows)
    return 0


@verb("zar data list")
def data_list_command(data_root: Path | None = None) -> int:
    """Lists every benchmark with its splits, classes and videos, and whether its manifest is there.

    Args:
        data_root: Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets.
    """
    from zar_ray.data.datasets import known_benchmarks, load_benchmark
    from zar_ray.reporting.manifest_tables import print_benchmarks

    print_benchmarks([load_benchmark(name) for name in known_benchmarks()], Console(highlight=False), data_root)
    return 0


@command
def data_shots_command(argv: Sequence[str]) -> int:
    """Draw a few-shot training set from a benchmark's official training videos."""
    about = "Draws so many training videos a class and writes their manifest, for `zar train --dataset`."
    options = parse(ShotsConfig, argv, "zar data shots", description=about)
    from zar_ray.data.few_shot import write_shots

    target, drawn = write_shots(options)
    name = drawn.name if options.output is None and options.data_root is None else target
    print(f"{target}: {len(drawn)} videos, {len(drawn.class_names)} classes; zar train --dataset {name}")
    return 0


@command
def data_audit_command(argv: Sequence[str]) -> int:
    """Look for mistakes in a manifest, or in lists and their labels."""
    about = (
        "Checks labels against file names, duplicates, overlaps, shared classes, files and counts. The exit status is "
        "1 if anything is wrong; warnings and notes do not change it."
    )
    options = parse(AuditConfig, argv, "zar data audit", description=about)
    from zar_ray.data.audit import run_audit

    report = run_audit(options)
    for line in report.lines():
        print(line)
    return 1 if report.wrong else 0
