"""What one study found: its cells, and the tables that hold them against each other on the same videos.

A cell is one model under one setting and seed, as an evaluation of these alone would report it; it holds one case a
method and split.  ``run.json`` holds the record, and all that is printed, drawn or sent to MLflow is made from it.
Records are read from the folders of finished studies, and found below an output folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zar_ray.errors import RunError
from zar_ray.results.folder import SUMMARY
from zar_ray.results.record import PairedComparison, RunSummary, flat_numbers
from zar_ray.storage import Storage
from zar_ray.untrusted import parse_json

REPLICATES = ("seed", "training seed")
"""Axes whose cells repeat a measurement: tables have their mean and spread, and no row of their own."""

CORRUPTION = "corruption"
"""The axis of what is done to the frames."""


def label_of(coordinates: Mapping[str, str]) -> str:
    """Labels by axis in a line; models and settings need no word in front."""
    return ", ".join(
        label if axis in ("model", "setting") else f"{axis} {label}" for axis, label in coordinates.items()
    )


@dataclass(frozen=True)
class Cell:
    """One model under one setting and seed.

    Attributes:
        coordinates: Its label on each axis of the study, by the axis's name: ``model``, ``share`` of a mixture,
            ``corruption``, ``setting``, ``seed``, ``shots``, ``training seed``. An axis with one label is left out.
        varied: Its dotted options that are not the study's own, as plain JSON values.
        config: All its options, as plain JSON values: what an evaluation of it alone would be given.
        summary: Its numbers. What a video costs is of the model, for all of the study's settings together.
    """

    coordinates: dict[str, str]
    varied: dict[str, Any]
    config: dict[str, Any]
    summary: RunSummary

    @property
    def label(self) -> str:
        """All its coordinates in a line; empty in a study of one cell."""
        return label_of(self.coordinates)


@dataclass(frozen=True)
class Score:
    """Top-1, or of a multi-label split mean average precision, after adaptation, as a fraction.

    Attributes:
        value: It, failed videos counted as wrong; over several replicates their mean.
        low: Lower end of its 95 % interval over the videos; None of an average over splits.
        high: Its upper end.
        std: Standard deviation between replicates, n - 1 in its denominator; None with one. Of an average over splits
            with one replicate that between the splits, dividing by their number, as papers print it.
        replicates: The value of each replicate.
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    replicates: tuple[float, ...] = ()

    def numbers(self, name: str) -> dict[str, object]:
        """It for `flat_numbers`: ``NAME``, and ``NAME_low``, ``NAME_high`` and ``NAME_std`` as far as there are any."""
        return {name: self.value, **{f"{name}_{end}": getattr(self, end) for end in ("low", "high", "std")}}


@dataclass(frozen=True)
class TableRow:
    """A model and setting under one method, over all replicates.

    Attributes:
        labels: What tells it from its table's other rows, by axis; `method` among them where there are several.
        cells: The places of its cells in the study, one a replicate.
        scores: Its score on each split that has labels.
        average: The protocol's average over its splits; None with one split.
        comparison: Against the table's reference row of the same method, on the same videos; None for a reference, and
            where no decision is right or wrong.
        p_adjusted: The comparison's p after Holm's correction over the table.
        images: Mean distinct images a video that the method looks at or encodes itself.
        text_tokens: Mean tokens a video of the contexts that it puts through the text tower.
        gradient_tokens: Mean tokens a video that its gradients go back through there.
        seconds: Mean wall seconds a video of encoding these and of adapting, as if the method ran alone.
        gflops: What these images take of the encoder and tuning of the text tower, as papers count; None of methods
            that take gradients through the encoder.
        peak_memory: The most bytes that a worker had in use meanwhile, all models of the study included.
        finished: Decisions, over all replicates and splits.
        gain: After adaptation against before it; None of a method that adapts nothing, and of several replicates.
        trust: Its measures after adaptation by their names (`zar_ray.results.trust.MEASURES`), and with ``_before``
            those before it; of several splits the means over these.
    """

    labels: dict[str, str]
    method: str
    cells: tuple[int, ...]
    scores: dict[str, Score]
    average: Score | None
    comparison: PairedComparison | None
    p_adjusted: float | None
    images: float | None
    text_tokens: float | None
    gradient_tokens: float | None
    seconds: float | None
    gflops: float | None
    peak_memory: int | None
    finished: int
    gain: PairedComparison | None = None
    trust: dict[str, Score] = field(default_factory=dict)

    @property
    def main(self) -> Score | None:
        """The average over the splits, or the only split's score."""
        return self.average or next(iter(self.scores.values()), None)

    def numbers(self) -> dict[str, float]:
        """The row as flat numbers for MLflow; docs/mlflow.md lists the names."""
        costs = ("images", "text_tokens", "gradient_tokens", "seconds", "gflops", "peak_memory", "p_adjusted")
        values: dict[str, object] = {name: getattr(self, name) for name in costs}
        if (main := self.main) is not None:
            values |= main.numbers("accuracy")
        if (one := self.comparison) is not None:
            values |= {**one.numbers("difference"), "difference_gained": one.gained, "difference_lost": one.lost}
        if self.gain is not None:
            values |= self.gain.numbers("gain")
        for name, score in self.trust.items():
            values |= score.numbers(name)
        return flat_numbers(values)


@dataclass(frozen=True)
class StudyTable:
    """Rows that are held against each other: a sweep's settings, or the study's models.

    Attributes:
        name: The sweep's name, or ``study`` for models, mixtures and seeds under the study's own setting.
        varies: The axes, and of a sweep the dotted options, that it varies.
        about: What to know when reading it.
        metric: What scores are: ``top1`` or ``map``.
        decisions: Over how many labelled decisions a row.
        reference: What comparisons are against, in words; None without comparisons.
        verdict: Which row is better than which, as far as the data tell, a line a method and model.
    """

    name: str
    title: str
    varies: tuple[str, ...]
    about: str | None
    metric: str
    decisions: int
    reference: str | None
    rows: tuple[TableRow, ...]
    verdict: tuple[str, ...]


@dataclass(frozen=True)
class ShiftRow:
    """One method, and model or setting, over all corruptions.

    Attributes:
        labels: What tells it from the others of its method.
        scores: Its score by corruption and severity, and on frames as they are.
        errors: By corruption, its errors over all severities by the reference's: the corruption error.
        mce: The mean of these; None where one is not defined, as of a reference without errors.
        relative_mce: The same of how much the errors grow from those on frames as they are; None without these.
    """

    labels: dict[str, str]
    method: str
    scores: dict[str, float]
    errors: dict[str, float | None]
    mce: float | None
    relative_mce: float | None


@dataclass(frozen=True)
class ShiftTable:
    """What corruptions do to methods.

    Attributes:
        name: The name of the table that it is made of.
        metric: What scores are.
        reference: The case that errors are relative to, in words.
    """

    name: str
    title: str
    metric: str
    reference: str
    rows: tuple[ShiftRow, ...]


@dataclass(frozen=True)
class StudyRecord:
    """A finished study.

    Attributes:
        whole: The first cell's summary with the counts, failures and costs of the whole pass.
        axes: The names of the axes that vary, in the order of `Cell.coordinates`; empty in a study of one cell.
        tables: What holds cells against each other; none in a study of one cell.
        short_side: The short side that all settings of the first model were brought to because some need it; None where
            each keeps the one that it would have by itself.
        seconds: Wall seconds of the last session's pass.
        shifts: What corruptions do, of each table over several.
    """

    whole: RunSummary
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    tables: tuple[StudyTable, ...]
    short_side: int | None
    seconds: float
    shifts: tuple[ShiftTable, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values, which `from_json` reads back."""
        return _RECORD.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, content: object, place: str = "run.json") -> StudyRecord:
        """Reads what `to_json` made.

        Raises:
            RunError: Something is missing or of the wrong kind; the message names `place`.
        """
        try:
            return _RECORD.validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"]) or "study"
            raise RunError(f"{place}: is not the record of a run ({at}: {first['msg']})") from None


_RECORD: TypeAdapter[StudyRecord] = TypeAdapter(StudyRecord)

_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, eq=False)
class FinishedStudy:
    """A study that has ended, as ``run.json`` holds it.

    Attributes:
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
        """Reads the content of the run.json of a run's folder, and keeps when it was written, where that is known.

        Raises:
            RunError: It is not the record of a run, or that of an earlier version.
        """
        file = f"{place}/{SUMMARY}"
        try:
            found = parse_json(content)
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


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One cell of a study that has ended: the evaluation of one model under one setting and seed."""

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
    """The finished runs in a folder's sub-folders, and in the folder itself, which need not exist.

    Deeper folders are not searched: MLflow keeps copies of run.json there.

    Raises:
        RunError: The folder cannot be listed.
    """
    storage = Storage(output)
    names = ["", *storage.folders()]
    states = storage.states([f"{name}/{SUMMARY}" if name else SUMMARY for name in names])
    runs, broken = [], []
    for name, state in zip(names, states, strict=True):
        if state is not None:
            folder = storage.child(name)
            written = datetime.fromtimestamp(state.mtime_ns / 1e9, UTC)
            try:
                runs += FinishedStudy.parse(folder.read(SUMMARY), folder.path(), written).runs
            except RunError as error:
                broken.append(str(error))
    return FoundRuns(tuple(runs), tuple(broken))
