"""Tables whose rows are dataclasses: the annotations of the attributes say what the columns hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, get_type_hints

import pyarrow as pa

_T = TypeVar("_T")

# An attribute that may be None has a column that may hold null.
Name = Annotated[str, pa.string()]
Text = Annotated[str | None, pa.string()]
Texts = Annotated[tuple[str, ...] | None, pa.list_(pa.string())]
Number = Annotated[int | None, pa.int32()]
Bytes = Annotated[int | None, pa.int64()]
Real = Annotated[float | None, pa.float64()]


def schema_of(kind: type[Any]) -> pa.Schema:
    """The columns of a table of such rows, one for each annotated attribute, in order."""
    columns = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        held, arrow = hint.__origin__, hint.__metadata__[0]
        columns.append(pa.field(name, arrow, nullable=type(None) in getattr(held, "__args__", ())))
    return pa.schema(columns)


def rows_to_table(rows: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Puts rows into a table; no rows make an empty one."""
    rows = list(rows)
    # Column by column: Arrow's from_pylist would want a dictionary a row.
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)


def table_to_rows(table: pa.Table | pa.RecordBatch, kind: type[_T]) -> list[_T]:
    """Reads a table of `rows_to_table` back into rows."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row.update({name: tuple(value) for name, value in row.items() if isinstance(value, list)})
    return [kind(**row) for row in rows]
