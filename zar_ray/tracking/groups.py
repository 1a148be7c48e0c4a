"""Runs that belong together: a run that they become children of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zar_ray.options.base import fingerprint, without_password
from zar_ray.provenance import git_commit
from zar_ray.storage import Storage
from zar_ray.tracking.receipts import MlflowReceipt, keep_receipt, read_receipts
from zar_ray.tracking.store import (
    CONTINUES,
    EXPERIMENT,
    NOTE_TAG,
    PARENT_TAG,
    absolute_uri,
    artifact_location,
    client_of,
    experiment_of,
    fitting,
    flattened,
    is_there,
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
    uri = absolute_uri(uri)
    shown = without_password(uri)
    results = fingerprint([group.children, group.numbers, group.curves, group.note])
    earlier = read_receipts(folder).get(shown)
    with opened(shown, f"log the {group.kind} to MLflow", CONTINUES):
        client = client_of(uri)
        known = earlier is not None and is_there(client, earlier.run_id)
        if earlier is not None and known and earlier.results == results:
            return earlier
        root = folder.location.rpartition("/")[0]
        experiment_id = experiment_of(client, EXPERIMENT, artifact_location(uri, root))
        git = git_commit() or "unknown"
        tags = fitting({"kind": group.kind, "git": git, **group.tags, NOTE_TAG: group.note})
        run_id = client.create_run(experiment_id, tags=tags, run_name=group.name).info.run_id
        log_values(client, run_id, flattened(group.config), group.numbers)
        for key, points in group.curves.items():
            for step, value in points.items():
                client.log_metric(run_id, metric_key(key), value, step=step)
        log_files(client, run_id, folder, {name: name for name in group.files})
        for child, own in group.children.items():
            for name, value in fitting({**own, PARENT_TAG: run_id}).items():
                client.set_tag(child, name, value)
        client.set_terminated(run_id)
        receipt = MlflowReceipt(shown, EXPERIMENT, run_id, results)
        keep_receipt(folder, receipt)
        if earlier is not None and known:
            client.delete_run(earlier.run_id)
    return receipt
