"""Published numbers beside the user's own runs, for a terminal, as Markdown and as CSV: `zar report table`.

What a reader must know stands below the table under a mark: ``r1`` a run, ``d1`` what differs from the published
protocol, ``c1`` the command that fills an empty cell, ``n1`` a note on a published number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zar_ray.reporting.finished_runs import FinishedRun, find_runs
from zar_ray.reporting.published import Column, PublishedTable, Result, Row, load_table
from zar_ray.reporting.published_match import Measured, fill_command, measure, training_commands

Form = Literal["terminal", "markdown", "csv"]

_HEADINGS = ("", "benchmark", "published", "measured", "points", "see")
_CSV_COLUMNS = (
    "table",
    "method",
    "setting",
    "dataset",
    "metric",
    "benchmark",
    "frames",
    "views",
    "pretraining",
    "gflops",
    "source",
    "published",
    "published_std",
    "measured",
    "measured_std",
    "difference",
    "run",
    "protocol_differences",
    "notes",
    "command",
    "without_run",
)


@dataclass(frozen=True)
class Cell:
    """A published result and what stands beside it.

    Attributes:
        row: Its row.
        column: Its column.
        published: The published value.
        measured: The nearest run's value; None where no run measures it.
        command: The command that fills the cell; None where nothing here does.
    """

    row: Row
    column: Column
    published: Result
    measured: Measured | None
    command: str | None

    @property
    def difference(self) -> float | None:
        """Measured minus published, in points; None without a run."""
        return None if self.measured is None else self.measured.value - self.published.value


def compare(table: PublishedTable, runs: Sequence[FinishedRun], output: str | None = None) -> tuple[Cell, ...]:
    """Puts runs beside a table's results, row by row.

    Args:
        table: The published table.
        runs: Finished runs, of anything.
        output: Where the commands that fill cells put their runs, if not in the default folder.
    """
    return tuple(
        Cell(row, column, result, measure(table, row, column, runs), fill_command(table, row, column, output))
        for row, column, result in table.cells()
    )


def report_table(name: str, output: str, form: Form, console: Console, more: Sequence[FinishedRun] = ()) -> None:
    """Prints a published table beside the runs of an output folder.

    Args:
        name: The table, such as ``zar-table1``.
        output: The folder or URI that holds all runs; one that is not there holds none.
        form: A table for people, Markdown, or CSV with one line a published result and nothing else.
        console: Where to print.
        more: Runs from elsewhere.

    Raises:
        ConfigError: There is no such table, or its file is wrong.
        RunError: The folder cannot be listed.
    """
    table = load_table(name)
    found = find_runs(output)
    cells = compare(table, (*found.runs, *more), output)
    if form == "csv":
        console.out(csv_table(table, cells), end="", highlight=False)
        for line in found.broken:
            # Standard output holds the CSV alone.
            Console(stderr=True, highlight=False).print(Text(f"skipped: {line}"), soft_wrap=True)
    elif form == "markdown":
        console.out(markdown_table(table, cells, found.broken), end="", highlight=False)
    else:
        print_table(table, cells, console, found.broken)


def print_table(table: PublishedTable, cells: Sequence[Cell], console: Console, broken: Sequence[str] = ()) -> None:
    """Prints a comparison in a terminal of 80 columns or more."""
    sheet = _sheet(table, cells, broken, plus_minus=_plus_minus(console))
    console.print(Text(table.title, style="bold"), soft_wrap=True)
    grid = Table(*_HEADINGS, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for place in (0, 1):
        grid.columns[place].no_wrap = True
    for place in (2, 3, 4):
        grid.columns[place].justify = "right"
        grid.columns[place].no_wrap = True
    label = None
    for line in sheet.lines:
        grid.add_row(*(Text(cell) for cell in ("" if line[0] == label else line[0], *line[1:])))
        label = line[0]
    console.print(grid)
    for section in sheet.sections:
        console.print()
        console.print(Text(section.title, style="bold"), soft_wrap=True)
        width = max(len(item.mark) for item in section.items)
        for item in section.items:
            console.print(Text(f"  {item.mark:<{width}}  {item.text}"), soft_wrap=True)


def markdown_table(table: PublishedTable, cells: Sequence[Cell], broken: Sequence[str] = ()) -> str:
    """A comparison as Markdown."""
    sheet = _sheet(table, cells, broken)
    headings = ("row", *_HEADINGS[1:])
    lines = [
        f"**{_escaped(table.title)}**",
        "",
        "| " + " | ".join(headings) + " |",
        "|---|---|---:|---:|---:|---|",
        *("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in sheet.lines),
    ]
    for section in sheet.sections:
        lines += ["", f"**{section.title}**", ""]
        for item in section.items:
            text = f"`{item.text}`" if item.is_command else _escaped(item.text)
            lines.append(f"- {item.mark}: {text}" if item.mark != "-" else f"- {text}")
    return "\n".join(lines) + "\n"


def csv_table(table: PublishedTable, cells: Sequence[Cell]) -> str:
    """A comparison as CSV, one line a published result; what several things go into is joined by "; "."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        row, column, measured = cell.row, cell.column, cell.measured
        decimals = row.decimals
        writer.writerow(
            {
                "table": table.name,
                "method": row.method,
                "setting": row.setting,
                "dataset": column.dataset,
                "metric": column.metric,
                "benchmark": column.benchmark,
                "frames": row.frames,
                "views": row.views,
                "pretraining": row.pretraining,
                "gflops": row.gflops,
                "source": row.source,
                "published": _number(cell.published.value, decimals),
                "published_std": _number(cell.published.std, decimals),
                "measured": _number(measured.value if measured else None, decimals),
                "measured_std": _number(measured.std if measured else None, decimals),
                "difference": _signed(cell.difference, decimals),
                "run": measured.run.place if measured else None,
                "protocol_differences": "; ".join(measured.differences) if measured else None,
                "notes": "; ".join(note.text for note in table.notes if note.is_about(row, column)),
                "command": None if measured else cell.command,
                "without_run": row.without_run,
            }
        )
    return stream.getvalue()


@dataclass(frozen=True)
class _Item:
    mark: str
    text: str
    is_command: bool = False


@dataclass(frozen=True)
class _Section:
    title: str
    items: tuple[_Item, ...]


@dataclass(frozen=True)
class _Sheet:
    """What both the terminal and Markdown show."""

    lines: tuple[tuple[str, ...], ...]
    sections: tuple[_Section, ...]


@dataclass
class _Marks:
    """Numbers texts as they come, each once."""

    letter: str
    texts: dict[str, str] = field(default_factory=dict)

    def of(self, text: str) -> str:
        return self.texts.setdefault(text, f"{self.letter}{len(self.texts) + 1}")

    def items(self, commands: frozenset[str] = frozenset()) -> tuple[_Item, ...]:
        return tuple(_Item(mark, text, text in commands) for text, mark in self.texts.items())


def _sheet(table: PublishedTable, cells: Sequence[Cell], broken: Sequence[str], plus_minus: str = "±") -> _Sheet:
    runs, differences, empty, notes = (_Marks(letter) for letter in "rdcn")
    lines = []
    for cell in cells:
        row, column, measured = cell.row, cell.column, cell.measured
        decimals = row.decimals
        about = [notes.of(note.text) for note in table.notes if not note.general and note.is_about(row, column)]
        published = _with_std(cell.published.value, cell.published.std, decimals, plus_minus)
        value, points = "", ""
        if measured is not None:
            see = [runs.of(_run_text(measured.run)), *(differences.of(text) for text in measured.differences)]
            value = _with_std(measured.value, measured.std, decimals, plus_minus)
            points = _signed(cell.difference, decimals)
        else:
            see = [empty.of(cell.command or str(row.without_run))]
        lines.append((row.label, column.name, published, value, points, " ".join((*see, *about))))
    commands = frozenset(cell.command for cell in cells if cell.command is not None)
    general = tuple(_Item("-", note.text) for note in table.notes if note.general)
    sections = (
        _Section("Runs", runs.items()),
        _Section("What differs from the published protocol", differences.items()),
        _Section("Empty cells, and what fills them", empty.items(commands)),
        _Section("Weights that these commands name", _weights(table, cells)),
        _Section("Cost of the image encoder a video", _costs(table, cells, runs)),
        _Section("Notes on the published numbers", (*notes.items(), *general)),
        _Section("Skipped", tuple(_Item("-", line) for line in broken)),
    )
    return _Sheet(tuple(lines), tuple(section for section in sections if section.items))


def _run_text(run: FinishedRun) -> str:
    summary = run.summary
    return f"{summary.name}: {summary.model} ({summary.model_fingerprint}), seed {summary.seed}, {run.place}"


def _weights(table: PublishedTable, cells: Sequence[Cell]) -> tuple[_Item, ...]:
    made = {}
    for cell in cells:
        commands = training_commands(table, cell.row, cell.column) if cell.measured is None else None
        if commands is not None:
            made[commands[0]] = commands[1]
    return tuple(_Item(file, text) for file, text in made.items())


def _costs(table: PublishedTable, cells: Sequence[Cell], runs: _Marks) -> tuple[_Item, ...]:
    """What test-time tuning costs, which published figures leave out, and what runs needed."""
    items = []
    for row in table.rows:
        view = row.view_gflops
        if view is None or row.tuning_views is None or row.frames is None:
            continue
        text = (
            f"{row.label}: {view:,.0f} GFLOPs as published, for the evaluation view alone; "
            f"{view * (1 + row.tuning_views):,.0f} with the {row.tuning_views} views of tuning, each encoded by itself"
        )
        measured = {
            runs.of(_run_text(cell.measured.run)): cell.measured.run.summary.costs.images_encoded_mean
            for cell in cells
            if cell.row == row and cell.measured is not None
        }
        for mark, images in measured.items():
            if images:
                text += f"; {mark} encoded {images:.4g} images, {images * view / row.frames:,.0f} GFLOPs"
        items.append(_Item("-", text))
    return tuple(items)


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _signed(value: float | None, decimals: int) -> str:
    # Adding zero turns a rounded -0.0 into 0.0, which would otherwise print its sign.
    return "" if value is None else f"{round(value, decimals) + 0.0:+.{decimals}f}"


def _with_std(value: float, std: float | None, decimals: int, plus_minus: str) -> str:
    spread = "" if std is None else f" {plus_minus} {_number(std, decimals)}"
    return f"{_number(value, decimals)}{spread}"


def _plus_minus(console: Console) -> str:
    try:
        "±".encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return "+-"
    return "±"


def _escaped(text: str) -> str:
    """Text in which Markdown sees no table border, emphasis, link or HTML."""
    return "".join(f"\\{character}" if character in "\\|*_`<[" else character for character in text)
