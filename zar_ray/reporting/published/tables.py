"""Published results in the project's own form: facts alone, from ``conf/published/NAME.yaml``.

A table has columns (a benchmark and a metric), rows (a method under a setting) and a result in most of their cells.
It also says what in this project measures a row, so that a run can stand beside it.  All values are in per cent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.datasets import known_benchmarks, without_protocol
from zar_ray.errors import ConfigError, suggestion
from zar_ray.options.base import Options, option
from zar_ray.options.layers import conf_dir, leaves, merge, read_yaml, validate

Metric = Literal["top1", "top5", "mAP", "base_top1", "novel_top1", "hm"]


class Result(Options):
    """A printed value."""

    value: float = Field(description="In per cent.")
    std: float | None = option(None, "Standard deviation in points, where one is printed.")


def _result(value: object) -> object:
    """Accepts ``53.3`` for ``{value: 53.3}``."""
    return {"value": value} if isinstance(value, int | float) else value


class Column(Options):
    """A benchmark and a metric."""

    name: str = Field(min_length=1, description="What tables call it.")
    dataset: str = Field(description="The dataset, as papers call it.")
    metric: Metric = Field(description="base_top1, novel_top1 and hm are base to novel's.")
    benchmark: str = Field(description="The benchmark of `zar eval --dataset` that has the published protocol.")
    split: str | None = option(None, "The one split that the result is of; by default all.")
    near: dict[str, str] = option({}, "Benchmarks whose runs are shown all the same, with what differs in them.")
    right_labels: str | None = option(
        None, "What a run without --legacy-labels does differently from the published one."
    )


class Training(Options):
    """Training beyond CLIP's own that a row's weights had.

    ``{benchmark}`` stands for the column's benchmark, such as ``hmdb51-base2novel``, and ``{dataset}`` for what it is
    of, such as ``hmdb51``.
    """

    name: str = Field(min_length=1, description="What it is called.")
    file: str = Field(min_length=1, description="What commands call the file of such weights.")
    make: str = Field(min_length=1, description="Commands that make the file.")
    about: str = Field(description="What is known of the published training.")

    def of(self, benchmark: str) -> tuple[str, str]:
        """The file for a benchmark, and the commands that make it."""
        known = {"benchmark": benchmark, "dataset": without_protocol(benchmark)}
        return self.file.format(**known), self.make.format(**known)


class Recipe(Options):
    """What in this project measures a row."""

    method: str = Field(min_length=1, description="The test-time method.")
    training: str | None = option(None, "One of the table's trainings; none for CLIP's own weights.")
    options: dict[str, Any] = option(
        {}, "Options of `zar eval` that the row has and that are no defaults, nested ones nested."
    )
    seeds: int = option(1, "Over how many seeds the published result is an average.", ge=1)

    def expected(self) -> dict[str, Any]:
        """The options that methods read as the published protocol has them, as plain JSON values."""
        return validate(AdaptationOptions, self.options, "run.options").model_dump(mode="json")


class Row(Options):
    """A method under a setting, with its results by column."""

    method: str = Field(min_length=1, description="The method, as it was published.")
    setting: str = Field(min_length=1, description="What was evaluated, or the setting that an ablation varies.")
    label: str = option("", "What tables call the row; by default the method.")
    frames: int | None = option(None, "Frames of the evaluated view.", ge=1)
    views: str | None = option(None, "Evaluated views as temporal x spatial.")
    pretraining: str | None = option(None, "What the weights were trained on.")
    gflops: str | None = option(None, "Published cost a video, as GFLOPs of a view x views.")
    tuning_views: int | None = option(
        None, "Views that test-time tuning encodes besides, which gflops do not count.", ge=1
    )
    source: str = Field(min_length=1, description="Where the values stand.")
    run: Recipe | None = option(None, "What measures the row here.")
    without_run: str | None = option(None, "Why nothing here measures it.")
    results: dict[str, Annotated[Result, BeforeValidator(_result)]] = Field(
        min_length=1, description="Results by the column's name."
    )

    @model_validator(mode="before")
    @classmethod
    def _labelled(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("label"):
            return {**values, "label": values.get("method", "")}
        return values

    @model_validator(mode="after")
    def _has_run_or_reason(self) -> Self:
        if (self.run is None) == (self.without_run is None):
            raise ValueError(f"{self.label}: give either run or without_run")
        return self

    @property
    def view_gflops(self) -> float | None:
        """The published cost as a number: GFLOPs of all evaluated views; None where none is published."""
        return None if self.gflops is None else prod(map(float, self.gflops.split("x")))

    @property
    def decimals(self) -> int:
        """Decimals that the row's values are printed with, at least one."""
        return max(len(repr(result.value).partition(".")[2]) for result in self.results.values())


class Note(Options):
    """Something to know about published values; an erratum or what a paper leaves open."""

    text: str = Field(min_length=1, description="The note.")
    rows: tuple[str, ...] = option((), "Labels of the rows it is about; none means all.")
    columns: tuple[str, ...] = option((), "Names of the columns it is about; none means all.")

    @property
    def general(self) -> bool:
        """Whether it is about the whole table."""
        return not self.rows and not self.columns

    def is_about(self, row: Row, column: Column) -> bool:
        """Whether it is about a cell."""
        return (not self.rows or row.label in self.rows) and (not self.columns or column.name in self.columns)


class PublishedTable(Options):
    """A published table."""

    name: str = Field(min_length=1, description="What `zar report table` calls it; the file's name.")
    title: str = Field(min_length=1, description="Its heading.")
    model: str = Field(min_length=1, description="The open_clip name of the architecture, without -quickgelu.")
    input_size: int = Field(ge=1, description="Pixels along a side of what the model reads.")
    varies: str | None = option(None, "The dotted option that an ablation varies.")
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    trainings: dict[str, Training] = option({}, "Trainings that rows name.")
    notes: tuple[Note, ...] = option((), "Errata and open questions.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        columns = [column.name for column in self.columns]
        labels = [row.label for row in self.rows]
        for what, names in (("column", columns), ("row", labels)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {what}s are called {twice[0]}")
        for column in self.columns:
            _check(column.name, (column.benchmark, *column.near), known_benchmarks())
        for row in self.rows:
            _check(f"{row.label}, results", row.results, columns)
            if row.run is None:
                continue
            _check(f"{row.label}, training", [row.run.training] if row.run.training else [], self.trainings)
            try:
                expected = row.run.expected()
            except ConfigError as error:
                raise ValueError(f"{row.label}: {error}") from error
            _check("varies", [self.varies] if self.varies else [], leaves(expected))
        for note in self.notes:
            _check("notes, rows", note.rows, labels)
            _check("notes, columns", note.columns, columns)
        return self

    def cells(self) -> list[tuple[Row, Column, Result]]:
        """The cells that hold a result, row by row."""
        return [
            (row, column, row.results[column.name])
            for row in self.rows
            for column in self.columns
            if column.name in row.results
        ]


def _check(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(f'{where}: no "{name}"{suggestion(name, known)}')


def default_options(over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options that methods read, as plain JSON values: the defaults, and `over` laid on them."""
    return merge(AdaptationOptions().model_dump(mode="json"), dict(over or {}))


def known_tables() -> tuple[str, ...]:
    """The names of the shipped tables, in alphabetical order."""
    return tuple(sorted(path.stem for path in (conf_dir() / "published").glob("*.yaml")))


@cache
def load_table(name: str) -> PublishedTable:
    """Reads a published table, once a process.

    Raises:
        ConfigError: There is no such table, or its file is wrong; one line.
    """
    if name not in known_tables():
        raise ConfigError(f'no published table "{name}"{suggestion(name, known_tables())}')
    return read_table(conf_dir() / "published" / f"{name}.yaml")


def read_table(path: Path) -> PublishedTable:
    """Reads a table's file; the table is called as the file.

    Raises:
        ConfigError: It is missing or wrong; one line.
    """
    table = validate(PublishedTable, {"name": path.stem, **read_yaml(path)}, str(path))
    if table.name != path.stem:
        raise ConfigError(f"{path}: is named {table.name} inside; the name must be the file's")
    return table
