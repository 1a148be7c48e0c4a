"""What corruptions do to methods, as tables: a corruption a row, a method a column."""

from __future__ import annotations

from dataclasses import replace

from zar_ray.reporting.blocks import Block
from zar_ray.reporting.numbers import METRICS, percent
from zar_ray.results.study_record import ShiftRow, ShiftTable, label_of


def shift_blocks(table: ShiftTable) -> list[Block]:
    """A table a model or setting: scores by corruption, then what they come to."""
    groups: dict[str, list[ShiftRow]] = {}
    for row in table.rows:
        groups.setdefault(label_of(row.labels), []).append(row)
    blocks = [_block(table, title, rows) for title, rows in groups.items()]
    notes = [
        f"Corruption errors (CE) are sums of errors over severities by those of {table.reference} on the same videos; "
        "mCE is their mean over the corruptions, and relative mCE that of how much errors grow from clean frames "
        "(Hendrycks and Dietterich, ICLR 2019), in per cent. Below 100 is better than the reference.",
    ]
    return [*blocks[:-1], replace(blocks[-1], notes=notes)]


def _block(table: ShiftTable, title: str, rows: list[ShiftRow]) -> Block:
    corruptions = dict.fromkeys(one for row in rows for one in row.scores)
    cells = [(one, *(percent(row.scores.get(one)) for row in rows)) for one in corruptions]
    cells += [(f"CE {name}", *(percent(row.errors.get(name)) for row in rows)) for name in rows[0].errors]
    cells.append(("mCE", *(percent(row.mce) for row in rows)))
    if any(row.relative_mce is not None for row in rows):
        cells.append(("relative mCE", *(percent(row.relative_mce) for row in rows)))
    heading = f"{METRICS[table.metric]} % by corruption{f': {title}' if title else ''}"
    return Block(heading, ("frames", *(row.method for row in rows)), cells, words=1)
