"""What one sweep found: its settings' summaries, and how each compares with the run's own setting on the same videos.

Computed by `zar_ray.study.ablation`, held by ``run.json`` beside the own setting's summary, and all that tables
and MLflow are made from.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zar_ray.errors import RunError
from zar_ray.results.record import Estimate, RunSummary
from zar_ray.results.statistics import PairedComparison


@dataclass(frozen=True)
class SettingResult:
    """One setting, as an evaluation of it alone would report it.

    Attributes:
        varied: Its dotted options that are not the run's own, as plain values.
        config: All its options, as plain JSON values.
        summary: Its numbers; what a video costs is of the whole pass.
    """

    varied: dict[str, Any]
    config: dict[str, Any]
    summary: RunSummary


@dataclass(frozen=True)
class SweepRow:
    """One setting under one method, in one sweep's table.

    Attributes:
        label: What the sweep calls the setting.
        setting: Its place among all settings; 0 is the run's own.
        accuracy: Top-1 after adaptation over all decisions, each distinct (video, class set) once, failed ones counted
            as wrong; mean average precision of a single multi-label split. None without labels.
        average: The protocol's average over its splits, with their standard deviation where it is a mean; None with
            one split.
        std: See `average`.
        comparison: Against the run's own setting, on the same decisions; None for that setting itself, and where no
            decision is right or wrong.
        p_adjusted: The comparison's p after Holm's correction over the sweep.
        images: Mean distinct images that the setting's views have, which an evaluation of it alone would encode.
        seconds: Mean wall seconds of adaptation a video.
    """

    label: str
    setting: int
    accuracy: Estimate | None
    average: float | None
    std: float | None
    comparison: PairedComparison | None
    p_adjusted: float | None
    images: float | None
    seconds: float | None

    def numbers(self) -> dict[str, float]:
        """The row as flat numbers for MLflow; docs/mlflow.md lists the names."""
        flat: dict[str, float | None] = {"images": self.images, "p_adjusted": self.p_adjusted}
        if self.comparison is not None:
            flat |= {
                "difference": self.comparison.difference,
                "difference_low": self.comparison.interval[0],
                "difference_high": self.comparison.interval[1],
                "difference_gained": self.comparison.gained,
                "difference_lost": self.comparison.lost,
                "difference_p": self.comparison.p_value,
            }
        return {name: float(value) for name, value in flat.items() if value is not None}


@dataclass(frozen=True)
class SweepTable:
    """One sweep under one method.

    Attributes:
        name: The sweep.
        title: Its heading.
        varies: The dotted options that it varies.
        about: What to know when reading it.
        method: The test-time method.
        metric: What `SweepRow.accuracy` is: ``top1`` or ``map``.
        decisions: Over how many labelled decisions.
        rows: Its settings, in its order; the run's own first, where the sweep does not name it.
        verdict: Which setting is better than which, as far as the data tell.
    """

    name: str
    title: str
    varies: tuple[str, ...]
    about: str | None
    method: str
    metric: str
    decisions: int
    rows: tuple[SweepRow, ...]
    verdict: str


@dataclass(frozen=True)
class SweepSummary:
    """A pass over several settings.

    Attributes:
        settings: The settings, the run's own first.
        tables: A table a sweep and method.
        short_side: The short side that all settings were brought to because some need it; None where each keeps the
            one that it would have by itself.
        images_encoded: Mean images that went through the encoder a video, for all settings together.
        seconds: Wall seconds of the last session's pass.
    """

    settings: tuple[SettingResult, ...]
    tables: tuple[SweepTable, ...]
    short_side: int | None
    images_encoded: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values, which `from_json` reads back."""
        return _SUMMARY.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, content: object, place: str = "run.json") -> SweepSummary:
        """Reads what `to_json` made.

        Raises:
            RunError: Something is missing or of the wrong kind; the message names `place`.
        """
        try:
            return _SUMMARY.validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"]) or "sweep"
            raise RunError(f"{place}: is not the summary of a sweep ({at}: {first['msg']})") from None

    def rows_of_settings(self) -> Iterator[tuple[SettingResult, SweepTable, SweepRow]]:
        """Each setting and method once, with the first table and row that it is in."""
        seen: set[tuple[str, int]] = set()
        for table in self.tables:
            for row in table.rows:
                if (table.method, row.setting) not in seen:
                    seen.add((table.method, row.setting))
                    yield self.settings[row.setting], table, row


_SUMMARY: TypeAdapter[SweepSummary] = TypeAdapter(SweepSummary)


def print_sweep(sweep: SweepSummary, console: Console) -> None:
    """Prints a sweep's tables with their verdicts, and what the pass cost."""
    plus_minus = "±" if "utf" in console.encoding.lower() else "+/-"
    for table in sweep.tables:
        console.print()
        console.print(Text(_heading(table), style="bold"), soft_wrap=True)
        columns, rows = _grid(table, plus_minus)
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        for place, name in enumerate(columns):
            grid.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
        for row in rows:
            grid.add_row(*map(Text, row))
        console.print(grid)
        for line in _notes(table):
            console.print(Text(line, style="dim"), soft_wrap=True)
        console.print(Text(table.verdict), soft_wrap=True)
    console.print()
    for line in _costs(sweep):
        console.print(Text(line), soft_wrap=True)


def sweep_markdown(sweep: SweepSummary) -> str:
    """The same as `print_sweep` prints, as Markdown."""
    lines: list[str] = []
    for table in sweep.tables:
        columns, rows = _grid(table, "±")
        lines += [
            f"**{_escaped(_heading(table))}**",
            "",
            "| " + " | ".join(columns) + " |",
            "|---|" + "---:|" * (len(columns) - 1),
            *("| " + " | ".join(map(_escaped, row)) + " |" for row in rows),
            "",
            *(f"{_escaped(line)}  " for line in _notes(table)),
            _escaped(table.verdict),
            "",
        ]
    return "\n".join([*lines, *(f"- {_escaped(line)}" for line in _costs(sweep))]) + "\n"


def sweep_csv(sweep: SweepSummary) -> str:
    """All tables as CSV, one line a sweep, method and setting; shares as fractions."""
    stream = io.StringIO()
    names = ("sweep", "method", "setting", "varied", "metric", "value", "low", "high", "average", "std")
    paired = ("difference", "difference_low", "difference_high", "gained", "lost", "p", "p_adjusted")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*names, *paired, "images", "seconds_adapt"))
    for table in sweep.tables:
        for row in table.rows:
            value, against = row.accuracy, row.comparison
            varied = "; ".join(f"{name}={one}" for name, one in sweep.settings[row.setting].varied.items())
            writer.writerow(
                (
                    *(table.name, table.method, row.label, varied, table.metric),
                    *((value.value, value.low, value.high) if value else ("", "", "")),
                    *("" if one is None else one for one in (row.average, row.std)),
                    *((against.difference, *against.interval, against.gained, against.lost) if against else [""] * 5),
                    against.p_value if against else "",
                    *("" if one is None else one for one in (row.p_adjusted, row.images, row.seconds)),
                )
            )
    return stream.getvalue()


def _heading(table: SweepTable) -> str:
    decisions = f"{table.decisions} decision{'' if table.decisions == 1 else 's'}"
    return f"{table.title} ({table.method}, {decisions})"


def _grid(table: SweepTable, plus_minus: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    metric = {"top1": "top-1 %", "map": "mAP %"}[table.metric]
    splits = any(row.average is not None for row in table.rows)
    paired = any(row.comparison is not None for row in table.rows)
    columns = (
        "setting",
        metric,
        *(("splits",) if splits else ()),
        *(("change", "p adj.") if paired else ()),
        "images",
        "seconds",
    )
    rows = []
    for row in table.rows:
        cells = [row.label, "no labels" if row.accuracy is None else _interval(row.accuracy)]
        if splits:
            spread = "" if row.std is None else f" {plus_minus} {100 * row.std:.1f}"
            cells.append("" if row.average is None else f"{100 * row.average:.1f}{spread}")
        if paired:
            cells += ["own", ""] if row.comparison is None else [_change(row.comparison), _p(row.p_adjusted)]
        cells += [_number(row.images, "{:.1f}"), _number(row.seconds, "{:.3g}")]
        rows.append(tuple(cells))
    return columns, rows


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _change(one: PairedComparison) -> str:
    value, low, high = (round(100 * number, 1) + 0.0 for number in (one.difference, *one.interval))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _notes(table: SweepTable) -> list[str]:
    notes = [] if table.about is None else [" ".join(table.about.split())]
    if any(row.comparison is not None for row in table.rows):
        notes.append(
            "Intervals hold with 95 %; change is against the run's own setting on the same videos, p McNemar's exact p "
            "after Holm's correction over this table."
        )
    return notes


def _costs(sweep: SweepSummary) -> list[str]:
    lines = []
    if sweep.short_side is not None:
        lines.append(
            f"All settings, the evaluation view included, are at a short side of {sweep.short_side} pixels, which some "
            f"of them need; a run of one alone gives the same numbers with --views.short-side {sweep.short_side}."
        )
    if sweep.images_encoded is not None:
        own = max((row.images or 0.0 for table in sweep.tables for row in table.rows if row.setting == 0), default=0.0)
        ratio = f", {sweep.images_encoded / own:.2f} times the own setting's" if own and sweep.images_encoded else ""
        lines.append(
            f"{len(sweep.settings)} distinct settings in one pass: {sweep.images_encoded:.1f} images encoded a video"
            f"{ratio}; {sweep.seconds:.1f} s."
        )
    return lines


def _escaped(text: str) -> str:
    """Text in which Markdown sees no table border, emphasis, link or HTML."""
    return "".join(f"\\{character}" if character in "\\|*_`<[" else character for character in text)
