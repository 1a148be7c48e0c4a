"""How far decisions can be believed, and what they cost, as columns and tables; each column is declared here, once.

A case and a row of a study's table give their numbers by the same names (`CaseMetrics.numbers`, `TableRow.numbers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zar_ray.reporting.blocks import Block
from zar_ray.reporting.numbers import digits, fixed, gflops, megabytes, p_value, percent
from zar_ray.results.certainty import SCORES
from zar_ray.results.estimates import Estimate
from zar_ray.results.record import CaseMetrics
from zar_ray.results.study_record import Score, TableRow
from zar_ray.results.trust import BINS, CALIBRATION

WORDS = {"max_probability": "max probability", "margin": "margin", "energy": "energy", "entropy": "entropy"}
"""What scores of certainty are called."""

_PLAIN = {"brier": "Brier", "nll": "NLL"}
_OF_KIND = {"ece": "ECE", "adaptive_ece": "adaptive ECE", "auroc": "AUROC", "fpr95": "FPR95"}


@dataclass(frozen=True)
class Column:
    """A compact column: one number of a case or a row, without its interval.

    Attributes:
        heading: What stands over it.
        name: The number's.
        show: How it is written.
        both: Whether it is shown before adaptation too, where there is room.
    """

    heading: str
    name: str
    show: Callable[[float | None], str]
    both: bool = False


TRUST = (
    Column("ECE %", "ece", percent, both=True),
    Column("AUROC %", "auroc_max_probability", percent, both=True),
)
"""What every table shows beside accuracies; AUROC where classes were held out."""

COSTS = (
    Column("images", "images", lambda number: fixed(number, 1)),
    Column("tokens", "text_tokens", lambda number: fixed(number, 1)),
    Column("back", "gradient_tokens", lambda number: fixed(number, 1)),
    Column("seconds", "seconds", digits),
    Column("GFLOPs", "gflops", gflops),
    Column("peak MB", "peak_memory", megabytes),
)
"""What a video costs."""

COST_NOTE = (
    "Images, text tokens forward and back for gradients, and seconds are means a video, as if the method ran alone; "
    "peak MB is the most that a worker had in use, all models included: allocated on its GPU, or on a CPU held by its "
    "process."
)


def columns_there(columns: Sequence[Column], of_rows: Sequence[Mapping[str, float]]) -> tuple[Column, ...]:
    """Those of the columns that some row has a number for."""
    return tuple(one for one in columns if any(one.name in row for row in of_rows))


def compact_cells(columns: Sequence[Column], row: Mapping[str, float]) -> tuple[str, ...]:
    """A row's cells."""
    return tuple(one.show(row.get(one.name)) for one in columns)


def overview(cases: Sequence[CaseMetrics]) -> Block | None:
    """What stands beside the accuracies of a run, in a line a case; None where nothing is known."""
    every = [case.numbers() for case in cases]
    columns: list[Column] = []
    for one in columns_there((*TRUST, *COSTS), every):
        if one.both and any(case.adapts for case in cases):
            columns.append(Column(f"{one.heading} before", f"{one.name}_before", one.show))
        columns.append(one)
    if not columns:
        return None
    keys = [_key(case, cases) for case in cases]
    rows = []
    for case, key, numbers in zip(cases, keys, every, strict=True):
        shown = numbers if case.adapts else {n: value for n, value in numbers.items() if not n.endswith("_before")}
        rows.append((*key, *compact_cells(columns, shown)))
    headings = (*(("split",) if len(keys[0]) > 1 else ()), "method", *(one.heading for one in columns))
    notes = (COST_NOTE,) if any(one in COSTS for one in columns) else ()
    return Block("Trust and cost a video", headings, rows, notes, words=len(keys[0]))


def _key(case: CaseMetrics, cases: Sequence[CaseMetrics]) -> tuple[str, ...]:
    return (case.split, case.method) if len({one.split for one in cases}) > 1 else (case.method,)


def heading(name: str) -> str:
    """What a measure is called in a table."""
    kind = next((kind for kind in _OF_KIND if name == kind or name.startswith(f"{kind}_")), None)
    return _PLAIN[name] if kind is None else f"{_OF_KIND[kind]} %"


def long_heading(name: str) -> str:
    """What a measure is called where no column says of which score it is."""
    score = next((score for score in SCORES if name.endswith(f"_{score}")), None)
    return heading(name) if score is None else f"{heading(name)}, {WORDS[score]}"


def measured(name: str, value: Estimate | Score | None, sign: str = "", plus_minus: str = "±") -> str:
    """A measure with its interval, or with its deviation between replicates; shares in per cent."""
    if value is None:
        return ""

    def show(number: float) -> str:
        return fixed(number, 3, sign) if name in _PLAIN else percent(number, sign)

    if isinstance(value, Score) and value.std is not None:
        return f"{show(value.value)} {plus_minus} {show(value.std)}"
    if value.low is None or value.high is None:
        return show(value.value)
    return f"{show(value.value)} [{show(value.low)}, {show(value.high)}]"


@dataclass(frozen=True)
class Line:
    """What a case, or a row of a study's table, has of each measure, as it is shown.

    Attributes:
        labels: What tells it from others.
        before: By measure; empty where adaptation changes nothing.
        after: By measure.
        change: By measure, with its p.
    """

    labels: tuple[str, ...]
    before: Mapping[str, str]
    after: Mapping[str, str]
    change: Mapping[str, tuple[str, str]]


def case_lines(cases: Sequence[CaseMetrics]) -> list[Line]:
    """A line a case."""
    return [
        Line(
            _key(case, cases),
            {name: measured(name, one.before) for name, one in case.trust.items()} if case.adapts else {},
            {name: measured(name, one.after) for name, one in case.trust.items()},
            {
                name: (measured(name, one.change.effect, "+"), p_value(one.change.p_value))
                for name, one in case.trust.items()
                if one.change is not None
            },
        )
        for case in cases
    ]


def row_lines(rows: Sequence[TableRow], labels: Sequence[tuple[str, ...]], plus_minus: str) -> list[Line]:
    """A line a row of a study's table."""
    lines = []
    for row, label in zip(rows, labels, strict=True):
        shown = {name: measured(name, score, plus_minus=plus_minus) for name, score in row.trust.items()}
        before = {name.removesuffix("_before"): text for name, text in shown.items() if name.endswith("_before")}
        after = {name: text for name, text in shown.items() if not name.endswith("_before")}
        lines.append(Line(label, {} if before == after else before, after, {}))
    return lines


def trust_blocks(lines: Sequence[Line], names: Sequence[str], of: str = "") -> list[Block]:
    """Calibration, and how well unknown classes are told, as far as they are defined.

    Args:
        lines: What is shown.
        names: The headings of its labels.
        of: What the tables are of, behind their titles.
    """
    return [block for block in (_calibration(lines, names, of), _unknown(lines, names, of)) if block is not None]


def _calibration(lines: Sequence[Line], names: Sequence[str], of: str) -> Block | None:
    lines = [line for line in lines if any(name in line.after for name in CALIBRATION)]
    if not lines:
        return None
    rows = []
    for line in lines:
        shown = [("before", line.before), ("after", line.after)] if line.before else [("", line.after)]
        if line.change:
            shown.append(("change", {name: text for name, (text, _) in line.change.items()}))
            shown.append(("p", {name: p for name, (_, p) in line.change.items()}))
        for place, (when, cells) in enumerate(shown):
            labels = line.labels if not place else ("",) * len(line.labels)
            rows.append((*labels, when, *(cells.get(name, "") for name in CALIBRATION)))
    notes = [
        f"Calibration of the videos that have a label and finished; {BINS} bins of equal width, or (adaptive) of as"
        " many videos; intervals and changes from bootstrap draws."
    ]
    columns = (*names, "", *map(heading, CALIBRATION))
    return Block(f"Calibration{of}", columns, rows, notes, words=len(names) + 1)


def _unknown(lines: Sequence[Line], names: Sequence[str], of: str) -> Block | None:
    rows = []
    for line in lines:
        scores = [score for score in SCORES if f"auroc_{score}" in line.after]
        for place, score in enumerate(scores):
            labels = line.labels if not place else ("",) * len(line.labels)
            kinds = [f"auroc_{score}", f"fpr95_{score}"]
            cells = [when.get(kind, "") for kind in kinds for when in (line.before, line.after)]
            rows.append((*labels, WORDS[score], *cells))
    if not rows:
        return None
    kinds = [f"{_OF_KIND[kind]} % {when}" for kind in ("auroc", "fpr95") for when in ("before", "after")]
    notes = [
        "How well a score tells videos of known classes from those of classes that were held out: AUROC, and FPR95, the"
        " share of unknown videos that a threshold keeps which keeps 95 % of the known ones."
    ]
    return Block(f"Unknown classes{of}", (*names, "score", *kinds), rows, notes, words=len(names) + 1)


NOT_DEFINED = "Calibration and unknown classes are not defined where a video may show several classes."
"""What multi-label runs say."""
