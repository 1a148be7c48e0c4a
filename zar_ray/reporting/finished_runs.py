"""Finished studies, cell by cell: found below an output folder, and read with what their folders hold."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from zar_ray.data.datasets import known_benchmarks, load_benchmark
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest
from zar_ray.data.protocols import EvaluationSplit
from zar_ray.errors import RunError, ZarError, suggestion
from zar_ray.options.base import fingerprint
from zar_ray.results.folder import IDENTITY, MANIFEST, PREDICTIONS, SUMMARY
from zar_ray.results.record import CaseMetrics, RunSummary
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
    finished: datetime = _LONG_AGO

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
            raise RunError(f"{file}: is not JSON ({_one_line(error)})") from None
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
        raise RunError(f"{storage.path()}: cannot be listed ({_one_line(error)})") from error
    return [(name, info) for name, info in zip(names, infos, strict=True) if info.is_file]


@dataclass(frozen=True)
class RunSplit:
    """One split of a run's protocol.

    Attributes:
        name: What the protocol calls it.
        class_names: The names to choose among; a label id is a position in them.
        video_ids: Its videos; None for all of the run's.
        multi_label: Whether a video may show several classes.
    """

    name: str
    class_names: tuple[str, ...]
    video_ids: frozenset[str] | None
    multi_label: bool


@dataclass(frozen=True, eq=False)
class StudyData:
    """A finished study with all that its folder holds.

    Attributes:
        storage: Its folder.
        study: Its record.
        table: All predictions, one row a (video, case).
        splits: The protocol's splits.
    """

    storage: Storage
    study: FinishedStudy
    table: pa.Table
    splits: tuple[RunSplit, ...]

    @classmethod
    def read(cls, run: str) -> StudyData:
        """Reads a run's folder.

        Args:
            run: The folder or its URI.

        Raises:
            RunError: It holds no finished run, or files that do not belong together.
            ManifestError: The run's manifest cannot be read.
        """
        storage = Storage(run)
        if not storage.exists(SUMMARY):
            raise RunError(f"{storage.path()}: holds no {SUMMARY}; a run has one when its evaluation has ended")
        study = FinishedStudy.parse(storage.read(SUMMARY), storage.path())
        try:
            table = pq.read_table(io.BytesIO(storage.read(PREDICTIONS)))
        except pa.ArrowInvalid as error:
            raise RunError(f"{storage.path(PREDICTIONS)}: is not Parquet ({_one_line(error)})") from None
        return cls(storage, study, table, _splits(storage, study, table))

    @property
    def whole(self) -> RunSummary:
        """What its whole pass found."""
        return self.study.record.whole

    @cached_property
    def manifest(self) -> Manifest:
        """The run's videos.

        Raises:
            ManifestError: It cannot be read.
        """
        return read_manifest(self.storage.path(MANIFEST))

    @cached_property
    def videos(self) -> Mapping[str, VideoRow]:
        """The manifest's rows by video id."""
        return {row.video_id: row for row in self.manifest.rows()}

    @cached_property
    def cells(self) -> tuple[RunData, ...]:
        """Its cells with their predictions."""
        return tuple(RunData(self, one) for one in self.study.runs)


@dataclass(frozen=True, eq=False)
class RunData:
    """One cell of a finished study with its predictions.

    Attributes:
        folder: The study.
        finished: The cell.
    """

    folder: StudyData
    finished: FinishedRun

    @property
    def summary(self) -> RunSummary:
        """What it found."""
        return self.finished.summary

    @property
    def config(self) -> Mapping[str, Any]:
        """Its resolved options, as plain JSON values."""
        return self.finished.config

    @property
    def splits(self) -> tuple[RunSplit, ...]:
        """The protocol's splits."""
        return self.folder.splits

    @cached_property
    def table(self) -> pa.Table:
        """Its predictions, one row a (video, case)."""
        ids = list(dict.fromkeys(case.case_id for case in self.summary.cases))
        return self.folder.table.filter(pc.field("case_id").isin(pa.array(ids, pa.string())))

    def split(self, name: str) -> RunSplit:
        """The split of this name; a run of one split has it by any name.

        Raises:
            RunError: There is none.
        """
        if len(self.splits) == 1:
            return self.splits[0]
        found = next((one for one in self.splits if one.name == name), None)
        if found is None:
            raise RunError(f"{self.folder.study.place}: its metrics name a split {name} that its identity lacks")
        return found

    def rows(self, case: CaseMetrics) -> pa.Table:
        """The predictions of one case, over the videos of its split."""
        rows = self.table.filter(pc.field("case_id") == case.case_id)
        ids = self.split(case.split).video_ids
        return rows if ids is None else rows.filter(pc.field("video_id").isin(pa.array(sorted(ids), pa.string())))


def _splits(storage: Storage, study: FinishedStudy, table: pa.Table) -> tuple[RunSplit, ...]:
    """The run's splits; names from its identity, and of several splits the videos from its protocol."""
    try:
        splits: dict[str, Any] = json.loads(storage.read(IDENTITY))["splits"]
        classes = {name: tuple(one["classes"]) for name, one in splits.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{storage.path(IDENTITY)}: is not the identity of a run ({_one_line(error)})") from None
    multi_label = bool(len(table["labels"].drop_null()))
    if len(splits) == 1:
        return tuple(RunSplit(name, names, None, multi_label) for name, names in classes.items())
    return tuple(
        RunSplit(name, names, _videos_of(storage, study, name, splits[name]["videos"]), multi_label)
        for name, names in classes.items()
    )


def _videos_of(storage: Storage, study: FinishedStudy, split: str, expected: str) -> frozenset[str]:
    """The videos of a protocol's split, held against what the run noted of them."""
    whole = study.record.whole
    if next((one.videos for one in whole.splits if one.name == split), None) == 0:
        return frozenset()
    name, place = whole.dataset, storage.path(MANIFEST)
    try:
        if name not in known_benchmarks():
            raise RunError(f"{place}: has several splits, but {name} is no benchmark here; its file may be missing")
        found: EvaluationSplit
        (found,) = load_benchmark(name).evaluations(
            read_manifest(place), split, legacy_labels=bool(study.config.get("legacy_labels"))
        )
    except ZarError as error:
        raise RunError(f"{storage.path()}: split {split} cannot be made out ({error})") from error
    if fingerprint([found.video_ids, found.labels]) != expected:
        raise RunError(
            f"{storage.path()}: {name}, split {split}, is not what it was when the run was made; "
            "use the version of zar-ray that made it, or evaluate again"
        )
    return frozenset(found.video_ids)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
