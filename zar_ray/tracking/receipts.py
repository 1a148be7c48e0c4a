"""Where a folder's run was sent, as the folder remembers it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from zar_ray.errors import RunError
from zar_ray.storage import Storage

RECEIPTS = "mlflow.json"
"""File in the run's folder that says where the run was sent."""


@dataclass(frozen=True)
class MlflowReceipt:
    """Where a run is in MLflow.

    Attributes:
        uri: The tracking store, without a password.
        experiment: The experiment's name.
        run_id: The evaluation's (parent) run, the training's or the group's.
        results: A short hash of the results that were sent; empty while a training runs.
        new: Whether this call sent them; otherwise they were there already.
    """

    uri: str
    experiment: str
    run_id: str
    results: str
    new: bool = field(default=True, compare=False)


def read_receipts(storage: Storage) -> dict[str, MlflowReceipt]:
    """A folder's receipts by store; none where it has not been sent.

    Raises:
        RunError: Its file cannot be read.
    """
    if not storage.exists(RECEIPTS):
        return {}
    try:
        receipts = [MlflowReceipt(**one, new=False) for one in json.loads(storage.read(RECEIPTS))]
    except (ValueError, TypeError) as error:
        place = storage.path(RECEIPTS)
        raise RunError(f"{place}: cannot be read ({error}); delete it if the run is to be sent again") from None
    return {one.uri: one for one in receipts}


def keep_receipt(storage: Storage, receipt: MlflowReceipt) -> None:
    """Writes a receipt in place of the same store's earlier one."""
    kept = [one for one in read_receipts(storage).values() if one.uri != receipt.uri]
    content = [{k: v for k, v in asdict(one).items() if k != "new"} for one in (*kept, receipt)]
    storage.write(RECEIPTS, (json.dumps(content, indent=2) + "\n").encode())
