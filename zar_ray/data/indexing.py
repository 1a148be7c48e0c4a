"""What `zar data index` does: decides what it was given, makes the manifest, writes it and says what it holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from zar_ray.config import Decoder
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
from zar_ray.errors import ConfigError, ManifestError, suggestion

_SHOWN = 10


@dataclass(frozen=True)
class IndexRequest:
    """The options of `zar data index`; its help says what each means."""

    source: str | None = None
    output: Path | None = None
    root: Path | None = None
    annotations: Path | None = None
    lists: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    available_only: bool = False
    class_names: str | None = None
    name: str | None = None
    decoder: Decoder = "auto"
    workers: int | None = None
    data_root: Path | None = None


def run_index(request: IndexRequest, console: Console) -> Path:
    """Makes and writes a manifest.

    Args:
        request: What to index.
        console: Where progress and the report go.

    Returns:
        Where the manifest is.

    Raises:
        ConfigError: Options do not go together.
        ManifestError: Something on the disk cannot be used.
    """
    report: LayoutReport | None = None
    benchmark: Benchmark | None = None
    if request.source in known_benchmarks():
        benchmark = load_benchmark(request.source)
        _refuse(request, "class_names", "a benchmark has its own class names")
        if request.root is None:
            raise ConfigError(f"zar data index {request.source}: give the folder of its videos with --root")
        manifest, report = index_benchmark(
            benchmark,
            request.root,
            console=console,
            annotations=request.annotations,
            lists=request.lists,
            labels=request.labels,
            available_only=request.available_only,
            decoder=request.decoder,
            workers=request.workers,
        )
        target: str | Path = request.output or benchmark.manifest_path(request.data_root)
    elif request.lists:
        if request.source is not None:
            near = suggestion(request.source, known_benchmarks())
            raise ConfigError(
                f'zar data index: --list goes with a benchmark or alone, not with "{request.source}"{near}'
            )
        _refuse(request, "class_names", "the names of a list's labels come with --labels")
        _refuse(request, "annotations", "only a benchmark has official annotations")
        if request.root is None:
            raise ConfigError("zar data index --list: give the folder of the videos with --root")
        manifest, report = index_lists(
            request.root,
            request.lists,
            request.labels,
            console=console,
            name=request.name,
            available_only=request.available_only,
            decoder=request.decoder,
            workers=request.workers,
        )
        target = request.output or default_manifest(manifest.name, request.data_root)
    else:
        assert request.source is not None
        for option in ("annotations", "labels", "available_only"):
            _refuse(
                request, option, f'"{request.source}" is no benchmark{suggestion(request.source, known_benchmarks())}'
            )
        manifest = _index_plain(request, request.source, console)
        place = Path(request.source)
        target = request.output or (place if place.is_dir() else place.parent) / "manifest.parquet"
    if request.name is not None:
        manifest = dataclasses.replace(manifest, name=request.name)
    write_manifest(manifest, target)
    _say(manifest, Path(target), report, benchmark, console)
    return Path(target)


def _index_plain(request: IndexRequest, source: str, console: Console) -> Manifest:
    classes = parse_class_names(request.class_names) if request.class_names is not None else None
    try:
        return index_dataset(
            source,
            console=console,
            class_names=classes,
            root=request.root,
            decoder=request.decoder,
            workers=request.workers,
        )
    except ManifestError as error:
        bare = not any(sign in source for sign in "/\\.~")
        if bare and not Path(source).exists():
            raise ManifestError(f"{error}, nor a benchmark{suggestion(source, known_benchmarks())}") from error
        raise


def _refuse(request: IndexRequest, option: str, why: str) -> None:
    if getattr(request, option):
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
