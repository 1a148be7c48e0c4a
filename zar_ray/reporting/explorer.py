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

_COLUMNS = (
    *("video_id", "label_id", "labels", "top5_before", "top5_after", "top5_scores_before", "top5_scores_after"),
    *("entropy_before", "entropy_after", "warning", "error", "error_stage"),
)
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
    tables = [_chosen(cell.rows(case, _COLUMNS), most) for cell, case in cases]
    ids = _distinct([table["video_id"] for table, _ in tables])
    texts = _distinct([column for table, _ in tables for column in (_reasons(table), _warnings(table))])
    number_of, class_lists = (
        {one: at for at, one in enumerate(ids.to_pylist())},
        list(dict.fromkeys(map(_names_of, cases))),
    )
    shown = [
        _columns(cell, case, table, every, ids, texts) | {"classes": class_lists.index(_names_of((cell, case)))}
        for (cell, case), (table, every) in zip(cases, tables, strict=True)
    ]
    held = {
        "cases": shown,
        "classes": class_lists,
        "ids": ids.to_pylist(),
        "texts": texts.to_pylist(),
        "clips": _clips(data.paths(ids), folder.path if folder.kind in ("", "file") else None),
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


def _names_of(one: tuple[RunData, CaseMetrics]) -> tuple[str, ...]:
    cell, case = one
    return cell.split(case.split).class_names


def _distinct(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """All texts of some columns, each once, sorted; a text's position then sorts like itself."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.string()).unique().drop_null().sort()


def _best(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first value of each list, null where there is no list."""
    return pc.call_function("list_element", [lists, pa.scalar(0)])


def _chosen(rows: pa.Table, most: int) -> tuple[pa.Table, int]:
    """At most so many of a case's rows, in their order, and how many there are.

    Failed ones come first, then wrong and changed ones; where not all of a kind fit, those there are lie evenly spread.
    """
    if len(rows) <= most:
        return rows, len(rows)
    before, after = (_best(rows[f"top5_{when}"]).fill_null(-1).to_numpy() for when in ("before", "after"))
    label = rows["label_id"].fill_null(-1).to_numpy()
    failed = rows["error"].is_valid().to_numpy()
    odd = (before != after) | ((label >= 0) & (after != label))
    kept = np.zeros(len(rows), bool)
    for kind in (failed, odd & ~failed, ~odd & ~failed):
        there = np.flatnonzero(kind)
        room = min(most - int(kept.sum()), len(there))
        kept[there[np.arange(room) * len(there) // max(room, 1)]] = True
    return rows.filter(pa.array(kept)), len(rows)


def _reasons(rows: pa.Table) -> pa.ChunkedArray:
    """Why each video failed, null for finished ones."""
    pairs = zip(rows["error_stage"].to_pylist(), rows["error"].to_pylist(), strict=True)
    said = [None if error is None else shortened(f"{stage}: {error}", _LONGEST_REASON) for stage, error in pairs]
    return pa.chunked_array([pa.array(said, pa.string())])


def _warnings(rows: pa.Table) -> pa.ChunkedArray:
    said = [None if one is None else shortened(one, _LONGEST_REASON) for one in rows["warning"].to_pylist()]
    return pa.chunked_array([pa.array(said, pa.string())])


def _columns(
    cell: RunData, case: CaseMetrics, rows: pa.Table, every: int, ids: pa.Array, texts: pa.Array
) -> dict[str, Any]:
    """A case's columns as the script reads them: whole numbers, -1 where nothing is known.

    Confidences are hundredths of a per cent, entropies thousandths of a nat; videos, reasons and warnings
    are positions.
    """
    several = cell.split(case.split).multi_label
    found: dict[str, Any] = {
        "title": cell.title(case),
        "adapts": case.adapts,
        "several": several,
        "left_out": every - len(rows),
        "video": _positions(rows["video_id"], ids),
        "label": rows["labels"].to_pylist() if several else _whole(rows["label_id"]),
        "reason": _positions(_reasons(rows), texts),
        "warning": _positions(_warnings(rows), texts),
    }
    for when in ("before", "after"):
        found[when] = _whole(_best(rows[f"top5_{when}"]))
        found[f"confidence_{when}"] = _whole(_best(rows[f"top5_scores_{when}"]), 10_000)
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


def _clips(paths: Sequence[str | None], folder: str | None) -> list[str | None]:
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
