"""The report of a run: `zar report run`.  Every section shows something or says why it has nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from zar_ray.options.base import without_password
from zar_ray.reporting.blocks import Block, Form, written
from zar_ray.reporting.case_sections import case_sections
from zar_ray.reporting.files import write_file
from zar_ray.reporting.numbers import METRICS, ends, fixed, p_value, percent
from zar_ray.reporting.pages import Content, Group, Page, Section, Text, Tile, render, why_empty
from zar_ray.reporting.published.matching import measure
from zar_ray.reporting.published.tables import known_tables, load_table
from zar_ray.reporting.run_data import RunData, StudyData
from zar_ray.reporting.run_sections import (
    ATTENTION,
    attention_maps,
    failures,
    repetition,
    timings,
    versions,
    video_map,
)
from zar_ray.reporting.study_tables import (
    pass_notes,
    random_weights,
    ranges_of,
    study_blocks,
    study_csv,
    study_heading,
)
from zar_ray.reporting.summary_tables import summary_facts
from zar_ray.results.record import CaseMetrics, RunSummary

REPORT = "report.html"
"""The report's file in the run's folder."""

CELLS_SHOWN = 8
"""So many of a run's cells get sections of their own."""

TABLES: Mapping[str, Form] = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
"""Forms of a run's tables by the endings of their files."""


def write_report(run: str, output: str | None = None, samples: int = 6, *, attention: bool = True) -> tuple[str, str]:
    """Writes a run's report as one HTML file that needs nothing besides itself.

    Args:
        run: The run's folder or its URI.
        output: The file; by default `REPORT` in the run's folder.
        samples: How many of the videos most helped, and most hurt, are shown.
        attention: Whether attention maps are drawn, for which weights and videos must be at hand.

    Returns:
        Where the file is, and its content.

    Raises:
        RunError: The folder holds no finished run, or the file cannot be written.
    """
    data = StudyData.read(run)
    page = render(run_page(data, samples, attention=attention))
    return write_file(page.encode(), output or data.storage.path(REPORT)), page


def write_tables(run: str, output: str) -> str:
    """Writes a run's tables alone, as Markdown, LaTeX or CSV, whole or not at all; returns where they are.

    Args:
        run: The run's folder or its URI.
        output: The file; its ending is one of `TABLES`.

    Raises:
        RunError: The folder holds no finished run, or the file cannot be written.
    """
    record = StudyData.read(run).record
    form = TABLES[PurePath(output).suffix.lower()]
    return write_file((study_csv(record) if form == "csv" else written(study_blocks(record), form)).encode(), output)


def run_page(data: StudyData, samples: int = 6, *, attention: bool = True) -> Page:
    """Everything that a run found, as a page.

    Args:
        data: The run.
        samples: How many of the videos most helped, and most hurt, are shown.
        attention: Whether attention maps are drawn.
    """
    record, first = data.record, data.cells[0]
    groups = [Group("Results", (_results(data), _published(data)))]
    for cell in data.cells[:CELLS_SHOWN]:
        for case in shown_cases(cell):
            groups.append(Group(_title(cell, case), case_sections(cell, case, samples)))
    maps = attention_maps(first, samples) if attention else why_empty(ATTENTION, "Attention maps were not asked for.")
    title = "What the model sees"
    if len(data.cells) > 1:
        title += f": {first.cell.label}"
    groups.append(Group(title, (maps, *(video_map(first, split) for split in data.splits))))
    groups.append(Group("The run", (failures(data), timings(data), repetition(data), versions(data))))
    return Page(
        title=record.whole.name,
        subtitle=study_heading(record),
        warning=random_weights(record),
        tiles=_tiles(first, shown_cases(first)) if len(data.cells) == 1 else _study_tiles(data),
        facts=_facts(data),
        groups=groups,
    )


def _title(cell: RunData, case: CaseMetrics) -> str:
    title = case.method if len(cell.splits) == 1 else f"Split {case.split}: {case.method}"
    same = sum((one.split, one.method) == (case.split, case.method) for one in cell.summary.cases)
    if same > 1:
        title += f" ({case.case_id})"
    return f"{cell.cell.label}: {title}" if cell.cell.label else title


def shown_cases(data: RunData) -> tuple[CaseMetrics, ...]:
    """The cases that get sections of their own: those that adapt, and of a split where none does all of them.

    A method that adapts holds the decisions without adaptation as its own "before".
    """
    shown = []
    for split in data.splits:
        cases = [case for case in data.summary.cases if case.split == split.name or len(data.splits) == 1]
        shown += [case for case in cases if case.adapts] or cases
    return tuple(shown)


def _tiles(data: RunData, shown: Sequence[CaseMetrics]) -> tuple[Tile, ...]:
    """The headline: of a protocol's averages, or of the first case that adapts."""
    summary = data.summary
    counts = _counts(summary)
    if not shown:
        return (counts,)
    case, scores = shown[0], shown[0].headline
    metric, found = next(iter(case.estimates("after").items()), ("top1", None))
    name = f"{METRICS[metric]}, {case.method}"
    averages = {one.metric: one for one in summary.averages if one.method == case.method}
    if metric in averages:
        after, before = averages[metric], averages.get(f"{metric}_before")
        which = "harmonic mean" if after.kind == "harmonic" else "mean"
        spread = "" if after.std is None else f", ± {percent(after.std)}"
        tiles = [Tile(name, f"{percent(after.value)} %", f"{which} of {len(after.splits)} splits{spread}")]
        if before is not None and case.adapts:
            rise = f"{percent(after.value - before.value, '+')} points"
            tiles.append(Tile("before adaptation", f"{percent(before.value)} %", f"{rise} by it"))
        return (*tiles, counts)
    before = case.estimates("before").get(metric)
    if found is None or before is None:
        return (Tile("accuracy", "none", "no video has a label"), counts)
    tiles = [Tile(name, f"{percent(found.value)} %", f"95 % interval {ends(found)}")]
    if case.adapts:
        tiles.append(Tile("before adaptation", f"{percent(before.value)} %", f"95 % interval {ends(before)}"))
    if scores is not None and (change := scores.change) is not None:
        how = f"{ends(change.top1, '+')}, McNemar p {p_value(change.p_value)}"
        tiles.append(Tile("change, points", percent(change.top1.value, "+"), how))
    chance = () if scores is None else (Tile("chance", f"{percent(case.chance)} %", f"1 of {case.classes} classes"),)
    return (*tiles, *chance, counts)


def _study_tiles(data: StudyData) -> tuple[Tile, ...]:
    record = data.record
    return (Tile("cells", str(len(record.cells)), ranges_of(record)), _counts(data.whole))


def _counts(summary: RunSummary) -> Tile:
    return Tile("videos", f"{summary.videos:,}", f"{summary.finished:,} finished, {summary.failed:,} failed")


def _facts(data: StudyData) -> list[tuple[str, str]]:
    record, summary = data.record, data.whole
    protocol = f"{len(data.splits)} splits: {', '.join(one.name for one in data.splits)}"
    models = {_model(cell): None for cell in data.cells}
    views = [dict(cell.config["views"]) for cell in data.cells]
    frames = {f"{one['frames']} frames; the evaluation view {one['eval_frames']}": None for one in views}
    seeds = ", ".join({str(cell.summary.seed): None for cell in data.cells})
    return [
        ("dataset", f"{summary.dataset}{f', split {summary.split}' if summary.split else ''}"),
        ("protocol", protocol if len(data.splits) > 1 else f"one split, {summary.classes} classes"),
        ("model", "; ".join(models)),
        ("methods", ", ".join(dict.fromkeys(case.method for case in summary.cases))),
        ("views", "; ".join(frames)),
        ("seed", f"{seeds}; zar report compare puts runs with other seeds beside it"),
        *(("pass", note) for note in pass_notes(record)),
        *((name, without_password(value)) for name, value in summary_facts(summary)),
    ]


def _model(cell: RunData) -> str:
    summary, config = cell.summary, cell.config
    weights = "untrained" if summary.random_weights else str(config.get("checkpoint") or config.get("pretrained"))
    return f"{summary.model}, weights {weights} (fingerprint {summary.model_fingerprint})"


def _results(data: StudyData) -> Section:
    record = data.record
    if not record.tables:
        return Section("Accuracy", [replace(one, words=2) for one in study_blocks(record)])
    content: list[Content] = list(study_blocks(record))
    if len(data.cells) > CELLS_SHOWN:
        shown = f"Below are the first {CELLS_SHOWN} of {len(data.cells)} cells, one by one; the tables have all."
        content.append(Text(f"{shown} `zar report compare` holds any two against each other.", weak=True))
    return Section("Accuracy", content)


def _published(data: StudyData) -> Section:
    rows, notes = [], []
    for name in known_tables():
        table = load_table(name)
        for row, column, result in table.cells():
            found = measure(table, row, column, data.runs)
            if found is None:
                continue
            differences = "; ".join(found.differences) or "none"
            if differences not in notes:
                notes.append(differences)
            number = f"d{notes.index(differences) + 1}"
            published = fixed(result.value, row.decimals) + ("" if result.std is None else f" ± {result.std}")
            values = (published, fixed(found.value, row.decimals), fixed(found.value - result.value, 2, "+"))
            rows.append((name, row.label, column.name, number, *values))
    if not rows:
        why = "No published table that comes with zar-ray has a result of this dataset, method and kind of weights."
        return why_empty("Beside published results", why)
    columns = ("table", "row", "benchmark", "differs", "published", "measured", "points")
    lead = Text("What differs from the published protocol stands below the table: numbers compare with that in mind.")
    legend = [f"d{number}: {text}" for number, text in enumerate(notes, start=1)]
    return Section("Beside published results", (lead, Block(None, columns, rows, legend, words=4)))
