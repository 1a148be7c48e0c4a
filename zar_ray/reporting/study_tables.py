"""A study's record as tables, for a terminal, as Markdown and as CSV.

A study of one cell shows what its evaluation found; of several, the tables that hold the cells against each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from zar_ray.reporting import numbers
from zar_ray.reporting.blocks import Block, csv_block, markdown_block, markdown_text, print_block
from zar_ray.reporting.shift_tables import shift_blocks
from zar_ray.reporting.summary_tables import (
    GROUPED,
    INTERVALS,
    RANDOM_WEIGHTS,
    data_heading,
    summary_blocks,
    summary_facts,
)
from zar_ray.reporting.trust_tables import (
    COST_NOTE,
    COSTS,
    TRUST,
    columns_there,
    compact_cells,
    row_lines,
    trust_blocks,
)
from zar_ray.results.record import Estimate
from zar_ray.results.study_record import REPLICATES, Score, StudyRecord, StudyTable, TableRow

_WIDTH = 120
_COST_NOTE = f"{COST_NOTE} GFLOPs are of these images and of tuning, as papers count."

_NUMBERS = (
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_std"),
    *("difference", "difference_low", "difference_high", "difference_gained", "difference_lost", "difference_p"),
    *("p_adjusted", "images", "text_tokens", "gradient_tokens", "seconds", "gflops", "peak_memory"),
    *("gain", "gain_low", "gain_high", "gain_p"),
)
_ENDS = ("", "_low", "_high", "_std")


def print_study(record: StudyRecord, console: Console) -> None:
    """Prints a study: its accuracies, then what the pass cost, counts, failures, speed and where everything is."""
    console.print()
    if (warning := random_weights(record)) is not None:
        console.print(Text(warning, style="bold yellow"), soft_wrap=True)
    console.print(Text(study_heading(record), style="bold"), soft_wrap=True)
    for block in study_blocks(record, numbers.plus_minus(console.encoding), min(console.width, _WIDTH)):
        print_block(block, console)
    console.print()
    for line in pass_notes(record):
        console.print(Text(line), soft_wrap=True)
    for name, value in summary_facts(record.whole, record.cells[0].label):
        console.print(Text.assemble((f"{name:<9}", "bold"), value), soft_wrap=True)


def study_markdown(record: StudyRecord) -> str:
    """The same as `print_study` prints, as Markdown: for MLflow's description, so without where it is logged."""
    warning = random_weights(record)
    lines = [f"**{markdown_text(warning)}**", ""] if warning is not None else []
    lines += [markdown_text(study_heading(record)), ""]
    for block in study_blocks(record):
        lines += markdown_block(block)
    lines += [f"- {markdown_text(line)}" for line in pass_notes(record)]
    facts = summary_facts(record.whole, record.cells[0].label)
    lines += [f"- **{name}**: {markdown_text(value)}" for name, value in facts if name != "MLflow"]
    return "\n".join(lines) + "\n"


def study_csv(record: StudyRecord) -> str:
    """All tables as CSV, a line a row, shares as fractions; a study of one cell has no tables, and no lines."""
    rows = [(table, row) for table in record.tables for row in table.rows]
    axes = _axes([row for _, row in rows], but=("method",))
    splits = list(dict.fromkeys(split for _, row in rows for split in row.scores))
    several = splits if len(splits) > 1 else []
    each = [(split, end) for split in several for end in ("value", "low", "high", "std")]
    columns = ("table", *axes, "method", "varied", "metric", "decisions", "finished", "replicates", *_NUMBERS)
    trust = dict.fromkeys(name for _, row in rows for name in row.trust)
    measures = [f"{name}{end}" for name in trust for end in _ENDS]
    lines = []
    for table, row in rows:
        values, first = row.numbers(), record.cells[row.cells[0]]
        ends = [getattr(row.scores[split], end) if split in row.scores else None for split, end in each]
        lines.append(
            (
                table.name,
                *(row.labels.get(axis, "") for axis in axes),
                row.method,
                "; ".join(f"{name}={value}" for name, value in first.varied.items()),
                table.metric,
                str(table.decisions),
                str(row.finished),
                "; ".join(map(numbers.exact, row.main.replicates)) if row.main else "",
                *(numbers.exact(values.get(name)) for name in _NUMBERS),
                *map(numbers.exact, ends),
                *(numbers.exact(values.get(name)) for name in measures),
            )
        )
    return csv_block(Block(None, (*columns, *(f"{split}_{end}" for split, end in each), *measures), lines))


def random_weights(record: StudyRecord) -> str | None:
    """What must be known before any number is read; None where all models are trained."""
    untrained = [cell for cell in record.cells if cell.summary.random_weights]
    if not untrained:
        return None
    names = dict.fromkeys(cell.coordinates.get("model", cell.summary.model) for cell in untrained)
    return RANDOM_WEIGHTS if len(untrained) == len(record.cells) else f"{', '.join(names)}: {RANDOM_WEIGHTS}"


def study_heading(record: StudyRecord) -> str:
    """What was evaluated, and over what the study ranges, in a line."""
    first = record.whole
    model = "" if "model" in record.axes else f", {first.model} ({first.model_fingerprint})"
    seed = "" if "seed" in record.axes else f", seed {first.seed}"
    cells = f"; {ranges_of(record)}: {len(record.cells)} cells" if record.axes else ""
    return f"{data_heading(first)}{model}{seed}{cells}"


def ranges_of(record: StudyRecord) -> str:
    """How many labels each axis has."""
    return " x ".join(numbers.counted(len(labels_of(record, axis)), axis) for axis in record.axes)


def labels_of(record: StudyRecord, axis: str) -> list[str]:
    """The labels of an axis, in the order of the cells."""
    return list(dict.fromkeys(cell.coordinates[axis] for cell in record.cells if axis in cell.coordinates))


def study_blocks(record: StudyRecord, plus_minus: str = "±", width: int = _WIDTH) -> list[Block]:
    """All tables of a study; the costs of one that is wider than `width` characters are a table of their own."""
    if not record.tables:
        return summary_blocks(record.whole, plus_minus)
    blocks = [block for table in record.tables for block in _table_blocks(record, table, plus_minus, width)]
    return [*blocks, *(block for table in record.shifts for block in shift_blocks(table))]


def _table_blocks(record: StudyRecord, table: StudyTable, plus_minus: str, width: int) -> list[Block]:
    axes = _axes(table.rows)
    methods = list(dict.fromkeys(row.method for row in table.rows))
    of = "" if "method" in axes else f"{methods[0]}, "
    title = f"{table.title} ({of}{numbers.counted(table.decisions, 'decision')})"
    labels = [
        tuple(row.method if axis == "method" else row.labels.get(axis, "") for axis in axes) for row in table.rows
    ]
    columns, cells = _scores(record, table, plus_minus)
    every = [row.numbers() for row in table.rows]
    trust = columns_there(TRUST, every)
    notes = _notes(record, table, plus_minus)

    def block(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]) -> Block:
        rows = [(*label, *one) for label, one in zip(labels, cells, strict=True)]
        return Block(title, (*axes, *columns), rows, notes, words=len(axes))

    gained = any(row.gain is not None for row in table.rows)
    headings = (*(("gain of adaptation", "p") if gained else ()), *(one.heading for one in (*trust, *COSTS)))
    rest = [
        (*(_gain(row) if gained else ()), *compact_cells((*trust, *COSTS), of_row))
        for row, of_row in zip(table.rows, every, strict=True)
    ]
    both = [(*scores, *more) for scores, more in zip(cells, rest, strict=True)]
    details = trust_blocks(row_lines(table.rows, labels, plus_minus), axes, f": {table.title}")
    beside = block(title, (*columns, *headings), both, (*notes, _COST_NOTE, *table.verdict))
    if beside.width <= width:
        return [beside, *details]
    words = "trust and cost a video" if trust else "cost a video"
    below = block(f"{words}: {table.title}", headings, rest, (_COST_NOTE,))
    return [block(title, columns, cells, (*notes, *table.verdict)), below, *details]


def _gain(row: TableRow) -> tuple[str, str]:
    """By how much adaptation changed a row's score."""
    found = row.gain
    return ("", "") if found is None else (numbers.interval(found.effect, "+"), numbers.p_value(found.p_value))


def _axes(rows: Sequence[TableRow], but: Sequence[str] = ()) -> list[str]:
    axes = dict.fromkeys(axis for row in rows for axis in row.labels if axis not in but)
    return list(axes) or [axis for axis in ("method",) if axis not in but]


def _scores(record: StudyRecord, table: StudyTable, plus_minus: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns between labels and costs, and each row's cells in them."""
    metric = f"{numbers.METRICS[table.metric]} %"
    splits = list(dict.fromkeys(split for row in table.rows for split in row.scores))
    averaged = any(row.average is not None for row in table.rows)
    paired = any(row.comparison is not None for row in table.rows)
    columns = [metric] if len(splits) < 2 else [f"{split} {metric}" for split in splits]
    harmonic = any(one.kind == "harmonic" for one in record.whole.averages)
    columns += ["harmonic mean %" if harmonic else "mean %"] if averaged else []
    columns += ["change", "p adj."] if paired else []
    rows = []
    for row in table.rows:
        cells = [_score(row.scores.get(split), plus_minus) for split in splits] or ["no labels"]
        if averaged:
            cells.append(_score(row.average, plus_minus))
        if paired:
            one = row.comparison
            change = "reference" if one is None else numbers.interval(one.effect, "+")
            cells += [change, numbers.p_value(row.p_adjusted)]
        rows.append(tuple(cells))
    return tuple(columns), rows


def _score(score: Score | None, plus_minus: str) -> str:
    if score is None:
        return ""
    if score.std is None and score.low is not None and score.high is not None:
        return numbers.interval(Estimate(score.value, score.low, score.high))
    return numbers.with_deviation(score.value, score.std, plus_minus)


def _notes(record: StudyRecord, table: StudyTable, plus_minus: str) -> list[str]:
    """What to know when reading a table, a line each."""
    notes = [] if table.about is None else [" ".join(table.about.split())]
    scores = [score for row in table.rows for score in (*row.scores.values(), row.average) if score is not None]
    repeated = any(score.std is not None and len(score.replicates) > 1 for score in scores)
    if repeated:
        over = [
            f"{numbers.counted(len(labels_of(record, axis)), axis)} ({', '.join(labels_of(record, axis))})"
            for axis in record.axes
            if axis in REPLICATES
        ]
        notes.append(f"Mean {plus_minus} standard deviation over {' and '.join(over)}, n - 1 in its denominator.")
    elif any(row.average is not None and row.average.std is not None for row in table.rows):
        notes.append(
            f"Mean of the splits {plus_minus} standard deviation between them, dividing by their number as papers do."
        )
    paired = any(row.comparison is not None for row in table.rows)
    if paired or any(score.std is None and score.low is not None for score in scores):
        notes.append(INTERVALS)
        if any(case.groups for case in record.whole.cases):
            notes.append(f"{GROUPED}.")
    if paired:
        notes.append(
            f"Change is against {table.reference or 'the first'} on the same videos; p adj. is the exact p of "
            "exchanging both at random after Holm's correction over this table."
        )
    if record.whole.failed and scores:
        how = numbers.failed_count(table.metric)
        notes.append(f"{numbers.counted(record.whole.failed, 'failed video')} {how} where a method has no decision.")
    return notes + _highest_share(table)


def _highest_share(table: StudyTable) -> list[str]:
    """Which share of a mixture is best, with what is to be said of such a choice."""
    rows = [(row, row.main.value) for row in table.rows if "share" in row.labels and row.main is not None]
    if len({row.labels["share"] for row, _ in rows}) < 2:
        return []
    best: dict[tuple[str, ...], tuple[str, float]] = {}
    for row, value in rows:
        rest = tuple(label for axis, label in row.labels.items() if axis not in ("share", "method"))
        key = (row.method, *rest)
        if key not in best or value > best[key][1]:
            best[key] = (row.labels["share"], value)
    named = "; ".join(f"{', '.join(key)} at share {share}" for key, (share, _) in best.items())
    return [
        f"Highest: {named}. That is chosen on the very videos it is measured on, which flatters it: settle the share "
        "on other videos before quoting its accuracy."
    ]


def pass_notes(record: StudyRecord) -> list[str]:
    """What all cells of a study had in common, and what they cost together; nothing of a study of one cell."""
    if not record.tables:
        return []
    notes = []
    if record.short_side is not None:
        notes.append(
            f"All settings, the evaluation view included, are at a short side of {record.short_side} pixels, which "
            f"some of them need; a run of one alone gives the same numbers with --views.short-side {record.short_side}."
        )
    images = record.whole.costs.images_encoded_mean
    encoded = ""
    if images is not None:
        rows = [row for table in record.tables for row in table.rows]
        own = max((row.images or 0.0 for row in rows if 0 in row.cells), default=0.0)
        ratio = f", {images / own:.2f} times the first cell's" if own and images else ""
        encoded = f"{images:.1f} images encoded a video{ratio}; "
    notes.append(f"{len(record.cells)} cells in one pass: {encoded}{record.seconds:.1f} s.")
    return notes
