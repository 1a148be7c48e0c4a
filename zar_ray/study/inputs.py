"""What a run evaluates: its videos, its candidate classes, and its name."""

from __future__ import annotations

import dataclasses
import re

import pyarrow as pa

from zar_ray.data.manifest import MANIFEST_SCHEMA, Manifest
from zar_ray.errors import ManifestError, suggestion
from zar_ray.evaluation.options import EvalConfig


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


def run_name(options: EvalConfig, dataset: str) -> str:
    """The folder of a run that is given no name: from what is run, so that submitting it again continues it."""
    weights = options.checkpoint.stem if options.checkpoint else f"{options.model}-{options.pretrained}"
    parts = [dataset, options.split, weights, "+".join(options.method)]
    parts += [f"limit{options.limit}"] if options.limit else []
    parts += [f"seed{options.seed}"]
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", "_".join(part for part in parts if part))
