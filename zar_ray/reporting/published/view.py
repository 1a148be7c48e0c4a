"""Published numbers beside the user's own runs, for a terminal, as Markdown, as LaTeX and as CSV: `zar report table`.

What a reader must know stands below the table under a mark: ``r1`` a run, ``d1`` what differs from the published
protocol, ``t1`` what tuning changed, ``c1`` the command that fills an empty cell, ``n1`` a note on a published number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.text import Text

from zar_ray.reporting.blocks import Block, Form, Note, lines_block, show
from zar_ray.reporting.numbers import digits, fixed, gflops, interval, p_value, percent, plus_minus, with_std
from zar_ray.reporting.published import matching
from zar_ray.reporting.published.matching import Measured, fill_command, training_commands
from zar_ray.reporting.published.tables import Column, PublishedTable, Result, Row, load_table
from zar_ray.results.study_record import FinishedRun, find_runs

_COLUMNS = ("row", "benchmark", "published", "measured", "points", "see")


@dataclass(frozen=True)
class Cell:
    """A published result and the nearest run's value for it, which is None where no run measures it.

    Runs of its `command` go to `output`, if not to the default folder.
    """

    table: PublishedTable
    row: Row
    column: Column
    published: Result
    measured: Measured | None
    output: str | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus published, in points; None without a run."""
        return None if self.measured is None else self.measured.value - self.published.value

    @property
    def command(self) -> str | None:
        """The command that fills the cell; None where nothing here does."""
        return fill_command(self.table, self.row, self.column, self.output)


def compare(table: PublishedTable, runs: Sequence[FinishedRun], output: str | None = None) -> tuple[Cell, ...]:
    """Puts finished runs, of anything, beside a table's results, row by row; of `output` see `Cell`."""
    return tuple(
        Cell(table, row, column, result, matching.measure(table, row, column, runs), output)
        for row, column, result in table.cells()
    )


def report_table(
    name: str,
    output: str,
    form: Form,
    console: Console,
    more: Sequence[FinishedRun] = (),
    told_output: str | None = None,
) -> None:
    """Prints a published table beside the runs of an output folder.

    Args:
        name: The table, such as ``zar-table1``.
        output: The folder or URI that holds all runs; one that is not there holds none.
        form: Tables for people, documents or papers, or CSV with one line a published result and nothing else.
        console: Where to print.
        more: Runs from elsewhere.
        told_output: Where the commands that fill cells put their runs, if not in the default folder.

    Raises:
        ConfigError: There is no such table, or its file is wrong.
        RunError: The folder cannot be listed.
    """
    table = load_table(name)
    found = find_runs(output)
    runs = (*found.runs, *more)
    cells = compare(table, runs, told_output)
    skipped = [*found.broken, *filter(None, (matching.why_another_model(table, run) for run in runs))]
    if form == "csv":
        # What several things go into is joined by "; ".
        show([lines_block([_values(cell) for cell in cells])], form, console)
        for line in skipped:
            # Standard output holds the CSV alone.
            Console(stderr=True, highlight=False).print(Text(f"skipped: {line}"), soft_wrap=True)
    else:
        signs = plus_minus(console.encoding) if form == "terminal" else "±"
        first, *below = table_blocks(table, cells, skipped, signs)
        # A paper's table has daggers, and no marks of what only a comment says.
        show([_without_last(first) if form == "latex" else first, *below], form, console)


def _without_last(block: Block) -> Block:
    return replace(block, columns=block.columns[:-1], rows=[row[:-1] for row in block.rows], words_behind=0)


def _values(cell: Cell) -> dict[str, object]:
    table, row, column, measured, decimals = cell.table, cell.row, cell.column, cell.measured, cell.row.decimals
    change = measured and measured.change
    return {
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
        "published": fixed(cell.published.value, decimals),
        "published_std": fixed(cell.published.std, decimals),
        "measured": fixed(measured.value if measured else None, decimals),
        "measured_std": fixed(measured.std if measured else None, decimals),
        "difference": fixed(cell.difference, decimals, "+"),
        "change": change and percent(change.effect.value, "+"),
        "change_low": change and percent(change.effect.low, "+"),
        "change_high": change and percent(change.effect.high, "+"),
        "change_p": change and p_value(change.p_value),
        "run": measured.run.place if measured else None,
        "protocol_differences": "; ".join(measured.differences) if measured else None,
        "notes": "; ".join(note.text for note in table.notes if note.is_about(row, column)),
        "command": None if measured else cell.command,
        "without_run": row.without_run,
    }


@dataclass
class Marks:
    """Numbers texts as they come, each once."""

    letter: str
    texts: dict[str, str] = field(default_factory=dict)

    def of(self, text: str) -> str:
        """The mark of a text."""
        return self.texts.setdefault(text, f"{self.letter}{len(self.texts) + 1}")

    def notes(self, commands: Collection[str] = ()) -> tuple[Note, ...]:
        """The texts with their marks; those of `commands` are to be copied as they are."""
        return tuple(Note(text, mark, text in commands) for text, mark in self.texts.items())


def table_blocks(
    table: PublishedTable, cells: Sequence[Cell], skipped: Sequence[str] = (), plus_minus: str = "±"
) -> list[Block]:
    """A comparison's table, and under it what its marks stand for and what else a reader must know.

    Of `skipped` runs it is said, a line each, why they cannot be read or fill nothing.
    """
    runs, changes, differences, empty, notes = (Marks(letter) for letter in "rtdcn")
    rows, label, commands, footnotes = [], None, set(), {}
    for cell in cells:
        row, column, measured, decimals = cell.row, cell.column, cell.measured, cell.row.decimals
        about = [notes.of(note.text) for note in table.notes if not note.general and note.is_about(row, column)]
        published = with_std(cell.published.value, cell.published.std, decimals, plus_minus)
        value = ""
        if measured is not None:
            see = [runs.of(_run_text(measured.run))]
            if (change := measured.change) is not None:
                text = f"{interval(change.effect, '+')} points, p {p_value(change.p_value)}"
                see.append(changes.of(f"{row.label}, {column.name}: {text}"))
            see += [differences.of(text) for text in measured.differences]
            footnotes[len(rows), _COLUMNS.index("measured")] = measured.differences
            value = with_std(measured.value, measured.std, decimals, plus_minus)
        else:
            command = cell.command
            commands.add(command)
            see = [empty.of(command or str(row.without_run))]
        points = fixed(cell.difference, decimals, "+")
        rows.append(
            ("" if row.label == label else row.label, column.name, published, value, points, " ".join((*see, *about)))
        )
        label = row.label
    general = tuple(Note(note.text) for note in table.notes if note.general)
    below = {
        "Runs": runs.notes(),
        "What tuning changed on the same videos": changes.notes(),
        "What differs from the published protocol": differences.notes(),
        "Empty cells, and what fills them": empty.notes(commands),
        "Weights that these commands name": _weights(table, cells),
        "Cost of the image encoder a video": _costs(table, cells, runs),
        "Notes on the published numbers": (*notes.notes(), *general),
        "Skipped": tuple(map(Note, skipped)),
    }
    first = Block(table.title, _COLUMNS, rows, words=2, words_behind=1, footnotes=footnotes)
    return [first, *(Block(title, (), (), lines) for title, lines in below.items() if lines)]


def _run_text(run: FinishedRun) -> str:
    summary = run.summary
    return f"{run.name}: {summary.model} ({summary.model_fingerprint}), seed {summary.seed}, {run.place}"


def _weights(table: PublishedTable, cells: Sequence[Cell]) -> tuple[Note, ...]:
    made = {}
    for cell in cells:
        commands = training_commands(table, cell.row, cell.column) if cell.measured is None else None
        if commands is not None:
            made[commands[0]] = commands[1]
    return tuple(Note(text, file) for file, text in made.items())


def _costs(table: PublishedTable, cells: Sequence[Cell], runs: Marks) -> tuple[Note, ...]:
    """What test-time tuning costs, which published figures leave out, and what runs needed."""
    notes = []
    for row in table.rows:
        view = row.view_gflops
        if view is None or row.tuning_views is None:
            continue
        text = (
            f"{row.label}: {view:,.0f} GFLOPs as published, for the evaluation view alone; "
            f"{view * (1 + row.tuning_views):,.0f} with the {row.tuning_views} views of tuning, each encoded by itself"
        )
        measured = {
            runs.of(_run_text(cell.measured.run)): cell.measured.run.summary
            for cell in cells
            if cell.row == row and cell.measured is not None
        }
        for mark, run in measured.items():
            if images := run.costs.images_encoded_mean:
                text += f"; {mark} encoded {digits(images, 4)} images, {gflops(run.images_gflops)} GFLOPs"
        notes.append(Note(text))
    return tuple(notes)
