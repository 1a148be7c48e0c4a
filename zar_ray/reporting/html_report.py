"""The report of one run: `zar report run`.  Every section shows something or says why it has nothing to show."""

from __future__ import annotations

from collections.abc import Sequence

from zar_ray.options.base import without_password
from zar_ray.reporting.blocks import Block
from zar_ray.reporting.case_sections import case_sections
from zar_ray.reporting.numbers import p_value, percent
from zar_ray.reporting.pages import (
    Content,
    Group,
    Page,
    Section,
    Text,
    Tile,
    render,
    why_empty,
)
from zar_ray.reporting.published import known_tables, load_table
from zar_ray.reporting.published_match import measure
from zar_ray.reporting.run_data import RunData
from zar_ray.reporting.run_sections import (
    AttentionSource,
    attention_maps,
    failures,
    repetition,
    timings,
    versions,
    video_map,
)
from zar_ray.reporting.summary_tables import (
    RANDOM_WEIGHTS,
    adapts,
    summary_blocks,
    summary_facts,
    summary_heading,
)
from zar_ray.results.record import CaseMetrics, Estimate
from zar_ray.storage import Storage, is_uri

REPORT = "report.html"
"""The report's file in the run's folder."""


def write_report(
    run: str, output: str | None = None, samples: int = 6, attention: AttentionSource | None = None
) -> tuple[str, str]:
    """Writes a run's report as one HTML file that needs nothing besides itself.

    Args:
        run: The run's folder or its URI.
        output: The file; by default `REPORT` in the run's folder.
        samples: How many of the videos most helped, and most hurt, are shown.
        attention: What draws attention maps, if anything does.

    Returns:
        Where the file is, and its content.

    Raises:
        RunError: The folder holds no finished run, or the file cannot be written.
    """
    data = RunData.read(run)
    page = render(run_page(data, samples, attention))
    return write_file(page.encode(), output or data.storage.path(REPORT)), page


def write_file(content: bytes, output: str) -> str:
    """Writes a file whole or not at all; returns where it is."""
    place = output if is_uri(output) else Storage(output).location
    folder, _, name = place.rpartition("/")
    Storage(folder or "/").write(name, content)
    return place


def run_page(data: RunData, samples: int = 6, attention: AttentionSource | None = None) -> Page:
    """Everything that a run found, as a page.

    Args:
        data: The run.
        samples: How many of the videos most helped, and most hurt, are shown.
        attention: What draws attention maps, if anything does.
    """
    summary = data.summary
    shown = shown_cases(data)
    groups = [Group("Results", (_results(data), _published(data)))]
    for case in shown:
        title = f"{case.method}" if len(data.splits) == 1 else f"Split {case.split}: {case.method}"
        if sum((one.split, one.method) == (case.split, case.method) for one in summary.cases) > 1:
            title += f" ({case.case_id})"
        groups.append(Group(title, case_sections(data, case, samples)))
    maps = (video_map(data, split) for split in data.splits)
    groups.append(Group("What the model sees", (attention_maps(data, samples, attention), *maps)))
    groups.append(Group("The run", (failures(data), timings(data), repetition(data), versions(data))))
    return Page(
        title=summary.name,
        subtitle=summary_heading(summary),
        warning=RANDOM_WEIGHTS if summary.random_weights else None,
        tiles=_tiles(data, shown),
        facts=_facts(data),
        groups=groups,
    )


def shown_cases(data: RunData) -> tuple[CaseMetrics, ...]:
    """The cases that get sections of their own: those that adapt, and of a split where none does all of them.

    A method that adapts holds the decisions without adaptation as its own "before".
    """
    shown = []
    for split in data.splits:
        cases = [case for case in data.summary.cases if case.split == split.name or len(data.splits) == 1]
        shown += [case for case in cases if adapts(case)] or cases
    return tuple(shown)


def _tiles(data: RunData, shown: Sequence[CaseMetrics]) -> tuple[Tile, ...]:
    """The headline: of a protocol's averages, or of the first case that adapts."""
    summary = data.summary
    counts = Tile("videos", f"{summary.videos:,}", f"{summary.finished:,} finished, {summary.failed:,} failed")
    if not shown:
        return (counts,)
    case = shown[0]
    found = {one.metric: one for one in summary.averages if one.method == case.method}
    metric, name = ("map", "mAP") if case.map_after is not None else ("top1", "top-1")
    if metric in found:
        after, before = found[metric], found.get(f"{metric}_before")
        which = "harmonic mean" if after.kind == "harmonic" else "mean"
        spread = "" if after.std is None else f", ± {percent(after.std)}"
        detail = f"{which} of {len(after.splits)} splits{spread}"
        tiles = [Tile(f"{name}, {case.method}", f"{percent(after.value)} %", detail)]
        if before is not None and adapts(case):
            rise = f"{percent(after.value - before.value, '+')} points"
            tiles.append(Tile("before adaptation", f"{percent(before.value)} %", f"{rise} by it"))
        return (*tiles, counts)
    if case.map_after is not None:
        return (*_map_tiles(case, name), counts)
    if case.headline is None:
        return (Tile("accuracy", "none", "no video has a label"), counts)
    top1, change = case.headline.after.top1, case.headline.change
    tiles = [Tile(f"{name}, {case.method}", f"{percent(top1.value)} %", f"95 % interval {_ends(top1)}")]
    if change is not None:
        before = case.headline.before.top1
        tiles += [
            Tile("before adaptation", f"{percent(before.value)} %", f"95 % interval {_ends(before)}"),
            Tile(
                "change, points",
                percent(change.top1.value, "+"),
                f"{_ends(change.top1, '+')}, McNemar p {p_value(change.p_value)}",
            ),
        ]
    tiles.append(Tile("chance", f"{percent(case.chance)} %", f"1 of {case.classes} classes"))
    return (*tiles, counts)


def _map_tiles(case: CaseMetrics, name: str) -> tuple[Tile, ...]:
    assert case.map_after is not None
    after = Tile(f"{name}, {case.method}", f"{percent(case.map_after.value)} %", f"interval {_ends(case.map_after)}")
    if case.map_before is None or not adapts(case):
        return (after,)
    before = case.map_before
    return (after, Tile("before adaptation", f"{percent(before.value)} %", f"95 % interval {_ends(before)}"))


def _ends(estimate: Estimate, sign: str = "") -> str:
    return f"{percent(estimate.low, sign)} to {percent(estimate.high, sign)}"


def _facts(data: RunData) -> list[tuple[str, str]]:
    summary, options = data.summary, data.options
    weights = "untrained" if summary.random_weights else str(options.checkpoint or options.pretrained)
    protocol = f"{len(data.splits)} splits: {', '.join(one.name for one in data.splits)}"
    views = options.views
    return [
        ("dataset", f"{summary.dataset}{f', split {summary.split}' if summary.split else ''}"),
        ("protocol", protocol if len(data.splits) > 1 else f"one split, {summary.classes} classes"),
        ("model", f"{summary.model}, weights {weights} (fingerprint {summary.model_fingerprint})"),
        ("methods", ", ".join(dict.fromkeys(case.method for case in summary.cases))),
        ("views", f"{views.frames} frames; the evaluation view {views.eval_frames}"),
        ("seed", f"{summary.seed}; zar report compare puts runs with other seeds beside it"),
        *((name, without_password(value)) for name, value in summary_facts(summary)),
    ]


def _results(data: RunData) -> Section:
    content: list[Content] = []
    for block in summary_blocks(data.summary):
        if block.title is not None:
            content.append(Text(block.title[0].upper() + block.title[1:]))
        content.append(Block(None, block.columns, block.rows, words=2))
        content += [Text(note, weak=True) for note in block.notes]
    return Section("Accuracy", content)


def _published(data: RunData) -> Section:
    rows, notes = [], []
    for name in known_tables():
        table = load_table(name)
        for row, column, result in table.cells():
            found = measure(table, row, column, [data.finished])
            if found is None:
                continue
            differences = "; ".join(found.differences) or "none"
            if differences not in notes:
                notes.append(differences)
            number = f"d{notes.index(differences) + 1}"
            published = f"{result.value:.{row.decimals}f}" + ("" if result.std is None else f" ± {result.std}")
            measured = f"{found.value:.{row.decimals}f}"
            rows.append(
                (name, row.label, column.name, number, published, measured, f"{found.value - result.value:+.2f}")
            )
    if not rows:
        why = "No published table that comes with zar-ray has a result of this dataset, method and kind of weights."
        return why_empty("Beside published results", why)
    columns = ("table", "row", "benchmark", "differs", "published", "measured", "points")
    legend = tuple(Text(f"d{number}: {text}", weak=True) for number, text in enumerate(notes, start=1))
    lead = Text("What differs from the published protocol stands below the table: numbers compare with that in mind.")
    return Section("Beside published results", (lead, Block(None, columns, rows, words=4), *legend))
