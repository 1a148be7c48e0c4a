"""Runs that belong together: a run that they become children of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zar_ray.options.base import fingerprint
from zar_ray.provenance import git_commit
from zar_ray.storage import Storage
from zar_ray.tracking.folder_run import FolderRun, MlflowReceipt
from zar_ray.tracking.store import (
    CONTINUES,
    NOTE_TAG,
    PARENT_TAG,
    fitting,
    flattened,
    git_tags,
    log_files,
    log_values,
    metric_key,
    opened,
)


@dataclass(frozen=True)
class RunGroup:
    """Runs that belong together, such as the seeds of an experiment or the alphas of a sweep.

    Attributes:
        name: What the group's run is called.
        kind: What they are of; the tag ``kind``.
        config: The options they share, as JSON values; logged as parameters.
        tags: Further tags.
        children: The runs, and tags that tell each from the others.
        numbers: Values by metric.
        curves: Values by metric and step, for metrics that are a curve over the children.
        note: The run's description, in Markdown.
        files: Files of the group's folder to send along.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    children: Mapping[str, Mapping[str, str]]
    numbers: Mapping[str, float]
    note: str
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def log_group(group: RunGroup, folder: Storage, uri: str) -> MlflowReceipt:
    """Logs a group as a run and puts its children below it.

    The same group again is found there; one that has gone on since replaces the outdated run, whose children move.

    Args:
        group: The group; its children are runs of the same store.
        folder: Where the receipt is kept.
        uri: The tracking store.

    Returns:
        The receipt; `new` says whether anything was sent.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    kept = FolderRun(folder, uri)
    results = fingerprint([group.children, group.numbers, group.curves, group.note])
    with opened(kept.shown, f"log the {group.kind} to MLflow", CONTINUES):
        client, earlier = kept.client, kept.find()
        if earlier is not None and earlier.results == results:
            return earlier
        tags = {"kind": group.kind, **git_tags(git_commit()), **group.tags, NOTE_TAG: group.note}
        run_id = kept.create(group.name, tags)
        log_values(client, run_id, flattened(group.config), group.numbers)
        for key, points in group.curves.items():
            for step, value in points.items():
                client.log_metric(run_id, metric_key(key), value, step=step)
        log_files(client, run_id, {name: folder.read(name) for name in group.files if folder.exists(name)})
        for child, own in group.children.items():
            for name, value in fitting({**own, PARENT_TAG: run_id}).items():
                client.set_tag(child, name, value)
        client.set_terminated(run_id)
        return kept.keep(run_id, results)
