"""More rows than memory holds, sorted: each goes to a file of its range of video ids, and a range fits into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from zar_ray.results.rows import RESULT_SCHEMA, deduplicate


def bounds_of(video_ids: Iterable[pa.ChunkedArray], ranges: int) -> np.ndarray:
    """Where ranges of about as many videos begin, but for the first one: str, at most `ranges` - 1 of them."""
    chunks = [column.unique() for column in video_ids]
    distinct = pa.chunked_array(chunks, pa.string()).unique().sort()
    places = len(distinct) * np.arange(1, ranges) // ranges if len(distinct) else []
    return distinct.take(pa.array(np.unique(places).astype(int))).to_numpy(zero_copy_only=False)


def in_order(tables: Iterable[pa.Table], bounds: np.ndarray, scratch: Path) -> Iterator[pa.Table]:
    """What `deduplicate` makes of all of them, a range of videos after the other.

    Args:
        tables: Tables of `RESULT_SCHEMA`, each of which fits into memory.
        bounds: See `bounds_of`.
        scratch: A local folder that takes as much as all of them.
    """
    if not len(bounds):
        every = list(tables)
        yield deduplicate(pa.concat_tables(every) if every else RESULT_SCHEMA.empty_table())
        return
    files = [str(scratch / f"{number}.arrow") for number in range(len(bounds) + 1)]
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(file, RESULT_SCHEMA)) for file in files]
        for table in tables:
            of_rows = np.searchsorted(bounds, table["video_id"].to_numpy(), side="right")
            sorted_rows = table.take(pa.array(np.argsort(of_rows, kind="stable")))
            counts = np.bincount(of_rows, minlength=len(files))
            for number, end in enumerate(np.cumsum(counts)):
                if counts[number]:
                    writers[number].write_table(sorted_rows.slice(end - counts[number], counts[number]))
            # Not kept while the next one is read.
            del table, sorted_rows
    for file in files:
        yield deduplicate(_read(file))
        Path(file).unlink()


def _read(file: str) -> pa.Table:
    with pa.OSFile(file) as source:
        return pa.ipc.open_stream(source).read_all()
