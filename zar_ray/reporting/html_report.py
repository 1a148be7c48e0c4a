"""The report of a run: `zar report run`.  Every section shows something or says why it has nothing to show."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from zar_ray.errors import ZarError
from zar_ray.file_systems import Location
from zar_ray.options.base import without_password
from zar_ray.reporting import figures, study_tables
from zar_ray.reporting.attention_figures import attention_figure
from zar_ray.reporting.blocks import Block, Form, written
from zar_ray.reporting.case_sections import case_sections
from zar_ray.reporting.cost_sections import cost_section
from zar_ray.reporting.explorer import explorer_of, render_explorer
from zar_ray.reporting.figure_files import write_figures
from zar_ray.reporting.numbers import METRICS, digits, ends, failed_count, fixed, p_value, percent, with_std
from zar_ray.reporting.pages import (
    Code,
    Content,
    Drawn,
    Figure,
    Group,
    Page,
    Section,
    Text,
    Tile,
    render,
    why_empty,
    write_file,
)
from zar_ray.reporting.published.tables import known_tables, load_table
from zar_ray.reporting.published.view import Marks, compare
from zar_ray.reporting.run_data import RunData, RunSplit, StudyData, of_videos
from zar_ray.reporting.summary_tables import p_of, summary_facts
from zar_ray.results.case import CLEAN
from zar_ray.results.folder import CONFIG
from zar_ray.results.record import CaseMetrics, RunSummary
from zar_ray.results.rows import RESULT_SCHEMA
from zar_ray.storage import suffix_of
from zar_ray.video.sandbox import DecoderProcess

if TYPE_CHECKING:
    from zar_ray.explain.explanation import VideoMaps

REPORT = "report.html"
"""The report's file in the run's folder."""

_ATTENTION = "Where the model looks"
_LISTED = 50
# Facts that say where something lies, which comes after what was found.
_PLACES = ("warned", "results", "run", "MLflow")

CELLS_SHOWN = 8
"""So many of a run's cells get sections of their own."""

TABLES: Mapping[str, Form] = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
"""Forms of a run's tables by the endings of their files."""


def write_report(
    run: str,
    output: str | None = None,
    samples: int = 6,
    *,
    attention: bool = True,
    form: Drawn | None = None,
) -> tuple[str, Mapping[str, str]]:
    """Writes a run's report as one HTML file that needs nothing besides itself, and the Explorer beside it.

    Args:
        run: The run's folder or its URI.
        output: The file; by default `REPORT` in the run's folder.
        samples: How many of the videos most helped, and most hurt, are shown.
        attention: Whether attention maps are drawn, for which weights and videos must be at hand.
        form: What kind of files its figures are written as besides, into a folder beside it; None for none.

    Returns:
        Where the report is, and what was written by the files' names: the report, then the Explorer.

    Raises:
        RunError: The folder holds no finished run, or the file cannot be written.
    """
    data = StudyData.read(run)
    page = run_page(data, samples, attention=attention)
    place = output or data.storage.path(REPORT)
    if form is not None:
        write_figures(page, place, form)
    explorer = explorer_of(place)
    names = [Location.parse(one).name for one in (place, explorer)]
    written = dict(zip(names, (render(page, names[1]), render_explorer(data, page, place)), strict=True))
    write_file(written[names[1]].encode(), explorer)
    return write_file(written[names[0]].encode(), place), written


def write_tables(run: str, output: str) -> str:
    """Writes a run's tables alone, whole or not at all, in the form of the file's ending; returns where they are.

    Raises:
        RunError: The run's folder holds no finished run, or the file cannot be written.
    """
    record = StudyData.read(run).record
    form = TABLES[suffix_of(output)]
    of_cells = form == "csv" and bool(record.tables)
    content = study_tables.study_csv(record) if of_cells else written(study_tables.study_blocks(record), form)
    return write_file(content.encode(), output)


def run_page(data: StudyData, samples: int = 6, *, attention: bool = True) -> Page:
    """Everything that a run found, as a page; of `samples` and `attention` see `write_report`."""
    record, first = data.record, data.cells[0]
    groups = [Group("Results", (_results(data), cost_section(record), _published(data)))]
    maps = why_empty(_ATTENTION, "Attention maps were not asked for.")
    resizer, decoding = first.config.get("resize", "pil"), first.config.get("decoder", "auto")
    with DecoderProcess(idle=True, resizer=resizer, decoder=decoding) as decoder:
        for cell in data.cells[:CELLS_SHOWN]:
            for case in shown_cases(cell):
                groups.append(Group(cell.title(case), case_sections(cell, case, samples, decoder)))
        if attention:
            maps = _attention_maps(first, samples, decoder)
    title = "What the model sees"
    if len(data.cells) > 1:
        title += f": {first.cell.label}"
    groups.append(Group(title, (maps, *(_video_map(first, split) for split in data.splits))))
    groups.append(
        Group(
            "The run",
            (_failures(data), _warnings(data), _timings(data), _places(data), _repetition(data), _versions(data)),
        )
    )
    tiles = (Tile("cells", str(len(record.cells)), study_tables.ranges_of(record)), _counts(data.record.whole))
    if len(data.cells) == 1:
        tiles = _tiles(first)
    return Page(
        title=record.whole.name,
        subtitle=study_tables.study_heading(record),
        warning=study_tables.random_weights(record),
        tiles=tiles,
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
        shown += [case for case in cases if case.adapts] or cases
    return tuple(shown)


def _tiles(data: RunData) -> tuple[Tile, ...]:
    """The headline: of a protocol's averages, or of the first case that adapts."""
    summary, shown = data.summary, shown_cases(data)
    counts = _counts(summary)
    if not shown:
        return (counts,)
    case = shown[0]
    metric, after = next(iter(case.estimates("after").items()), ("top1", None))
    before, chance = case.estimates("before").get(metric), ()
    averages = {one.metric: one for one in summary.averages if one.method == case.method}
    if metric in averages:
        after, before = averages[metric], averages.get(f"{metric}_before")
        which = "harmonic mean" if after.kind == "harmonic" else "mean"
        spread = "" if after.std is None else f", ± {percent(after.std)}"
        of_after, of_before = f"{which} of {len(after.splits)} splits{spread}", f"{which} of the same splits"
        change, test = after.change, "p"
    elif after is None or before is None:
        return (Tile("accuracy", "none", "no video has a label"), counts)
    else:
        of_after, of_before = (f"95 % interval {ends(one)}" for one in (after, before))
        change, test = case.change, p_of(case)
        if case.headline is not None:
            chance = (Tile("chance", f"{percent(case.chance)} %", f"1 of {case.classes} classes"),)
    tiles = [Tile(f"{METRICS[metric]}, {case.method}", f"{percent(after.value)} %", of_after)]
    if before is not None and case.adapts:
        tiles.append(Tile("before adaptation", f"{percent(before.value)} %", of_before))
    if change is not None:
        how = f"{ends(change.effect, '+')}, {test} {p_value(change.p_value)}"
        tiles.append(Tile("change, points", percent(change.difference, "+"), how))
    return (*tiles, *chance, counts)


def _counts(summary: RunSummary) -> Tile:
    return Tile("videos", f"{summary.videos:,}", f"{summary.finished:,} finished, {summary.failed:,} failed")


def _facts(data: StudyData) -> list[tuple[str, str]]:
    record, summary = data.record, data.record.whole
    protocol = f"{len(data.splits)} splits: {', '.join(one.name for one in data.splits)}"
    models = {}
    for cell in data.cells:
        own, config = cell.summary, cell.config
        weights = "untrained" if own.random_weights else str(config.get("checkpoint") or config.get("pretrained"))
        models[f"{own.model}, weights {weights} (fingerprint {own.model_fingerprint})"] = None
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
        *(("pass", note) for note in study_tables.pass_notes(record)),
        *(fact for fact in _known(data) if fact[0] not in _PLACES),
    ]


def _known(data: StudyData) -> list[tuple[str, str]]:
    facts = summary_facts(data.record.whole, data.record.cells[0].label)
    return [(name, without_password(value)) for name, value in facts]


def _places(data: StudyData) -> Section:
    """Where the run's files are."""
    return Section("Files", (Block(None, ("", "where"), [one for one in _known(data) if one[0] in _PLACES], words=2),))


def _results(data: StudyData) -> Section:
    record = data.record
    if not record.tables:
        return Section("Accuracy", [replace(one, words=one.words or 2) for one in study_tables.study_blocks(record)])
    content: list[Content] = list(study_tables.study_blocks(record))
    if len(data.cells) > CELLS_SHOWN:
        shown = f"Below are the first {CELLS_SHOWN} of {len(data.cells)} cells, one by one; the tables have all."
        content.append(Text(f"{shown} `zar report compare` holds any two against each other.", weak=True))
    return Section("Accuracy", content)


def _published(data: StudyData) -> Section:
    rows, marks = [], Marks("d")
    for cell in (one for name in known_tables() for one in compare(load_table(name), data.runs)):
        if cell.measured is None:
            continue
        number = marks.of("; ".join(cell.measured.differences) or "none")
        decimals, published = cell.row.decimals, cell.published
        printed = with_std(published.value, published.std, decimals)
        values = (printed, fixed(cell.measured.value, decimals), fixed(cell.difference, 2, "+"))
        rows.append((cell.table.name, cell.row.label, cell.column.name, number, *values))
    if not rows:
        why = "No published table that comes with zar-ray has a result of this dataset, method and kind of model."
        return why_empty("Beside published results", why)
    columns = ("table", "row", "benchmark", "differs", "published", "measured", "points")
    lead = Text("What differs from the published protocol stands below the table: numbers compare with that in mind.")
    legend = [f"{mark}: {text}" for text, mark in marks.texts.items()]
    return Section("Beside published results", (lead, Block(None, columns, rows, legend, words=4)))


def _attention_maps(data: RunData, samples: int, decoder: DecoderProcess) -> Section:
    """Where the model looks in some videos, evenly spread over those that finished: the paper's figure 2."""
    ids = _finished(data)
    if not len(ids):
        return why_empty(_ATTENTION, "No video finished.")
    if set(data.config.get("corruption", ())) - {CLEAN}:
        return why_empty(_ATTENTION, "Attention maps are of clean frames, and these results are of corrupted ones.")
    chosen = ids.take(pa.array(figures.spread(len(ids), samples))).to_pylist()
    try:
        return Section(_ATTENTION, [attention_figure(maps) for maps in maps_of(data, chosen, decoder)])
    except ZarError as error:
        return why_empty(_ATTENTION, f"No attention maps: {error}.")


def maps_of(data: RunData, video_ids: Sequence[str], decoder: DecoderProcess) -> tuple[VideoMaps, ...]:
    """What a cell's model looks at in some of its videos; see `zar_ray.explain.explanation.explain_videos`."""
    # What it takes to compute the maps, such as PyTorch and the model, no other section needs.
    from zar_ray.explain.explanation import explain_videos

    class_sets = tuple(dict.fromkeys(split.class_names for split in data.splits))
    results = data.stored.read(RESULT_SCHEMA.names, of_videos(video_ids))
    return explain_videos(data, class_sets, results, data.study.videos(video_ids), video_ids, decoder)


def _finished(data: RunData, inside: pc.Expression | None = None) -> pa.Array:
    """The ids of the videos that have a decision in some case, sorted; all, or those `inside` a split."""
    finished = pc.field("error").is_null()
    where = finished if inside is None else finished & inside
    return data.stored.read(["video_id", "error"], where)["video_id"].unique().sort()


def _video_map(data: RunData, split: RunSplit) -> Section:
    """How near the videos of a split are to each other in the embedding space: the paper's figure 6."""
    title = "Map of the videos" if len(data.splits) == 1 else f"Map of the videos of split {split.name}"
    ids = _finished(data, split.inside)
    chosen = ids.take(pa.array(figures.spread(len(ids), figures.MOST_VIDEOS)))
    kept = data.stored.read(["video_id", "video_feature"], of_videos(chosen) & pc.field("video_feature").is_valid())
    if len(ids) and not len(kept):
        return why_empty(title, "The run keeps no features of its videos.")
    if kept.num_rows < figures.LEAST_VIDEOS:
        return why_empty(title, f"{kept.num_rows} videos are too few for a map; {figures.LEAST_VIDEOS} are needed.")
    found = figures.embedding_map(kept["video_feature"].combine_chunks().flatten().to_numpy().reshape(len(kept), -1))
    labels = _labels(data, split, kept["video_id"])
    names = [labels.get(video) for video in kept["video_id"].to_pylist()]
    several = " A video may show several classes, so none has a colour." if split.multi_label else ""
    part = f" {len(kept):,} of {len(ids):,} videos, evenly spread." if len(ids) > figures.MOST_VIDEOS else ""
    caption = (
        "What the image encoder makes of each video's evaluation view, before any adaptation, laid out by t-SNE "
        f"(perplexity {found.perplexity:.3g}, seed 0).{part}{several} Near videos look alike to the model; distances "
        "between groups mean little."
    )
    return Section(title, (Figure(figures.map_chart(found, names), caption),))


def _labels(data: RunData, split: RunSplit, video_ids: pa.ChunkedArray) -> dict[str, str]:
    """The right class of each of some videos that has one."""
    case = next((one for one in data.summary.cases if data.split(one.split) is split), None)
    if case is None or split.multi_label:
        return {}
    rows = data.rows(case, ["video_id", "label_id"])
    rows = rows.filter(of_videos(video_ids.combine_chunks()) & pc.field("label_id").is_valid())
    ids = zip(rows["video_id"].to_pylist(), rows["label_id"].to_pylist(), strict=True)
    return {video: split.class_names[label] for video, label in ids}


def _failures(data: StudyData) -> Section:
    """Which videos failed, where and why."""
    columns = {"stage": "error_stage", "video": "video_id", "reason": "error"}
    failed = data.stored.read(list(columns.values()), pc.field("error").is_valid())
    if not len(failed):
        return Section("Failures", (Text("No video failed."),))
    whole = data.record.whole
    said = ", ".join(f"{group.videos} at stage {group.stage}" for group in whole.failures)
    metric = next((name for case in whole.cases for name in case.estimates("after")), None)
    how = "" if metric is None else f" They are {failed_count(metric)}."
    lead = Text(f"{whole.failed} of {whole.videos} videos failed: {said}.{how}")
    return Section("Failures", (lead, *_listed(data, failed, columns)))


def _warnings(data: StudyData) -> Section:
    """Which videos were used although something is odd about them."""
    warned = data.stored.read(["video_id", "warning"], pc.field("warning").is_valid())
    whole = data.record.whole
    lead = Text(f"{whole.warned} of {whole.videos} videos were used with a warning; they count like others.")
    return Section("Warnings", (lead, *_listed(data, warned, {"video": "video_id", "warning": "warning"})))


def _listed(data: StudyData, table: pa.Table, columns: Mapping[str, str]) -> list[Content]:
    """The first of some rows by their `columns`, whose headings are the keys, each once; and where the others are."""
    names = list(columns.values())
    rows = table.group_by(names).aggregate([]).sort_by([(name, "ascending") for name in names])
    first = [tuple(str(row[name]) for name in names) for row in rows.slice(0, _LISTED).to_pylist()]
    content: list[Content] = [Block(None, tuple(columns), first, words=len(columns))] if first else []
    if len(rows) > _LISTED:
        content.append(Text(f"... and {len(rows) - _LISTED:,} more; {data.record.whole.results} has all.", weak=True))
    return content


def _timings(data: StudyData) -> Section:
    """What the stages took, and how the run went on over time."""
    rows = _stage_times(data)
    content: list[Content] = [Text("No time was measured: no video got that far.", weak=True)]
    if rows:
        columns = ("stage", "videos", "mean ms", "median ms", "95 % below ms", "longest ms")
        content = [
            Block(None, columns, rows, words=1),
            Text("Wall time a video in its worker; of several videos done together, each has its share.", weak=True),
        ]
    return Section("Time and throughput", [*content, *_progress(data)])


def _stage_times(data: StudyData) -> list[tuple[str, ...]]:
    times = ("seconds_decode", "seconds_encode", "seconds_adapt")
    table = data.stored.read(("video_id", "method", *times))
    of_video = table.group_by("video_id").aggregate([("seconds_decode", "max"), ("seconds_encode", "max")])
    measured = [("decoding", of_video["seconds_decode_max"]), ("encoding", of_video["seconds_encode_max"])]
    for method in table["method"].unique().to_pylist():
        of_method = table["seconds_adapt"].filter(pc.call_function("equal", [table["method"], pa.scalar(method)]))
        measured.append((f"adaptation, {method}", of_method))
    rows = []
    for stage, column in measured:
        values = column.drop_null().to_numpy()
        if len(values):
            middle, high = np.quantile(values, [0.5, 0.95])
            numbers = (values.mean(), middle, high, values.max())
            rows.append((stage, str(len(values)), *(f"{1000 * one:,.1f}" for one in numbers)))
    return rows


def _progress(data: StudyData) -> list[Content]:
    ended = data.stored.read(("video_id", "recorded_at", "error"))
    ended = ended.append_column("failed", ended["error"].is_valid()).drop_columns("error")
    by_video = ended.group_by("video_id").aggregate([("recorded_at", "max"), ("failed", "max")])
    by_video = by_video.sort_by("recorded_at_max")
    if by_video.num_rows < 2:
        return [Text("Throughput over time needs two videos.", weak=True)]
    seconds = by_video["recorded_at_max"].to_numpy()
    picture = figures.progress_chart(seconds - seconds[0], by_video["failed_max"].to_numpy())
    whole, speed = data.record.whole, data.record.whole.throughput.videos_per_second
    caption = "Videos with a result over time; rows are written a block at a time."
    if speed is not None:
        caption += f" The last session did {digits(speed)} videos a second."
    if whole.resumed:
        caption += f" {whole.resumed} videos are of earlier sessions, so the time between sessions shows."
    return [Figure(picture, caption)]


def _repetition(data: StudyData) -> Section:
    """The command that does the run again, and its options."""
    config = without_password(data.storage.path(CONFIG))
    command = shlex.join(["zar", "eval", "--config", config, "--name", f"{data.record.whole.name}-again"])
    shown = without_password(yaml.safe_dump(dict(data.config), sort_keys=False, allow_unicode=True))
    return Section(
        "Repeating the run",
        (
            Code("The same options, under another name:", command),
            Code("Resolved options", shown, folded=True),
        ),
    )


def _versions(data: StudyData) -> Section:
    """What the run was made with."""
    facts = {**data.provenance, **(data.provenance.get("packages") or {})}
    rows = [(name, str(value)) for name, value in facts.items() if name != "packages" and value is not None]
    if not rows:
        return why_empty("Versions", "The run does not say what it was made with.")
    return Section("Versions", (Block(None, ("what", "version"), rows, words=2, folded=f"{len(rows)} versions"),))
