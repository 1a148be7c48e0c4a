"""Finished studies, cell by cell, as their ``run.json`` holds them, and those below an output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from zar_ray.errors import RunError, suggestion
from zar_ray.results.folder import SUMMARY
from zar_ray.results.record import RunSummary
from zar_ray.results.study_record import Cell, StudyRecord
from zar_ray.storage import Storage

_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, eq=False)
class FinishedStudy:
    """A study that has ended, as ``run.json`` holds it.

    Attributes:
        place: Its folder.
        record: What it found.
        config: Its resolved options, as plain JSON values.
        provenance: Versions and host that it ran with.
        finished: When it ended; the beginning of time where the file system does not say.
    """

    place: str
    record: StudyRecord
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    finished: datetime

    @classmethod
    def open(cls, folder: Storage) -> FinishedStudy:
        """Reads a study's folder.

        Raises:
            RunError: It holds no finished study, or one of an earlier version.
        """
        if not folder.exists(SUMMARY):
            raise RunError(f"{folder.path()}: holds no {SUMMARY}; a run has one when its evaluation has ended")
        return cls.parse(folder.read(SUMMARY), folder.path())

    @classmethod
    def parse(cls, content: bytes, place: str, finished: datetime | None = None) -> FinishedStudy:
        """Reads the content of a run.json.

        Args:
            content: The file's bytes.
            place: The run's folder.
            finished: When it was written, where that is known.

        Raises:
            RunError: It is not the record of a run, or that of an earlier version.
        """
        file = f"{place}/{SUMMARY}"
        try:
            found = json.loads(content)
        except ValueError as error:
            raise RunError(f"{file}: is not JSON ({' '.join(str(error).split())})") from None
        if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
            raise RunError(f"{file}: is not the record of a run (it has no config)")
        if "study" not in found:
            raise RunError(f"{file}: was made by an earlier version; run it again")
        record = StudyRecord.from_json(found["study"], file)
        return cls(place, record, found["config"], found.get("provenance") or {}, finished or _LONG_AGO)

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """Its cells."""
        return tuple(FinishedRun(self, number) for number in range(len(self.record.cells)))

    def run(self, label: str) -> FinishedRun:
        """The cell of a label.

        Raises:
            RunError: There is none.
        """
        labels = [cell.label for cell in self.record.cells]
        if label not in labels:
            raise RunError(f'{self.place}: has no cell "{label}"{suggestion(label, labels)}')
        return self.runs[labels.index(label)]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One cell of a study that has ended: the evaluation of one model under one setting and seed.

    Attributes:
        study: The study.
        number: The cell's place in it.
    """

    study: FinishedStudy
    number: int

    @property
    def cell(self) -> Cell:
        """The cell."""
        return self.study.record.cells[self.number]

    @property
    def place(self) -> str:
        """The study's folder, with the cell's label in brackets where there are several."""
        return f"{self.study.place}[{self.cell.label}]" if self.cell.label else self.study.place

    @property
    def name(self) -> str:
        """The study's name, with the cell's label in brackets where there are several."""
        name = self.study.record.whole.name
        return f"{name}[{self.cell.label}]" if self.cell.label else name

    @property
    def summary(self) -> RunSummary:
        """What it found."""
        return self.cell.summary

    @property
    def config(self) -> Mapping[str, Any]:
        """Its resolved options, as plain JSON values."""
        return self.cell.config

    @property
    def finished(self) -> datetime:
        """When the study ended."""
        return self.study.finished


@dataclass(frozen=True)
class FoundRuns:
    """The runs of an output folder.

    Attributes:
        runs: All cells of the finished ones, in the order of their folders' names.
        broken: Why others cannot be read, a line each.
    """

    runs: tuple[FinishedRun, ...]
    broken: tuple[str, ...]


def find_runs(output: str) -> FoundRuns:
    """The finished runs in a folder's sub-folders, and in the folder itself.

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
            runs += FinishedStudy.parse(folder.read(SUMMARY), folder.path(), info.mtime).runs
        except RunError as error:
            broken.append(str(error))
    return FoundRuns(tuple(runs), tuple(broken))


def _run_files(storage: Storage) -> list[tuple[str, FileInfo]]:
    try:
        files, root = FileSystem.from_uri(storage.location)
        listed = files.get_file_info(FileSelector(root, allow_not_found=True))
        names = ["", *sorted(info.base_name for info in listed if info.type == FileType.Directory)]
        infos = files.get_file_info([f"{root}/{name}/{SUMMARY}" if name else f"{root}/{SUMMARY}" for name in names])
    except OSError as error:
        raise RunError(f"{storage.path()}: cannot be listed ({' '.join(str(error).split())})") from error
    return [(name, info) for name, info in zip(names, infos, strict=True) if info.is_file]
