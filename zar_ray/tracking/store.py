"""A store of MLflow's: opened quietly, given up soon, and written to within the limits of all servers.

mlflow is imported when a store is opened, and by this package alone: the import takes seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from zar_ray.errors import TrackingError
from zar_ray.options.base import fingerprint, without_password
from zar_ray.options.layers import leaves
from zar_ray.options.places import at_home
from zar_ray.storage import is_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

EXPERIMENT = "zar-ray"
"""The experiment that runs go to: one for all, because MLflow compares runs within an experiment."""

PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
RESULTS_TAG = "zar.results"
"""Of a run: a hash of the results that were sent."""

METRICS_A_BATCH = 1000
CONTINUES = "the same command, when it can be reached, logs it"

_MADE_TWICE = re.compile("IntegrityError|UniqueViolation")
_SQLITE = re.compile(r"sqlite(?:\+pysqlite)?:///([^?]*)")

# Only where the user has not set them: by default MLflow tries for minutes before it says that a server is not there.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_LOG_LEVELS = {
    "mlflow": logging.WARNING,
    # A store that goes away is told once and in one line, by `TrainingTracker.log`.
    "mlflow.store.db": logging.CRITICAL,
    "mlflow.system_metrics": logging.CRITICAL,
    "alembic": logging.WARNING,
    "urllib3": logging.ERROR,
}

# What servers of all versions take.
_VALUE_LENGTH = 500
_NOTE_LENGTH = 5000
_PART_LENGTH = 70
_PARAMS_A_BATCH = 100
_MOST_RUNS = 50_000

_EXPERIMENT_NOTE = (
    "Evaluations by zar-ray: a run each, and below it (+) a run a method, of each split, model, setting or seed."
    " Compare those: their parameters and metrics have the same names. `top1_change` is what adaptation changed, with"
    " its 95 % interval in `top1_change_low` and `top1_change_high`, and `change_p`. Accuracies are fractions in"
    " [0, 1]. A run's description is its result table."
)
_VIEW = "zar-accuracy"
_VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_VIEW_METRICS = ("top1_before", "top1", "top1_change", "change_p", "map", "videos", "failed")
# In its default order MLflow nests runs, and folds them; the same order by its quoted name leaves them flat.
_VIEW_STATE = {
    "searchFilter": "tags.`case` != ''",
    "orderByKey": "attributes.`start_time`",
    "orderByAsc": False,
    "selectedColumns": [f"metrics.`{name}`" for name in _VIEW_METRICS],
}
_EXPERIMENT_TAGS = {
    _VIEW_TAG: json.dumps({"name": "Accuracy", "createdAt": 0, "state": json.dumps(_VIEW_STATE)}),
    NOTE_TAG: _EXPERIMENT_NOTE,
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "top1",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}


def default_uri(root: str) -> str:
    """The store that serves all runs below a folder: ``mlflow.db`` in it.

    Raises:
        TrackingError: `root` is a URI, where SQLite cannot be.
    """
    if is_uri(root):
        raise TrackingError(
            f"{root}: MLflow's database cannot be there; name a tracking server with --mlflow-uri, "
            "or send the run later with `zar report mlflow RUN --uri URI`"
        )
    return _sqlite_uri(at_home(root) / "mlflow.db")


def absolute_uri(uri: str) -> str:
    """The URI with a relative SQLite path made absolute: a receipt must mean the same in another folder.

    Raises:
        TrackingError: What follows a question mark is no query, but the rest of a file's name.
    """
    path = sqlite_path(uri)
    if path is None:
        return uri.rstrip("/")
    _, sign, query = uri.partition("?")
    if sign and not re.fullmatch(r"(\w+=[^/&]*&?)+", query):
        raise TrackingError(f"{uri}: write % and ? in a file's name as %25 and %3F")
    return _sqlite_uri(at_home(path)) + sign + query


def sqlite_path(uri: str) -> Path | None:
    """The database file that a URI names; None where it names a store of another kind."""
    found = _SQLITE.match(uri)
    return None if found is None else Path(unquote(found[1]))


@contextlib.contextmanager
def opened(uri: str, doing: str, way_out: str) -> Iterator[None]:
    """MLflow made quiet and quick to give up, and its errors made ours."""
    try:
        with quiet_and_quick():
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                yield
            except (MlflowException, SQLAlchemyError, OSError) as error:
                raise TrackingError(f"{uri}: could not {doing} ({_reason(error)}); {way_out}") from error
    except ImportError as error:
        raise TrackingError(f"{uri}: could not {doing} ({_reason(error)}); {way_out}") from error


@contextlib.contextmanager
def quiet_and_quick() -> Iterator[None]:
    """MLflow's settings and log levels while it is at work; those the user has set stay."""
    ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(ours)
    levels = {name: logging.getLogger(name).level for name in _LOG_LEVELS}
    try:
        # Importing mlflow sets its logger's level, so ours comes after.
        import mlflow  # noqa: F401

        for name, level in _LOG_LEVELS.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def driver_uri(uri: str) -> str:
    """The URI as MLflow is given it: for ``sqlite:`` it makes a folder first, called as in the URI, escapes and all."""
    return re.sub("^sqlite:", "sqlite+pysqlite:", uri)


def client_of(uri: str, make: bool = False) -> MlflowClient:
    """MLflow's client of a store; that of a database is tried first, see `_open_database`.

    Raises:
        FileNotFoundError: There is no such SQLite file, and none is to be made.
    """
    from mlflow import MlflowClient
    from mlflow.store.db.db_types import DATABASE_ENGINES

    path = sqlite_path(uri)
    if path is not None and not make and not path.exists():
        raise FileNotFoundError("no such file")
    with contextlib.nullcontext() if path is None else _opened_by_one(path):
        if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
            _open_database(uri)
        return MlflowClient(tracking_uri=driver_uri(uri), registry_uri=driver_uri(uri))


def experiment_of(client: MlflowClient, uri: str, root: str) -> str:
    """The id of the experiment, which is made if it is not there; its files then go beside a database, or below `root`
    where the database has no folder, or where the server says.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            place = _artifact_location(uri, root)
            return client.create_experiment(EXPERIMENT, artifact_location=place, tags=_EXPERIMENT_TAGS)
        except MlflowException as error:
            # Another run may have made it in between.
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise error from None
    if found.lifecycle_stage != "active":
        raise MlflowException(f"experiment {EXPERIMENT} has been deleted there; restore it in MLflow")
    return found.experiment_id


def runs_page(uri: str, server: str) -> str:
    """The address of the runs with their accuracies, on the page of an MLflow server.

    Args:
        uri: The tracking store that it serves.
        server: Where it serves it, such as ``http://127.0.0.1:5000``.

    Returns:
        The experiment's table of methods' runs, or all experiments while nothing is logged.

    Raises:
        TrackingError: The store cannot be read.
    """
    uri = absolute_uri(uri)
    with opened(without_password(uri), "find the experiment", "check the store"):
        experiment = client_of(uri).get_experiment_by_name(EXPERIMENT)
    page, words = f"{server}/#/experiments", "workflowType=machine_learning"
    if experiment is None:
        return f"{page}?{words}"
    # The view may have been deleted there.
    view = f"&viewStateShareKey={_VIEW}" if _VIEW_TAG in experiment.tags else ""
    return f"{page}/{experiment.experiment_id}/runs?{words}{view}"


def _artifact_location(uri: str, root: str) -> str | None:
    path = sqlite_path(uri)
    if path is not None:
        return (path.parent / "mlflow-artifacts").as_uri()
    if uri.startswith(("http://", "https://")) or not is_uri(uri):
        return None
    # A database without a server knows no place for files, and MLflow would put them into the working folder.
    return f"{root}/mlflow-artifacts" if is_uri(root) else (Path(root) / "mlflow-artifacts").as_uri()


def is_there(client: MlflowClient, run_id: str) -> bool:
    """Whether a run is in the store and not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def search_runs(client: MlflowClient, experiment_id: str, condition: str) -> list[Run]:
    """All active runs under a condition."""
    return list(client.search_runs([experiment_id], condition, max_results=_MOST_RUNS))


def log_values(client: MlflowClient, run_id: str, params: Mapping[str, str], numbers: Mapping[str, float]) -> None:
    """Logs parameters, and metrics at step 0, in batches that servers take."""
    from mlflow.entities import Metric, Param
    from mlflow.utils import chunk_list
    from mlflow.utils.time import get_current_time_millis

    now = get_current_time_millis()
    of_options = [Param(metric_key(name), cut(value)) for name, value in params.items()]
    for batch in chunk_list(of_options, _PARAMS_A_BATCH):
        client.log_batch(run_id, params=batch)
    measured = [Metric(metric_key(name), value, now, 0) for name, value in numbers.items()]
    for batch in chunk_list(measured, _PARAMS_A_BATCH):
        client.log_batch(run_id, metrics=batch)


def log_dataset(client: MlflowClient, run_id: str, dataset: DatasetInput) -> None:
    """Says on which data a run is.

    MLflow looks whether it knows them and then makes them, without a lock: where two runs are the first of theirs at
    the same moment, one is refused, and finds them there when it asks again.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client.log_inputs(run_id, datasets=[dataset])
    except (MlflowException, SQLAlchemyError) as error:
        if not _MADE_TWICE.search(str(error)):
            raise
        client.log_inputs(run_id, datasets=[dataset])


def log_files(client: MlflowClient, run_id: str, files: Mapping[str, bytes]) -> None:
    """Sends files by their names."""
    with tempfile.TemporaryDirectory(prefix="zar-mlflow-") as folder:
        for name, content in files.items():
            file = Path(folder) / name
            file.write_bytes(content)
            client.log_artifact(run_id, str(file))


def git_tags(commit: str | None) -> dict[str, str]:
    """Tags of the code's commit, one of them MLflow's own; see `zar_ray.provenance.git_commit`."""
    own = {"mlflow.source.git.commit": commit.removesuffix("+changes")} if commit else {}
    return {"git": commit or "unknown", **own}


def flattened(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested options as dotted names with text values; lists as JSON."""
    return {
        name: without_password(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in leaves(values).items()
    }


def fitting(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags cut to what servers take."""
    return {name: cut(value, _NOTE_LENGTH if name == NOTE_TAG else _VALUE_LENGTH) for name, value in tags.items()}


def cut(value: str, length: int = _VALUE_LENGTH) -> str:
    """A text, or its beginning where it is too long."""
    return value if len(value) <= length else f"{value[: length - 4]} ..."


def metric_key(name: str) -> str:
    """A name with only the characters that MLflow's keys may have."""
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)


def key_part(label: str) -> str:
    """A label as one part of a metric's name, where a slash would end it and dots alone would mean another.

    One that is cut, or has letters that no name can have, ends in a hash, so that two of them stay two.
    """
    key = metric_key(label).replace("/", "_")
    key = f"_{key}" if key.startswith(".") else key
    if len(key) <= _PART_LENGTH and label.isascii():
        return key
    return f"{key[: _PART_LENGTH - 9]}.{fingerprint(label)[:8]}"


def _reason(error: BaseException) -> str:
    """What went wrong in a few words: of a failed connection or query its cause, without URLs and SQL around it."""
    from requests import RequestException

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(cause, RequestException) for cause in causes):
        text = f"no answer from the server: {causes[-1]}"
    else:
        text = str(getattr(error, "orig", error))
    return cut(without_password(" ".join(text.split())), 300)


def _open_database(uri: str) -> None:
    """Opens a database once: MLflow itself goes on trying for minutes, even where a file is not a database."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _sqlite_uri(path: Path) -> str:
    """The URI of a database file; what would begin a query or an escape in it is escaped."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


@contextlib.contextmanager
def _opened_by_one(path: Path) -> Iterator[None]:
    """Lets one process at a time open a database, which is there by then: MLflow makes its tables without a lock.

    The lock is the folder's own, so that no file is left behind, and ends with the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Some network file systems lock no folders.
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():
            _make_database(path)
        yield
    finally:
        os.close(folder)


def _make_database(path: Path) -> None:
    """Makes a store in memory and puts it whole into its place, unless another process has done so meanwhile.

    MLflow makes the tables in dozens of steps, and a file that is left between two of them, or that another program
    begins with then, is broken for good.
    """
    from mlflow import MlflowClient

    memory = f"file:zar-{uuid.uuid4().hex}?mode=memory&cache=shared"
    uri = driver_uri(f"sqlite:///{memory}&uri=true")
    MlflowClient(tracking_uri=uri, registry_uri=uri)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        whole = Path(folder) / path.name
        with (
            contextlib.closing(sqlite3.connect(memory, uri=True)) as made,
            contextlib.closing(sqlite3.connect(whole)) as copy,
        ):
            made.backup(copy)
        try:
            os.link(whole, path)
        except OSError:
            # Another process was first, or the file system has no links.
            if not path.exists():
                whole.replace(path)
