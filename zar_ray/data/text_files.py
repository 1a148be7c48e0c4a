"""Text files that people write, UTF-8 lines and CSVs, with the place of each line for messages."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from zar_ray.errors import ManifestError, RunError, StorageError, suggestion
from zar_ray.storage import Storage, is_uri
from zar_ray.untrusted import stand_in


class StandInError(ManifestError):
    """Something else lies in a file's place."""


def csv_header(path: Path | str) -> tuple[str, ...]:
    """The first row of a CSV, in lower case; empty where the file is no CSV.

    Raises:
        StandInError: Something else lies in its place.
    """
    try:
        with _opened(path) as stream:
            return tuple(cell.strip().lower() for cell in next(csv.reader(stream), ()))
    except StandInError:
        raise
    except (ManifestError, csv.Error):
        return ()


def csv_rows(
    path: Path | str, needed: Sequence[str], optional: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (place for messages, cell by column) of each row of a CSV with a header, blank ones left out.

    Args:
        path: The file.
        needed: Columns that it must have, in lower case.
        optional: Columns that it may have besides; by default any.

    Raises:
        ManifestError: The file cannot be read, has a wrong column or has a row of another length than the header.
    """
    with _opened(path) as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        header: list[str] = []
        try:
            for row in reader:
                at = f"{path}, line {reader.line_num}"
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                if not header:
                    header = [name.lower() for name in cells]
                    _check_header(path, header, needed, optional)
                    continue
                if len(cells) != len(header):
                    raise ManifestError(
                        f"{at}: has {len(cells)} cell{'s' * (len(cells) != 1)}, the header has {len(header)}; put what "
                        'holds a comma in "quotes"'
                    )
                yield at, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise ManifestError(f"{path}, line {reader.line_num}: is not a CSV ({error})") from error


def _check_header(
    path: Path | str, header: Sequence[str], needed: Sequence[str], optional: Sequence[str] | None
) -> None:
    if any(name not in header for name in needed):
        raise ManifestError(f'{path}: must begin with a header that has the columns "{",".join(needed)}"')
    for name in header:
        if optional is not None and name not in (*needed, *optional):
            raise ManifestError(f'{path}: unknown column "{name}"{suggestion(name, (*needed, *optional))}')
        if header.count(name) > 1:
            raise ManifestError(f'{path}: column "{name}" occurs more than once')


def read_lines(path: Path | str) -> Iterator[tuple[str, str]]:
    """Yields (place for messages, line) of each line that is not blank; raises what `read_text` does."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def read_text(path: Path | str) -> str:
    """All of a UTF-8 file, or a ManifestError."""
    with _opened(path) as stream:
        return stream.read()


@contextmanager
def _opened(path: Path | str) -> Iterator[TextIO]:
    try:
        folder, name = Storage.of_file(str(path))
        with folder.opened(name) if is_uri(str(path)) else Path(path).open("rb") as file:
            if (instead := stand_in(file.peek(512))) is not None:
                raise StandInError(f"{path}: {instead}")
            # utf-8-sig: spreadsheets begin UTF-8 files with a byte order mark.
            with TextIOWrapper(file, newline="", encoding="utf-8-sig") as stream:
                yield stream
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file") from None
    except StorageError:
        raise
    except RunError as error:
        raise ManifestError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
