"""Rows in Parquet files, of which no more is in memory than is asked for: some columns, or a piece at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zar_ray.errors import RunError, reason_of
from zar_ray.results.rows import FLAT_COLUMNS, KEYS, RESULT_SCHEMA
from zar_ray.storage import Storage

_In = TypeVar("_In")
_Out = TypeVar("_Out")

PREDICTIONS = "predictions.parquet"
"""File in a run's folder that holds its rows, sorted by `KEYS`."""

# Pieces of a file that are read while one is used, at most so many and of so many bytes together, but for a single one:
# they hide an object store's delay, and take memory.
_AHEAD = 8
_AHEAD_BYTES = 2**25


@dataclass(frozen=True, eq=False)
class StoredRows:
    """A run's rows where they lie, one a (video, case), sorted by both.

    Attributes:
        storage: The run's folder.
        cases: The ids of the cases whose rows these are; None for all.
    """

    storage: Storage
    cases: tuple[str, ...] | None = None

    def of(self, cases: Iterable[str]) -> StoredRows:
        """Those of some cases."""
        return replace(self, cases=tuple(cases))

    def read(self, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
        """Some columns of the rows that a condition on these columns holds for.

        Raises:
            RunError: The file is not there, or damaged.
        """
        # What earlier tables took is the system's again, before as much is taken anew.
        pa.default_memory_pool().release_unused()
        return pa.concat_tables(self.pieces(columns, where))

    def pieces(self, columns: Sequence[str], where: pc.Expression | None = None) -> Iterator[pa.Table]:
        """The same bit by bit, an empty one first."""
        schema = pa.schema([RESULT_SCHEMA.field(name) for name in columns])
        yield schema.empty_table()
        needed, conditions = list(columns), [] if where is None else [where]
        if self.cases is not None:
            needed = list(dict.fromkeys([*columns, "case_id"]))
            conditions.append(pc.field("case_id").isin(pa.array(self.cases, pa.string())))
        try:
            with self.storage.opened(PREDICTIONS) as file:
                known = pq.read_metadata(file)
            with ThreadPoolExecutor(_AHEAD) as pool:
                read = partial(self._group, known, needed, conditions)
                for table in _ahead(pool, read, range(known.num_row_groups), _pieces_ahead(known, needed)):
                    yield table.select(list(columns))
        except FileNotFoundError:
            raise RunError(f"{self.storage.path(PREDICTIONS)}: no such file, and it holds the run's rows") from None
        except (OSError, ValueError, pa.ArrowException) as error:
            at = self.storage.path(PREDICTIONS)
            raise RunError(f"{at}: is damaged ({reason_of(error)}); delete it, and the same command goes on") from error

    def _group(
        self, known: pq.FileMetaData, columns: list[str], conditions: Sequence[pc.Expression], number: int
    ) -> pa.Table:
        """The rows of one row group that all conditions hold for."""
        with self.storage.opened(PREDICTIONS) as file:
            reader = pq.ParquetFile(file, metadata=known, pre_buffer=True)
            table = as_results(reader.read_row_group(number, columns), columns)
        for condition in conditions:
            table = table.filter(condition)
        return table


def _pieces_ahead(known: pq.FileMetaData, columns: Sequence[str]) -> int:
    """How many row groups are read at a time, of whose columns some are wanted."""
    groups = (known.row_group(number) for number in range(known.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    wanted = sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.partition(".")[0] in columns)
    return max(1, min(_AHEAD, _AHEAD_BYTES * known.num_row_groups // max(1, wanted)))


def _ahead(pool: ThreadPoolExecutor, work: Callable[[_In], _Out], items: Iterable[_In], count: int) -> Iterator[_Out]:
    """The results in order, `count` of them made beforehand."""
    waiting: deque[Future[_Out]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) == count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def as_results(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Columns of `RESULT_SCHEMA`; what an earlier version did not know is null."""
    fields = [RESULT_SCHEMA.field(name) for name in columns]
    there = set(table.column_names)
    return pa.table(
        [table[one.name].cast(one.type) if one.name in there else pa.nulls(len(table), one.type) for one in fields],
        schema=pa.schema(fields),
    )


def write_rows(file: Path | pa.BufferOutputStream, tables: Iterable[pa.Table]) -> None:
    """Writes tables of `RESULT_SCHEMA`, each as a row group of its own; no table makes a file without rows."""
    # Lists hardly repeat: a dictionary of their values, and their least and greatest one, are work for nothing.
    told: dict[str, Any] = {"use_dictionary": list(FLAT_COLUMNS), "write_statistics": list(KEYS)}
    with pq.ParquetWriter(file, RESULT_SCHEMA, **told) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, len(table)))
