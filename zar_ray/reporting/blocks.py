"""The one block type that every table is, and what it looks like in a terminal and in Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Block:
    """One table with what stands over and under it; a row's first cell is empty where the row belongs to the last."""

    title: str | None
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]


def print_block(block: Block, console: Console) -> None:
    """Prints a table with what stands over and under it."""
    if block.title is not None:
        console.print()
        console.print(Text(block.title, style="bold"), soft_wrap=True)
    table = Table(*block.columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    last = [*(bool(row[0]) for row in block.rows[1:]), True][: len(block.rows)]
    for row, ends in zip(block.rows, last, strict=True):
        table.add_row(*(Text(cell) for cell in row), end_section=ends)
    if block.rows:
        console.print(table)
    for line in block.notes:
        console.print(Text(line, style="dim"), soft_wrap=True)


def markdown_block(block: Block) -> list[str]:
    """A table with what stands over and under it as lines of Markdown."""
    lines = [] if block.title is None else [f"**{markdown_cell(block.title)}**", ""]
    if block.rows:
        lines += [
            "| " + " | ".join(block.columns) + " |",
            "|" + "---|" * len(block.columns),
            *("| " + " | ".join(markdown_cell(cell) for cell in row) + " |" for row in block.rows),
            "",
        ]
    return [*lines, *(f"{markdown_cell(line)}  " for line in block.notes), *([""] if block.notes else [])]


def markdownmarkdown_cell(text: str) -> str:
    """Text in which Markdown sees no table border, emphasis, link or HTML."""
    return "".join(f"\\{character}" if character in "\\|*_`<[" else character for character in text)


def markdown_cell(text: str) -> str:
    """Text in which Markdown sees no table border, emphasis, link or HTML."""
    return "".join(f"\\{character}" if character in "\\|*_`<[" else character for character in text)
