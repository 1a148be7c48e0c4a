"""What `zar data index` does: decides what it was given, makes the manifest, writes it and says what it holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from zar_ray.data.benchmarks.layout import LayoutReport
from zar_ray.data.datasets import (
    Benchmark,
    default_manifest,
    index_benchmark,
    index_dataset,
    index_lists,
    known_benchmarks,
    load_benchmark,
    parse_class_names,
)
from zar_ray.data.manifest import Manifest, write_manifest
from zar_ray.data.options import IndexConfig
from zar_ray.errors import ConfigError, ManifestError, suggestion

_SHOWN = 10


def run_index(options: IndexConfig, console: Console) -> Path:
    """Makes and writes a manifest.

    Args:
        options: What to index.
        console: Where progress and the report go.

    Returns:
        Where the manifest is.

    Raises:
        ConfigError: Options do not go together.
        ManifestError: Something on the disk cannot be used.
    """
    if options.source is None and not options.list:
        known = ", ".join(known_benchmarks())
        raise ConfigError(f"zar data index: give a folder, a CSV, --list FILE or a benchmark's name ({known})")
    report: LayoutReport | None = None
    benchmark: Benchmark | None = None
    if options.source in known_benchmarks():
        benchmark = load_benchmark(options.source)
        _refuse(options, "class_names", "a benchmark has its own class names")
        if options.root is None:
            raise ConfigError(f"zar data index {options.source}: give the folder of its videos with --root")
        manifest, report = index_benchmark(
            benchmark,
            options.root,
            console=console,
            annotations=options.annotations,
            lists=options.list,
            labels=options.labels,
            available_only=options.available_only,
            decoder=options.decoder,
            workers=options.workers,
        )
        target: str | Path = options.output or benchmark.manifest_path(options.data_root)
    elif options.list:
        root = options.root
        if root is None and options.source is not None and Path(options.source).is_dir():
            root = Path(options.source)
        elif options.source is not None:
            near = suggestion(options.source, known_benchmarks())
            raise ConfigError(
                f'zar data index: --list goes with a benchmark, a folder or --root, not with "{options.source}"{near}'
            )
        _refuse(options, "class_names", "the names of a list's labels come with --labels")
        _refuse(options, "annotations", "only a benchmark has official annotations")
        if root is None:
            raise ConfigError("zar data index --list: give the folder of the videos with --root")
        manifest, report = index_lists(
            root,
            options.list,
            options.labels,
            console=console,
            name=options.name,
            available_only=options.available_only,
            decoder=options.decoder,
            workers=options.workers,
        )
        target = options.output or default_manifest(manifest.name, options.data_root)
    else:
        assert options.source is not None
        for option in ("annotations", "labels", "available_only"):
            _refuse(
                options, option, f'"{options.source}" is no benchmark{suggestion(options.source, known_benchmarks())}'
            )
        manifest = _index_plain(options, options.source, console)
        place = Path(options.source)
        target = options.output or (place if place.is_dir() else place.parent) / "manifest.parquet"
    if options.name is not None:
        manifest = dataclasses.replace(manifest, name=options.name)
    write_manifest(manifest, target)
    _say(manifest, Path(target), report, benchmark, console)
    return Path(target)


def _index_plain(options: IndexConfig, source: str, console: Console) -> Manifest:
    classes = parse_class_names(options.class_names) if options.class_names is not None else None
    try:
        return index_dataset(
            source,
            console=console,
            class_names=classes,
            root=options.root,
            decoder=options.decoder,
            workers=options.workers,
        )
    except ManifestError as error:
        bare = not any(sign in source for sign in "/\\.~")
        if bare and not Path(source).exists():
            raise ManifestError(f"{error}, nor a benchmark{suggestion(source, known_benchmarks())}") from error
        raise


def _refuse(options: IndexConfig, option: str, why: str) -> None:
    if getattr(options, option):
        raise ConfigError(f"zar data index: --{option.replace('_', '-')} does not go here: {why}")


def _say(
    manifest: Manifest, target: Path, report: LayoutReport | None, benchmark: Benchmark | None, console: Console
) -> None:
    if report is not None:
        for line in report.lines():
            console.print(line, markup=False)
    broken = [row for row in manifest.rows() if row.error is not None]
    console.print(
        f"{target}: {len(manifest)} videos, {len(manifest.class_names)} classes, {len(broken)} broken", markup=False
    )
    # Missing files are reported by split and class above.
    shown = [row for row in broken if report is None or row.error != "no such file"]
    for row in shown[:_SHOWN]:
        console.print(f"  {row.video_id}: {row.error}", markup=False)
    if len(shown) > _SHOWN:
        console.print(f"  ... and {len(shown) - _SHOWN} more; the manifest's error column has all")
    if benchmark is None:
        return
    for name in known_benchmarks():
        other = load_benchmark(name)
        if other.data != benchmark.data:
            continue
        for spec in other.splits:
            try:
                (split,) = other.evaluations(manifest, spec.name)
            except ManifestError:
                continue
            expected = f" of {'about ' if spec.about else ''}{split.expected:,}" if split.expected is not None else ""
            console.print(
                f"--dataset {name} --split {spec.name}: {len(split):,}{expected} videos, "
                f"{len(split.class_names)} classes",
                markup=False,
            )
