"""The commands `zar data VERB`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from zar_ray.commands.parsing import verb
from zar_ray.data.options import AuditConfig, IndexConfig, ShotsConfig
from zar_ray.terminal import output_console


@verb("zar data index", IndexConfig)
def data_index_command(options: IndexConfig) -> int:
    """Probes every file in parallel and writes one Parquet row a video; bad files stay in with their error."""
    from zar_ray.data.index import run_index

    run_index(options, output_console(soft_wrap=True))
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

    print_manifest(read_manifest(manifest), output_console(), rows)
    return 0


@verb("zar data list")
def data_list_command(data_root: Path | None = None) -> int:
    """Lists every benchmark with its splits, classes and videos, and whether its manifest is there.

    Args:
        data_root: Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets.
    """
    from zar_ray.data.datasets import known_benchmarks, load_benchmark
    from zar_ray.reporting.manifest_tables import print_benchmarks

    print_benchmarks([load_benchmark(name) for name in known_benchmarks()], output_console(), data_root)
    return 0


@verb("zar data shots", ShotsConfig)
def data_shots_command(options: ShotsConfig) -> int:
    """Draws so many training videos a class and writes their manifest, for `zar train --dataset`."""
    from zar_ray.data.few_shot import write_shots

    target, drawn = write_shots(options)
    name = drawn.name if options.output is None and options.data_root is None else target
    print(f"{target}: {len(drawn)} videos, {len(drawn.class_names)} classes; zar train --dataset {name}")
    return 0


@verb("zar data audit", AuditConfig)
def data_audit_command(options: AuditConfig) -> int:
    """Checks labels against file names, duplicates, overlaps, shared classes, files and counts.

    The exit status is 1 if anything is wrong; warnings and notes do not change it.
    """
    from zar_ray.data.audit import run_audit

    report = run_audit(options)
    for line in report.lines():
        print(line)
    return 1 if report.wrong else 0
