"""Few-shot training sets: so many videos a class, drawn by seed from the official training videos."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from pathlib import Path

from zar_ray.data.classes import name_key
from zar_ray.data.datasets import default_manifest, load_benchmark
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest, write_manifest
from zar_ray.data.options import ShotsConfig
from zar_ray.data.protocols import Benchmark, SplitSpec
from zar_ray.errors import ConfigError, ManifestError, suggestion


def draw_shots(benchmark: Benchmark, manifest: Manifest, shots: int, seed: int, split: str | None = None) -> Manifest:
    """Draws training videos for one split of a benchmark.

    The draw depends on the seed and the files' names alone, so it is the same for any layout, and draws of one seed
    nest: the videos of 2 shots are among those of 4.  Broken videos are not drawn.

    The split, by default the benchmark's first, says which classes, whose label ids count them, and which videos of
    the manifest are for training.

    Raises:
        ConfigError: There is no such split, it has no training videos, or a video has several labels.
        ManifestError: A class has fewer usable training videos than `shots`.
    """
    spec = _training_split(benchmark, split)
    names = spec.class_names(manifest.class_names)
    position = {name_key(name): number for number, name in enumerate(names)}
    found: defaultdict[int, list[VideoRow]] = defaultdict(list)
    for row in manifest.rows():
        if row.error is not None or row.class_name is None or not set(spec.train) & set(row.memberships):
            continue
        label = position.get(name_key(row.class_name))
        if label is not None:
            found[label].append(row)
    short = {name: len(found[number]) for number, name in enumerate(names) if len(found[number]) < shots}
    if short:
        name, count = min(short.items(), key=lambda item: (item[1], item[0]))
        raise ManifestError(
            f"{manifest.name}: {len(short)} of {len(names)} classes have fewer than {shots} usable videos in "
            f'{" or ".join(spec.train)}, such as "{name}" with {count}; draw fewer shots, or index the training videos'
        )
    rows = [
        dataclasses.replace(row, label_id=label, class_name=names[label], split="train", splits=None)
        for label in range(len(names))
        for row in sorted(found[label], key=lambda row: _rank(row, names[label], seed))[:shots]
    ]
    rows.sort(key=lambda row: row.video_id)
    return Manifest.of(rows, names, manifest.root, f"{benchmark.name}-{spec.name}-{shots}shot-seed{seed}")


def write_shots(options: ShotsConfig) -> tuple[Path, Manifest]:
    """Draws training videos from a benchmark's manifest and writes them: where the new manifest is, and what it holds.

    Raises:
        ConfigError: There is no such benchmark; or as `draw_shots`.
        ManifestError: As `draw_shots`; or the benchmark's manifest is missing or the file cannot be written.
    """
    benchmark = load_benchmark(options.benchmark)
    _training_split(benchmark, options.split)
    manifest = read_manifest(benchmark.existing_manifest(options.data_root))
    drawn = draw_shots(benchmark, manifest, options.shots, options.seed, options.split)
    target = options.output or default_manifest(drawn.name, options.data_root)
    write_manifest(drawn, target)
    return target, drawn


def _training_split(benchmark: Benchmark, split: str | None) -> SplitSpec:
    specs = [spec for spec in benchmark.splits if spec.train]
    if benchmark.multi_label or not specs:
        raise ConfigError(f"{benchmark.name}: has no training videos to draw from")
    if split is None:
        return specs[0]
    chosen = next((spec for spec in specs if spec.name == split), None)
    if chosen is None:
        known = [spec.name for spec in specs]
        raise ConfigError(f'{benchmark.name}: no split "{split}" with training videos{suggestion(split, known)}')
    return chosen


def _rank(row: VideoRow, name: str, seed: int) -> bytes:
    """A random number for a video that depends on nothing else in the manifest."""
    return hashlib.sha256("\0".join((str(seed), name, row.stem)).encode()).digest()
