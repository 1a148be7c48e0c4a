"""A training's videos as columns: a million of them are some hundred megabytes a node rather than Python objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from zar_ray.columns import table_to_rows
from zar_ray.data.manifest import Manifest, VideoRow


@dataclass(frozen=True, eq=False)
class VideoTable:
    """Videos by their number; a row is made when it is asked for.

    Attributes:
        table: The videos, with the columns of a manifest.
        reference: Where the table lies in Ray's object store, see `shared`.
    """

    table: pa.Table
    reference: ray.ObjectRef | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> VideoTable:
        """A manifest's videos, in its order."""
        return cls(manifest.table.combine_chunks())

    def shared(self) -> VideoTable:
        """The same, which is sent to other processes as a reference: all of a node read it where it lies there."""
        return replace(self, reference=ray.put(self.table))

    def __reduce__(self) -> tuple[Any, ...]:
        return (VideoTable, (self.table,)) if self.reference is None else (_fetched, (self.reference,))

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, number: int) -> VideoRow:
        if not 0 <= number < len(self):
            raise IndexError(number)
        (row,) = table_to_rows(self.table.slice(number, 1), VideoRow)
        return row

    def labelled(self, labels: Iterable[tuple[str, int]]) -> VideoTable:
        """The videos of these ids, in the ids' order and with these label ids."""
        wanted = dict(labels)
        known = pc.SetLookupOptions(self.table["video_id"])
        table = self.table.take(pc.call_function("index_in", [pa.array(list(wanted), pa.string())], known))
        place = table.schema.get_field_index("label_id")
        ids = pa.array(list(wanted.values()), pa.int32())
        return VideoTable(table.set_column(place, table.schema.field(place), ids))


def _fetched(reference: ray.ObjectRef) -> VideoTable:
    return VideoTable(ray.get(reference), reference)


def usable_videos(manifest: Manifest) -> Manifest:
    """Those videos of a manifest that can be read and have a label."""
    return replace(manifest, table=manifest.table.filter(pc.field("error").is_null() & pc.field("label_id").is_valid()))
