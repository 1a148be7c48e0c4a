"""Text files that people write, UTF-8 lines and CSVs, with the place of each line for messages."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from zar_ray.errors import ManifestError


@dataclass(frozen=True)
class CsvTable:
    """A CSV with a header.

    Attributes:
        header: Its first row, in lower case; empty where there is none.
        rows: Its other rows that are not blank: the line's number, and the cells by column.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_csv(path: Path, shown: str | None = None) -> CsvTable:
    """Reads a CSV.

    Args:
        path: The file.
        shown: What messages call it; by default its path.

    Raises:
        ManifestError: The file cannot be read, or has a row of another length than the header.
    """
    shown = shown or str(path)
    rows = []
    with _opened(path, shown) as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        filled = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
        filled = ((line, cells) for line, cells in filled if any(cells))
        header = tuple(name.lower() for name in next(filled, (0, []))[1])
        for line, cells in filled:
            if len(cells) != len(header):
                raise ManifestError(
                    f"{shown}, line {line}: has {len(cells)} cell{'s' * (len(cells) != 1)}, the header has "
                    f'{len(header)}; put names that hold a comma in "quotes"'
                )
            rows.append((line, dict(zip(header, cells, strict=True))))
    return CsvTable(header, tuple(rows))


def csv_header(path: Path) -> tuple[str, ...]:
    """The first row of a CSV, in lower case; empty where the file is no text."""
    try:
        with _opened(path, str(path)) as stream:
            return tuple(cell.strip().lower() for cell in next(csv.reader(stream), ()))
    except ManifestError:
        return ()


def csv_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (place for messages, cell by column) of each row of a CSV with a header.

    Raises:
        ManifestError: The file cannot be read, lacks a column or has a row of another length.
    """
    table = read_csv(path)
    if lacking := [name for name in needed if name not in table.header]:
        raise ManifestError(f"{path}: lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}")
    for line, cells in table.rows:
        yield f"{path}, line {line}", cells


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (place for messages, line) of each line that is not blank.

    Raises:
        ManifestError: The file cannot be read.
    """
    with _opened(path, str(path)) as stream:
        lines = stream.read().splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


@contextmanager
def _opened(path: Path, shown: str) -> Iterator[TextIO]:
    try:
        # utf-8-sig: spreadsheets begin UTF-8 files with a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            yield stream
    except FileNotFoundError:
        raise ManifestError(f"{shown}: no such file") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{shown}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise ManifestError(f"{shown}: is not a CSV ({error})") from error
    except OSError as error:
        raise ManifestError(f"{shown}: cannot be read ({error.strerror})") from error
