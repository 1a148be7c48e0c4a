"""Finds finished evaluations below an output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from zar_ray.errors import RunError
from zar_ray.reporting.sweep_summary import SweepSummary
from zar_ray.results.record import RunSummary
from zar_ray.storage import Storage

_RUN_FILE = "run.json"
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class FinishedRun:
    """An evaluation that has ended.

    Attributes:
        place: Its folder.
        summary: What it found.
        config: Its resolved options, as plain JSON values.
        finished: When it ended; the beginning of time where the file system does not say.
    """

    place: str
    summary: RunSummary
    config: Mapping[str, Any]
    finished: datetime = _LONG_AGO

    @classmethod
    def parse(cls, content: bytes, place: str, finished: datetime | None = None) -> FinishedRun:
        """Reads the content of a run.json; of a sweep's, its own setting.

        Args:
            content: The file's bytes.
            place: The run's folder.
            finished: When it was written, where that is known.

        Raises:
            RunError: It is not the record of a run.
        """
        file = f"{place}/{_RUN_FILE}"
        try:
            record = json.loads(content)
        except ValueError as error:
            raise RunError(f"{file}: is not JSON ({' '.join(str(error).split())})") from None
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise RunError(f"{file}: is not the record of a run (it has no config)")
        summary = RunSummary.from_json(record.get("summary"), file)
        return cls(place, summary, record["config"], finished or _LONG_AGO)

    @classmethod
    def parse_all(cls, content: bytes, place: str, finished: datetime | None = None) -> tuple[FinishedRun, ...]:
        """Reads the content of a run.json: a run, or each setting of a sweep as the run that it stands for.

        Args and Raises: see `parse`.
        """
        whole = cls.parse(content, place, finished)
        record = json.loads(content)
        if "sweep" not in record:
            return (whole,)
        sweep = SweepSummary.from_json(record["sweep"], f"{place}/{_RUN_FILE}")
        return tuple(replace(whole, summary=one.summary, config=one.config) for one in sweep.settings)


@dataclass(frozen=True)
class FoundRuns:
    """The runs of an output folder.

    Attributes:
        runs: The finished ones, in the order of their folders' names.
        broken: Why others cannot be read, a line each.
    """

    runs: tuple[FinishedRun, ...]
    broken: tuple[str, ...]


def find_runs(output: str) -> FoundRuns:
    """The finished runs in a folder's sub-folders, and in the folder itself; of a sweep, a run a setting.

    Deeper folders are not searched: MLflow keeps copies of run.json there.

    Args:
        output: What `zar eval --output` was given; it need not exist.

    Raises:
        RunError: The folder cannot be listed.
    """
    storage = Storage(output)
    runs, broken = [], []
    for name, info in _run_files(storage):
        folder = storage.child(name) if name else storage
        try:
            runs += FinishedRun.parse_all(folder.read(_RUN_FILE), folder.path(), info.mtime)
        except RunError as error:
            broken.append(str(error))
    return FoundRuns(tuple(runs), tuple(broken))


def _run_files(storage: Storage) -> list[tuple[str, FileInfo]]:
    try:
        files, root = FileSystem.from_uri(storage.location)
        listed = files.get_file_info(FileSelector(root, allow_not_found=True))
        names = ["", *sorted(info.base_name for info in listed if info.type == FileType.Directory)]
        infos = files.get_file_info([f"{root}/{name}/{_RUN_FILE}" if name else f"{root}/{_RUN_FILE}" for name in names])
    except OSError as error:
        raise RunError(f"{storage.path()}: cannot be listed ({' '.join(str(error).split())})") from error
    return [(name, info) for name, info in zip(names, infos, strict=True) if info.is_file]
