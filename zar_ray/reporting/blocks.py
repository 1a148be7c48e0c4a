"""The one block type that every table is, and what it looks like in a terminal, in Markdown, in CSV and in LaTeX.

Each format's escaping is here alone, LaTeX's in `zar_ray.reporting.latex`; a page shows blocks by its template, which
escapes them for HTML.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zar_ray.reporting.latex import latex_block
from zar_ray.reporting.numbers import exact

Form = Literal["terminal", "markdown", "csv", "latex"]
"""For people, for documents, for programs and for papers."""


_LEAST = 12
"""Characters that a column gets at least."""


@dataclass(frozen=True)
class Note:
    """A line under a table, to which cells refer by its mark; a command is to be copied as it is."""

    text: str
    mark: str = "-"
    is_command: bool = False

    def __str__(self) -> str:
        return f"{self.mark}  {self.text}"


@dataclass(frozen=True)
class Block:
    """One table with what stands over and under it.

    Attributes:
        title: What stands over it.
        columns: Headings.
        rows: Cells; a row whose first cell is empty belongs to the one above it.
        notes: What stands under it, a line each.
        words: So many columns from the left hold words; those behind them hold numbers, which stand right. By default
            none do.
        words_behind: So many columns from the right hold words too.
        folded: On a page, the line that opens the table; None for one that is always open.
        footnotes: By the row and column of a cell, counted from 0, what differs in its protocol. LaTeX has daggers
            there and the texts under the table; other forms say it elsewhere.
    """

    title: str | None
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str | Note] = ()
    words: int | None = None
    words_behind: int = 0
    folded: str | None = None
    footnotes: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)
    kind: str = field(default="block", init=False)

    def stands_right(self, column: int) -> bool:
        """Whether a column, counted from 0, holds numbers."""
        return self.words is not None and self.words <= column < len(self.columns) - self.words_behind

    @property
    def widths(self) -> list[int]:
        """Characters that each column takes in a terminal."""
        return [max(map(len, cells)) + 2 for cells in zip(self.columns, *self.rows, strict=True)]

    @property
    def width(self) -> int:
        """Characters that a row takes in a terminal."""
        return sum(self.widths) - 1


def lines_block(lines: Sequence[Mapping[str, object]]) -> Block:
    """A table for programs: a line each, all with the same names, floats with nine significant digits."""
    return Block(None, tuple(lines[0]), [tuple(map(exact, line.values())) for line in lines])


def show(blocks: Sequence[Block], form: Form, console: Console) -> None:
    """Prints blocks; of CSV and LaTeX nothing but them."""
    if form == "terminal":
        for block in blocks:
            print_block(block, console)
    else:
        console.out(written(blocks, form), end="", highlight=False)


def written(blocks: Sequence[Block], form: Form) -> str:
    """Blocks as Markdown, CSV or LaTeX."""
    if form == "csv":
        return "\n".join(map(csv_block, blocks))
    if form == "latex":
        return "\n".join(map(latex_block, blocks))
    return "\n".join(line for block in blocks for line in markdown_block(block)) + "\n"


def print_block(block: Block, console: Console) -> None:
    """Prints a table with what stands over and under it; rows that belong together are set off by gaps."""
    if block.title is not None:
        console.print()
        console.print(Text(block.title, style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    kept = _kept(block, console.width)
    for place, name in enumerate(block.columns):
        right = block.stands_right(place)
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=place in kept)
    belongs = [not row[0] for row in block.rows] + [False, False]
    for place, row in enumerate(block.rows):
        ends = not belongs[place + 1] and (belongs[place] or belongs[place + 2])
        table.add_row(*map(Text, row), end_section=ends)
    if block.rows:
        console.print(table)
    for note in block.notes:
        console.print(Text(f"  {note}") if isinstance(note, Note) else Text(note, style="dim"), soft_wrap=True)


def _kept(block: Block, room: int) -> set[int]:
    """The columns whose cells are not broken: numbers first, then words from the left, while there is room."""
    widths, kept = block.widths, set()
    room -= sum(min(width, _LEAST) for width in widths)
    for place in sorted(range(len(widths)), key=lambda one: not block.stands_right(one)):
        more = max(0, widths[place] - _LEAST)
        if more <= room:
            kept.add(place)
            room -= more
    return kept


def markdown_block(block: Block) -> list[str]:
    """A table with what stands over and under it as lines of Markdown."""
    lines = [] if block.title is None else [f"**{markdown_text(block.title)}**", ""]
    if block.rows:
        rules = ("---:" if block.stands_right(place) else "---" for place in range(len(block.columns)))
        lines += [
            f"| {' | '.join(map(markdown_text, block.columns))} |",
            f"|{'|'.join(rules)}|",
            *(f"| {' | '.join(map(markdown_text, row))} |" for row in block.rows),
            "",
        ]
    return [*lines, *map(_markdown_note, block.notes), *([""] if block.notes else [])]


def _markdown_note(note: str | Note) -> str:
    if isinstance(note, str):
        return f"{markdown_text(note)}  "
    text = f"`{note.text}`" if note.is_command else markdown_text(note.text)
    return f"- {text}" if note.mark == "-" else f"- {note.mark}: {text}"


def markdown_text(text: str) -> str:
    """Text in a line, in which Markdown sees no table border, emphasis, link or HTML."""
    return "".join(f"\\{character}" if character in "\\|*_`~<[" else character for character in " ".join(text.split()))


def csv_block(block: Block) -> str:
    """A table's headings and rows as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([list(map(csv_cell, row)) for row in (block.columns, *block.rows)])
    return stream.getvalue()


_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\n]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?%?|[+-]?(inf|nan)|-", re.IGNORECASE)


def csv_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: an apostrophe goes before what begins as one and is no number."""
    text = re.sub("\r\n?", "\n", text)  # the writer lets a lone one through, and a row ends at it for others
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
