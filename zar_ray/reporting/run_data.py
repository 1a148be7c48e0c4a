"""Finished studies, cell by cell, with what their folders hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zar_ray.data.datasets import known_benchmarks, load_benchmark
from zar_ray.data.held_out import hold_out
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest
from zar_ray.data.protocols import EvaluationSplit
from zar_ray.errors import ManifestError, RunError, ZarError, suggestion
from zar_ray.options.base import fingerprint
from zar_ray.results.folder import IDENTITY, MANIFEST
from zar_ray.results.record import CaseMetrics
from zar_ray.results.stored_rows import StoredRows
from zar_ray.results.study_record import FinishedRun, FinishedStudy
from zar_ray.storage import Storage, is_uri
from zar_ray.untrusted import parse_json


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

    @property
    def inside(self) -> pc.Expression | None:
        """What holds of the rows of its videos; None for all."""
        return None if self.video_ids is None else of_videos(sorted(self.video_ids))


def of_videos(video_ids: Sequence[str] | pa.Array) -> pc.Expression:
    """What holds of the rows of these videos."""
    return pc.field("video_id").isin(pa.array(video_ids, pa.string()))


@dataclass(frozen=True, eq=False)
class StudyData(FinishedStudy):
    """A finished study with all that its folder holds; of predictions, one row a (video, case), what is asked for."""

    storage: Storage
    stored: StoredRows
    splits: tuple[RunSplit, ...]

    @classmethod
    def read(cls, run: str) -> StudyData:
        """Reads a run's folder, which may be a URI.

        Raises:
            RunError: It holds no finished run, or files that do not belong together.
            ManifestError: The run's manifest cannot be read.
        """
        storage = Storage(run)
        study = FinishedStudy.open(storage)
        stored = StoredRows(storage)
        return cls(**vars(study), storage=storage, stored=stored, splits=_splits(storage, study, stored))

    def videos(self, video_ids: Sequence[str]) -> dict[str, VideoRow]:
        """The rows of some videos in the run's manifest.

        Raises:
            ManifestError: It cannot be read.
            RunError: It lacks one of them; the message suggests the nearest.
        """
        manifest = self._manifest
        try:
            kept = manifest.keep(video_ids)
        except ManifestError:
            known = manifest.table["video_id"].to_pylist()
            absent = min(set(video_ids).difference(known))
            raise RunError(f'{self.storage.path()}: has no video "{absent}"{suggestion(absent, known)}') from None
        return {row.video_id: row for row in kept.rows()}

    def paths(self, video_ids: pa.Array) -> list[str | None]:
        """Where some videos lie as files by themselves; None for what is in a tar file, at a URI, or unknown.

        Raises:
            ManifestError: The run's manifest cannot be read.
        """
        table = self._manifest.table.select(["video_id", "path", "member"])
        # A few are looked for in the manifest's million, not its million among them.
        few = table.filter(pc.call_function("is_in", [table["video_id"]], pc.SetLookupOptions(video_ids)))
        rows = few.take(pc.call_function("index_in", [video_ids], pc.SetLookupOptions(few["video_id"])))
        pairs = zip(rows["path"].to_pylist(), rows["member"].to_pylist(), strict=True)
        return [None if path is None or member is not None or is_uri(path) else path for path, member in pairs]

    @cached_property
    def _manifest(self) -> Manifest:
        return read_manifest(self.storage.path(MANIFEST))

    @cached_property
    def cells(self) -> tuple[RunData, ...]:
        """Its cells with their predictions."""
        return tuple(RunData(self, number) for number in range(len(self.record.cells)))


@dataclass(frozen=True, eq=False)
class RunData(FinishedRun):
    """One cell of a finished study with its predictions."""

    study: StudyData

    @property
    def splits(self) -> tuple[RunSplit, ...]:
        """The protocol's splits."""
        return self.study.splits

    @cached_property
    def stored(self) -> StoredRows:
        """Its predictions, one row a (video, case)."""
        return self.study.stored.of(dict.fromkeys(case.case_id for case in self.summary.cases))

    def split(self, name: str) -> RunSplit:
        """The split of this name; a run of one split has it by any name.

        Raises:
            RunError: There is none.
        """
        if len(self.splits) == 1:
            return self.splits[0]
        found = next((one for one in self.splits if one.name == name), None)
        if found is None:
            raise RunError(f"{self.study.place}: its metrics name a split {name} that its identity lacks")
        return found

    def title(self, case: CaseMetrics) -> str:
        """What one of its cases is called among all of the study's."""
        title = case.method if len(self.splits) == 1 else f"Split {case.split}: {case.method}"
        same = sum((one.split, one.method) == (case.split, case.method) for one in self.summary.cases)
        if same > 1:
            title += f" ({case.case_id})"
        return f"{self.cell.label}: {title}" if self.cell.label else title

    def rows(self, case: CaseMetrics, columns: Sequence[str]) -> pa.Table:
        """Some columns, ``video_id`` among them, of the predictions of one case, over the videos of its split."""
        return self.stored.of([case.case_id]).read(columns, self.split(case.split).inside)


def _splits(storage: Storage, study: FinishedStudy, stored: StoredRows) -> tuple[RunSplit, ...]:
    """The run's splits; names from its identity, and of several splits the videos from its protocol."""
    try:
        splits: dict[str, Any] = parse_json(storage.read(IDENTITY))["splits"]
        classes = {name: tuple(one["classes"]) for name, one in splits.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{storage.path(IDENTITY)}: is not the identity of a run ({' '.join(str(error).split())})"
        ) from None
    multi_label = any(len(table) for table in stored.pieces(["labels"], pc.field("labels").is_valid()))
    found = []
    for name, names in classes.items():
        ids = None if len(splits) == 1 else _videos_of(storage, study, name, splits[name])
        found.append(RunSplit(name, names, ids, multi_label))
    return tuple(found)


def _videos_of(storage: Storage, study: FinishedStudy, split: str, known: Mapping[str, Any]) -> frozenset[str]:
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
    found = hold_out(found, known.get("held_out", ()))
    if fingerprint([found.video_ids, found.labels]) != known["videos"]:
        raise RunError(
            f"{storage.path()}: {name}, split {split}, is not what it was when the run was made; "
            "use the version of zar-ray that made it, or evaluate again"
        )
    return frozenset(found.video_ids)
