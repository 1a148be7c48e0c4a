"""What `zar models` and `zar methods` do alike: rows that are found by words, as a table, as JSON or as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, TypeVar

import tyro
from rich import box
from rich.table import Table

from zar_ray.errors import ConfigError
from zar_ray.terminal import json_text, output_console

Words = Annotated[tuple[str, ...], tyro.conf.Positional]
AsJson = Annotated[bool, tyro.conf.arg(name="json")]
AsCsv = Annotated[bool, tyro.conf.arg(name="csv")]


class _Described(Protocol):
    @property
    def words(self) -> str: ...


_T = TypeVar("_T", bound=_Described)


def find(command: str, words: Sequence[str], everything: Sequence[_T]) -> list[_T]:
    """Those of some things that have every one of some words somewhere.

    Raises:
        ConfigError: There is none.
    """
    found = [one for one in everything if all(word.casefold() in one.words for word in words)]
    if not found:
        raise ConfigError(f"{command}: nothing has {' and '.join(words)}; leave a word away, or all of them")
    return found


def show(
    rows: Sequence[Mapping[str, str]], footer: str, *, as_json: bool, as_csv: bool, right: Sequence[str] = ()
) -> None:
    """Prints rows of the same columns: a table with a line below it, or JSON or CSV alone.

    Args:
        rows: Each row's cells by their column.
        footer: What stands below a table.
        as_json: Print JSON.
        as_csv: Print CSV.
        right: Columns of numbers.

    Raises:
        ConfigError: Both are asked for.
    """
    if as_json and as_csv:
        raise ConfigError("--json and --csv: give one of them")
    if as_json:
        print(json_text(list(rows), indent=2))
        return
    columns = list(rows[0])
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([columns, *(row.values() for row in rows)])
        return
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in right:
        table.columns[columns.index(column)].justify = "right"
    for row in rows:
        table.add_row(*row.values())
    console = output_console()
    console.print(table)
    console.print(footer, style="dim")
