"""A folder's run in a store of MLflow's: found, continued, replaced or created, so that it is there once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from zar_ray.errors import RunError
from zar_ray.options.base import fingerprint, without_password
from zar_ray.storage import Storage
from zar_ray.tracking import store
from zar_ray.untrusted import parse_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECEIPTS = "mlflow.json"
"""File in the run's folder that says where the run was sent."""

TRAINING = "training"
"""The tag `kind` of a training's run."""

_FOLDER_TAG = "zar.folder"
_NAME_LENGTH = 250


@dataclass(frozen=True)
class MlflowReceipt:
    """Where a run is in MLflow.

    Attributes:
        uri: The tracking store, without a password.
        run_id: The evaluation's (parent) run, or the training's.
        results: A short hash of the results that were sent; empty while a training runs.
        folder: A short hash of where the folder was, see `FolderRun`.
        new: Whether this call sent them; otherwise they were there already.
    """

    uri: str
    experiment: str
    run_id: str
    results: str
    folder: str
    new: bool = field(default=True, compare=False)


def key_of(folder: Storage) -> str:
    """What tells a folder from others, its copies among them: a short hash of where it is."""
    return fingerprint(os.path.realpath(folder.location) if folder.is_local else folder.location)


def read_receipts(folder: Storage) -> dict[str, MlflowReceipt]:
    """A folder's receipts by store, with those that were copied along with it; none where it has not been sent.

    Raises:
        RunError: Its file cannot be read.
    """
    if not folder.exists(RECEIPTS):
        return {}
    try:
        receipts = [MlflowReceipt(**one, new=False) for one in parse_json(folder.read(RECEIPTS))]
    except (ValueError, TypeError) as error:
        place = folder.path(RECEIPTS)
        raise RunError(f"{place}: cannot be read ({error}); delete it if the run is to be sent again") from None
    return {one.uri: one for one in receipts}


def own_receipts(folder: Storage) -> dict[str, MlflowReceipt]:
    """A folder's receipts by store without those of the folder that it is a copy of, whose runs are not its own.

    Raises:
        RunError: Its file cannot be read.
    """
    return {uri: one for uri, one in read_receipts(folder).items() if one.folder == key_of(folder)}


class FolderRun:
    """The run of one folder in one store; all but making it belongs within `zar_ray.tracking.store.opened`.

    The store is by default ``mlflow.db`` beside the folder, and the folder keeps a receipt of each store (`RECEIPTS`).
    A folder elsewhere is another one, even with the same receipts: a copy gets a run of its own.

    Attributes:
        shown: The tracking store without a password.

    Raises:
        TrackingError: No store is named, and none can be beside the folder.
    """

    def __init__(self, folder: Storage, uri: str | None) -> None:
        self._folder = folder
        self._root = folder.parent.location
        self.uri = store.absolute_uri(uri) if uri else store.default_uri(self._root)
        self.shown = without_password(self.uri)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client of the store."""
        return store.client_of(self.uri, make=True)

    def find(self, results: str | None = None) -> MlflowReceipt | None:
        """The folder's run, if the store has it, whatever it holds; with `results` only one that holds these.

        A sending of them that was cut off leaves a run that never ended, which is deleted here, or one that the folder
        has no receipt of, which its tags tell.
        """
        receipt = own_receipts(self._folder).get(self.shown)
        known = receipt is not None and store.is_there(self.client, receipt.run_id)
        if receipt is not None and known and results in (None, receipt.results):
            return receipt
        experiment = None if results is None else self.client.get_experiment_by_name(store.EXPERIMENT)
        if results is None or experiment is None:
            return None
        found = None
        for run in store.search_runs(self.client, experiment.experiment_id, f"tags.`{_FOLDER_TAG}` = '{self._key}'"):
            if run.info.status != "FINISHED":
                self._delete(run.info.run_id)
            elif run.data.tags.get(store.RESULTS_TAG) == results:
                found = run.info.run_id
        return None if found is None else self.keep(found, results, new=False)

    def create(self, name: str, tags: Mapping[str, str], started: int | None = None) -> str:
        """Starts a run of the folder's and returns its id; it is the folder's when it is `keep`-ed.

        Name and tags are cut to what servers take; it `started` now, or at a time in milliseconds.
        """
        name = store.cut(name, _NAME_LENGTH)
        return self.client.create_run(self._experiment_id, started, store.fitting(tags), name).info.run_id

    def result_tags(self, results: str) -> dict[str, str]:
        """The tags by which `find` knows a run without its receipt."""
        return {_FOLDER_TAG: self._key, store.RESULTS_TAG: results}

    def keep(self, run_id: str, results: str = "", new: bool = True) -> MlflowReceipt:
        """Writes the receipt of the folder's run; the run that it named before is outdated and deleted."""
        receipts = own_receipts(self._folder)
        earlier = receipts.get(self.shown)
        if earlier is not None and earlier.run_id != run_id:
            self._delete(earlier.run_id)
        receipt = MlflowReceipt(self.shown, store.EXPERIMENT, run_id, results, self._key, new)
        if receipt != earlier:
            content = [asdict(one) for one in (receipts | {self.shown: receipt}).values()]
            for one in content:
                del one["new"]
            self._folder.write(RECEIPTS, (json.dumps(content, indent=2) + "\n").encode())
        return receipt

    @cached_property
    def _experiment_id(self) -> str:
        return store.experiment_of(self.client, self.uri, self._root)

    @property
    def _key(self) -> str:
        return key_of(self._folder)

    def _delete(self, run_id: str) -> None:
        """Deletes a run with its children, children first; trainings stay, which nothing would log anew."""
        if not store.is_there(self.client, run_id):
            return
        experiment_id = self.client.get_run(run_id).info.experiment_id
        for child in store.search_runs(self.client, experiment_id, f"tags.`{store.PARENT_TAG}` = '{run_id}'"):
            if child.data.tags.get("kind") != TRAINING:
                self.client.delete_run(child.info.run_id)
        self.client.delete_run(run_id)
