"""The Explorer: a second page beside a run's report, with a table of all its videos to sort, filter and search.

The page holds its data as columns in one block of JSON, and a script that needs nothing but them.  What the page may do
is said by its Content-Security-Policy: run this script, use this style, show the pictures inside, play local files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from zar_ray.file_systems import Location
from zar_ray.options.base import without_password
from zar_ray.reporting.numbers import shortened
from zar_ray.reporting.pages import Cards, Page, rendered
from zar_ray.reporting.run_data import RunData, StudyData
from zar_ray.results.record import CaseMetrics

EXPLORER = "explorer.html"
"""The Explorer's file beside a report of the usual name."""

MOST_VIDEOS = 20_000
"""So many videos of a case are on the page at most."""

MOST_ROWS = 200_000
"""So many rows of all cases together are on the page at most; each case has its even share."""

_KEPT = ("video_id", "case_id", "label_id", "labels", "entropy_before", "entropy_after", "warning")
_READ = (*_KEPT, "top5_before", "top5_after", "top5_scores_before", "top5_scores_after", "error", "error_stage")
_LONGEST_REASON = 300


def explorer_of(report: str) -> str:
    """Where the Explorer of a report lies: beside it, named after it."""
    folder, name = Location.parse(report).split()
    stem = name.removesuffix(".html")
    return str(folder / (EXPLORER if stem == "report" else f"{stem}-{EXPLORER}"))


def render_explorer(data: StudyData, page: Page, report: str) -> str:
    """The Explorer of a run as one HTML file.

    Args:
        data: The run.
        page: Its report, whose sampled videos have their pictures here too.
        report: Where the report is, or will be; the Explorer lies beside it, see `explorer_of`.

    Raises:
        RunError: The run's files cannot be read.
        ManifestError: Its manifest cannot be read.
    """
    folder, name = Location.parse(report).split()
    cases = [(cell, case) for cell in data.cells for case in cell.summary.cases]
    most = min(MOST_VIDEOS, max(1, MOST_ROWS // max(1, len(cases))))
    tables = _tables(data, cases, most)
    ids = _distinct([table["video_id"] for table, _ in tables])
    texts = _distinct([table[name] for table, _ in tables for name in ("reason", "warning")])
    known = ids.to_pylist()
    number_of = {video: number for number, video in enumerate(known)}
    class_lists = list(dict.fromkeys(cell.split(case.split).class_names for cell, case in cases))
    held = {
        "cases": [
            {
                "title": cell.title(case),
                "adapts": case.adapts,
                "several": cell.split(case.split).multi_label,
                "classes": class_lists.index(cell.split(case.split).class_names),
                "left_out": left_out,
                **_columns(table, ids, texts, several=cell.split(case.split).multi_label),
            }
            for (cell, case), (table, left_out) in zip(cases, tables, strict=True)
        ],
        "classes": class_lists,
        "ids": known,
        "texts": [shortened(one, _LONGEST_REASON) for one in texts.to_pylist()],
        "files": _files(data.paths(ids), folder.path if folder.kind in ("", "file") else None),
        "pictures": {number_of[video]: uris for video, uris in _pictures(page).items() if video in number_of and uris},
    }
    return rendered(
        "explorer.html",
        title=page.title,
        subtitle=page.subtitle,
        warning=page.warning,
        report=quote(name),
        results=without_password(data.record.whole.results),
        data=_json(held),
    )


def _json(value: object) -> Markup:
    """JSON that can stand inside a script element: in it no sign that HTML or JavaScript knows stands as itself."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def _distinct(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """All texts of some columns, each once, sorted; a text's position then sorts like itself."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.string()).unique().drop_null().sort()


def _flat(rows: pa.Table) -> pa.Table:
    """What the page has of some rows: of lists of the best classes and their probabilities the first."""
    columns = {name: rows[name] for name in _KEPT}
    joined = [rows["error_stage"], rows["error"], pa.scalar(": ")]
    columns["reason"] = pc.call_function("binary_join_element_wise", joined)
    for when in ("before", "after"):
        for name, lists in ((when, f"top5_{when}"), (f"confidence_{when}", f"top5_scores_{when}")):
            columns[name] = pc.call_function("list_element", [rows[lists], pa.scalar(0)])
    return pa.table(columns)


def _tables(data: StudyData, cases: list[tuple[RunData, CaseMetrics]], most: int) -> list[tuple[pa.Table, int]]:
    """What is shown of each case, as `_chosen` says."""
    pa.default_memory_pool().release_unused()
    # All cases are read at once: each by itself would be a pass over the file.
    every = pa.concat_tables(map(_flat, data.stored.pieces(_READ)))
    case_ids = every["case_id"].combine_chunks().dictionary_encode()
    return [_chosen(_of_case(every, case_ids, cell, case), most) for cell, case in cases]


def _of_case(every: pa.Table, case_ids: pa.DictionaryArray, cell: RunData, case: CaseMetrics) -> pa.Table:
    """The rows of one case, over the videos of its split."""
    number = case_ids.dictionary.index(case.case_id).as_py()
    rows = every.take(pa.array(np.flatnonzero(case_ids.indices.to_numpy() == number)))
    inside = cell.split(case.split).inside
    return rows if inside is None else rows.filter(inside)


def _chosen(rows: pa.Table, most: int) -> tuple[pa.Table, int]:
    """At most so many of a case's rows, in their order, and how many are left out.

    Failed ones come first, then wrong and changed ones; where not all of a kind fit, those there lie evenly spread.
    """
    before, after, label = (rows[name].fill_null(-1).to_numpy() for name in ("before", "after", "label_id"))
    failed = rows["reason"].is_valid().to_numpy()
    odd = (before != after) | ((label >= 0) & (after != label))
    kept = np.zeros(len(rows), bool)
    for kind in (failed, odd & ~failed, ~odd & ~failed):
        there = np.flatnonzero(kind)
        room = min(most - int(kept.sum()), len(there))
        kept[there[np.arange(room) * len(there) // max(room, 1)]] = True
    return rows.filter(pa.array(kept)), len(rows) - int(kept.sum())


def _columns(rows: pa.Table, ids: pa.Array, texts: pa.Array, *, several: bool) -> dict[str, list[Any]]:
    """A case's columns as the script reads them: whole numbers, -1 where nothing is known.

    Confidences are hundredths of a per cent, entropies thousandths of a nat; videos, reasons and warnings are
    positions. The label of a video that may show several classes is a list, or null.
    """
    found: dict[str, list[Any]] = {
        "video": _positions(rows["video_id"], ids),
        "label": rows["labels"].to_pylist() if several else _whole(rows["label_id"]),
        "reason": _positions(rows["reason"], texts),
        "warning": _positions(rows["warning"], texts),
    }
    for when in ("before", "after"):
        found[when] = _whole(rows[when])
        found[f"confidence_{when}"] = _whole(rows[f"confidence_{when}"], 10_000)
        found[f"entropy_{when}"] = _whole(rows[f"entropy_{when}"], 1000)
    return found


def _whole(column: pa.ChunkedArray, times: int = 1) -> list[int]:
    values = column.cast(pa.float64()).fill_null(-1.0 / times).to_numpy()
    return np.rint(times * values).astype(np.int64).tolist()


def _positions(column: pa.ChunkedArray, among: pa.Array) -> list[int]:
    found = pc.call_function("index_in", [column], pc.SetLookupOptions(among, skip_nulls=True))
    return found.fill_null(-1).to_pylist()


def _pictures(page: Page) -> Mapping[str, list[str]]:
    """The pictures of the videos that a report samples, by id."""
    contents = [one for group in page.groups for section in group.sections for one in section.content]
    cards = [card for one in contents if isinstance(one, Cards) for card in one.cards]
    return {card.title: [picture.uri for picture in card.pictures] for card in cards}


def _files(paths: Sequence[str | None], folder: str | None) -> list[str | None]:
    """Addresses of local files, relative to the page's folder; None for what is no file that a browser could open."""

    @cache
    def beside(parent: Path) -> Path | None:
        try:
            return None if folder is None else Path(os.path.relpath(parent, folder))
        except ValueError:  # on another drive
            return None

    found: list[str | None] = []
    for path in paths:
        file = None if path is None else Path(path)
        parent = None if file is None else beside(file.parent)
        found.append(None if file is None or parent is None else _address(parent / file.name))
    return found


def _address(path: Path) -> str:
    # A file's name need not be text, and may hold what an address would take for its own.
    return quote(os.fsencode(path.as_posix()))
