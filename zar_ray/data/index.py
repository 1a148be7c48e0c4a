"""What `zar data index` does: decides what it was given, makes the manifest, writes it and says what it holds."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from rich.console import Console

from zar_ray.data.benchmarks.adapters import list_benchmark, list_published
from zar_ray.data.benchmarks.layout import LayoutReport
from zar_ray.data.benchmarks.lists import read_lists
from zar_ray.data.datasets import (
    Benchmark,
    default_manifest,
    is_bare,
    known_benchmarks,
    list_dataset,
    load_benchmark,
    parse_class_names,
)
from zar_ray.data.listing import Listing
from zar_ray.data.manifest import Manifest, write_manifest
from zar_ray.data.options import IndexConfig
from zar_ray.data.probing import probe_listing
from zar_ray.errors import ConfigError, ManifestError, suggestion
from zar_ray.file_systems import Location
from zar_ray.storage import is_uri, suffix_of
from zar_ray.untrusted import folder_name

_SHOWN = 10


def run_index(options: IndexConfig, console: Console) -> str:
    """Makes and writes a manifest, and says where it is; progress and the report go to the console.

    Raises:
        ConfigError: Options do not go together.
        ManifestError: Something on the disk cannot be used.
    """
    if options.source is None and not options.list:
        known = ", ".join(known_benchmarks())
        raise ConfigError(f"zar data index: give a folder, a CSV, --list FILE or a benchmark's name ({known})")
    listing, report, benchmark, target = _found(options)
    place = str(options.source if report is None else options.root or options.source)
    manifest = probe_listing(listing, options.decoder, options.workers, console, place)
    if options.name is not None:
        manifest = dataclasses.replace(manifest, name=options.name)
    write_manifest(manifest, target)
    _say(manifest, str(target), report, benchmark, console)
    return str(target)


def _found(options: IndexConfig) -> tuple[Listing, LayoutReport | None, Benchmark | None, str | Path]:
    """The videos, what is to be said of their layout, the benchmark they are of, and where the manifest goes."""
    source, root = options.source, options.root
    if source in known_benchmarks():
        benchmark = load_benchmark(str(source))
        _refuse(options, "class_names", "a benchmark has its own class names")
        if root is None:
            raise ConfigError(f"zar data index {source}: give the folder of its videos with --root")
        if benchmark.data is None:
            raise ConfigError(f'{source}: is not found in a folder; make it with "{benchmark.make_command()}"')
        if options.labels and not options.list:
            raise ConfigError("--labels goes with --list: it names the labels of a list")
        lists = read_lists(options.list, options.labels, benchmark.splits) if options.list else []
        listing, report = list_benchmark(benchmark.data, root, options.annotations, lists, options.available_only)
        return listing, report, benchmark, options.output or benchmark.manifest_path(options.data_root)
    near = suggestion(source or "", known_benchmarks())
    if options.list:
        if root is None and source is not None and Path(source).is_dir():
            root = Path(source)
        elif source is not None:
            raise ConfigError(
                f'zar data index: --list goes with a benchmark, a folder or --root, not with "{source}"{near}'
            )
        _refuse(options, "class_names", "the names of a list's labels come with --labels")
        _refuse(options, "annotations", "only a benchmark has official annotations")
        if root is None:
            raise ConfigError("zar data index --list: give the folder of the videos with --root")
        lists = read_lists(options.list, options.labels)
        name = options.name or lists[0].split
        if options.output is None:
            try:
                folder_name(name)
            except ValueError as error:
                raise ConfigError(f"--list: {error}, or name the dataset with --name") from None
        listing, report = list_published(name, root, lists, options.available_only)
        return listing, report, None, options.output or default_manifest(name, options.data_root)
    assert source is not None
    for option in ("annotations", "labels", "available_only"):
        _refuse(options, option, f'"{source}" is no benchmark{near}')
    classes = parse_class_names(options.class_names) if options.class_names is not None else None
    try:
        listing = list_dataset(source, root, classes)
    except ManifestError as error:
        if is_bare(source) and not Path(source).exists():
            raise ManifestError(f"{error}, nor a benchmark{near}") from error
        raise
    place = Location.parse(source)
    beside = Path(source).is_file() or (is_uri(source) and suffix_of(source) == ".csv")
    return listing, None, None, options.output or str((place.parent if beside else place) / "manifest.parquet")


def _refuse(options: IndexConfig, option: str, why: str) -> None:
    if getattr(options, option):
        raise ConfigError(f"zar data index: --{option.replace('_', '-')} does not go here: {why}")


def _say(
    manifest: Manifest, target: str, report: LayoutReport | None, benchmark: Benchmark | None, console: Console
) -> None:
    if report is not None:
        for line in report.lines():
            console.print(line, markup=False)
    broken = [row for row in manifest.rows() if row.error is not None]
    counts = f"{len(manifest)} videos, {len(manifest.class_names)} classes, {len(broken)} broken"
    console.print(f"{target}: {counts}", markup=False)
    # Missing files are reported by split and class above.
    shown = [row for row in broken if report is None or row.error != "no such file"]
    for row in shown[:_SHOWN]:
        console.print(f"  {row.video_id}: {row.error}", markup=False)
    if len(shown) > _SHOWN:
        console.print(f"  ... and {len(shown) - _SHOWN} more; the manifest's error column has all")
    if benchmark is None:
        return
    related = [one for one in map(load_benchmark, known_benchmarks()) if one.data == benchmark.data]
    for other, spec in ((one, spec) for one in related for spec in one.splits):
        with contextlib.suppress(ManifestError):
            (split,) = other.evaluations(manifest, spec.name)
            expected = f" of {'about ' if spec.about else ''}{spec.count:,}" if spec.count is not None else ""
            counts = f"{len(split):,}{expected} videos, {len(split.class_names)} classes"
            console.print(f"--dataset {other.name} --split {spec.name}: {counts}", markup=False)
