"""Ranked labels of files as a CSV for spreadsheets, a row a file and method."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zar_ray.adaptation.rankings import Ranking
from zar_ray.errors import ConfigError
from zar_ray.reporting.blocks import csv_cell
from zar_ray.storage import Storage, is_uri
from zar_ray.untrusted import storable


@contextmanager
def rankings_csv(place: str, top_k: int) -> Iterator[Callable[[Ranking], None]]:
    """A function that adds a row; where the block ends well the rows become the file, whole or not at all.

    Columns are ``video``, ``method``; of each rank the ``label``, the softmax probability after adaptation (``score``),
    and of several seeds its standard deviation (``std``); the first label before; ``seeds``, ``warning`` and ``error``.
    No cell is a formula to a spreadsheet.

    Args:
        place: The file's path or URI.
        top_k: Ranks.

    Raises:
        ConfigError: A folder has that name.
        RunError: It cannot be written.
    """
    if not is_uri(place) and Path(place).is_dir():
        raise ConfigError(f"--csv {place}: is a folder; give a file's name")
    folder, name = Storage.of_file(place)
    with folder.filling(name) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_columns(top_k))
        yield lambda ranking: writer.writerow(_row(ranking, top_k))


def _columns(top_k: int) -> list[str]:
    ranks = [f"{what}_{rank}" for rank in range(1, top_k + 1) for what in ("label", "score", "std")]
    return ["video", "method", *ranks, "label_before", "score_before", "std_before", "seeds", "warning", "error"]


def _row(ranking: Ranking, top_k: int) -> list[str]:
    first = [*ranking.after[:top_k], *[None] * (top_k - len(ranking.after)), next(iter(ranking.before), None)]
    scored = (("",) * 3 if one is None else (one.label, one.score, one.std) for one in first)
    cells = [storable(ranking.video), ranking.method, *(cell for cells in scored for cell in cells)]
    cells += [" ".join(map(str, ranking.seeds)), ranking.warning, ranking.error]
    return ["" if cell is None else csv_cell(cell) if isinstance(cell, str) else repr(cell) for cell in cells]
