"""Corruption errors of a study, as Hendrycks and Dietterich define them (ICLR 2019, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from zar_ray.results.case import CLEAN
from zar_ray.results.study_record import CORRUPTION, ShiftRow, ShiftTable, StudyTable, TableRow, label_of


@dataclass(frozen=True)
class _Errors:
    """The errors of one method, by corruption and severity; on frames as they are, where these were shown."""

    by_name: dict[str, list[float]]
    clean: float | None

    @classmethod
    def of(cls, scores: dict[str, float]) -> _Errors:
        by_name: dict[str, list[float]] = {}
        for label, score in scores.items():
            if label != CLEAN:
                by_name.setdefault(label.partition(":")[0], []).append(1 - score)
        return cls(by_name, 1 - scores[CLEAN] if CLEAN in scores else None)


def shift_table(table: StudyTable, method: str) -> ShiftTable | None:
    """What a table over corruptions says of each method: its errors by those of a reference.

    Args:
        table: The table.
        method: The method whose first row, such as that of the first model, is the reference.

    Returns:
        The corruption errors; None of a table with no corruption, or without scores.
    """
    found: dict[tuple[tuple[str, str], ...], list[TableRow]] = {}
    for row in table.rows:
        rest = {axis: one for axis, one in row.labels.items() if axis not in (CORRUPTION, "method")}
        if CORRUPTION in row.labels and row.main is not None:
            found.setdefault((*rest.items(), ("method", row.method)), []).append(row)
    scores = {key: {one.labels[CORRUPTION]: one.main.value for one in rows if one.main} for key, rows in found.items()}
    first = next((key for key in scores if key[-1] == ("method", method)), None)
    if first is None or set(scores[first]) <= {CLEAN}:
        return None
    reference = _Errors.of(scores[first])
    rows = []
    for key, of_one in scores.items():
        own = _Errors.of(of_one)
        errors, relative = (_ratios(own, reference, relative=one) for one in (False, True))
        rows.append(ShiftRow(dict(key[:-1]), key[-1][1], of_one, errors, _mean(errors), _mean(relative)))
    named = ", ".join(part for part in (method, label_of(dict(first[:-1]))) if part)
    return ShiftTable(table.name, table.title, table.metric, named, tuple(rows))


def _ratios(own: _Errors, reference: _Errors, *, relative: bool) -> dict[str, float | None]:
    """By corruption, the sum of the errors over its severities by that of the reference; None where that is zero.

    Relative ones are sums of how much the errors grow from frames as they are.
    """
    found: dict[str, float | None] = {}
    for name, errors in own.by_name.items():
        sums = []
        for one, of_one in ((own, errors), (reference, reference.by_name.get(name, []))):
            base = one.clean if relative else 0.0
            sums.append(None if base is None else sum(error - base for error in of_one))
        above, below = sums
        found[name] = above / below if above is not None and below else None
    return found


def _mean(ratios: dict[str, float | None]) -> float | None:
    known: Sequence[float] = [one for one in ratios.values() if one is not None]
    return fmean(known) if known and len(known) == len(ratios) else None
