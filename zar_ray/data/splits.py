"""The splits of a dataset that a run's options ask for, over the dataset's class names or the user's own."""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from zar_ray.data.datasets import Benchmark, parse_class_names
from zar_ray.data.manifest import MANIFEST_SCHEMA, Manifest
from zar_ray.data.options import DatasetOptions
from zar_ray.data.protocols import EvaluationSplit, whole_split
from zar_ray.errors import ConfigError, ManifestError, suggestion


def choose_splits(
    manifest: Manifest, benchmark: Benchmark | None, options: DatasetOptions
) -> tuple[EvaluationSplit, ...]:
    """The splits that the options ask for: a benchmark's protocol, or a manifest as it is.

    Raises:
        ConfigError: There is no such split, or an option does not go with the dataset.
        ManifestError: The manifest has no video for a split, or a label is not among the given class names.
    """
    if options.legacy_labels and not (benchmark and benchmark.legacy_swaps):
        raise ConfigError(f"--legacy-labels: no published label file of {options.dataset} is known to exchange names")
    if options.class_names is not None:
        # Names of one's own are no protocol's: the videos are the manifest's, or one of its splits.
        split = options.split or (benchmark.split_of(manifest) if benchmark else None)
        named = with_class_names(manifest.select(split), parse_class_names(options.class_names))
        return (whole_split(named),)
    if benchmark is None:
        return (whole_split(manifest, options.split),)
    return benchmark.evaluations(manifest, options.split, legacy_labels=options.legacy_labels)


def with_class_names(manifest: Manifest, class_names: tuple[str, ...]) -> Manifest:
    """The same videos with other candidate classes; labels keep their names and take their new positions.

    Raises:
        ManifestError: A video's label is not among the new classes.
    """
    position = {name: index for index, name in enumerate(class_names)}
    labels = manifest.table["class_name"].to_pylist()
    unknown = sorted({label for label in labels if label is not None} - position.keys())
    if unknown:
        raise ManifestError(
            f'{manifest.name}: {len(unknown)} of its labels are not among the given class names, such as "{unknown[0]}"'
            f"{suggestion(unknown[0], position)}"
        )
    ids = pa.array([None if label is None else position[label] for label in labels], pa.int32())
    column = manifest.table.schema.get_field_index("label_id")
    table = manifest.table.set_column(column, MANIFEST_SCHEMA.field("label_id"), ids)
    return dataclasses.replace(manifest, table=table, class_names=class_names)
