"""What a run evaluates: the videos of a protocol's splits, and the class sets that each is classified among.

A video that is in several splits is one row of the manifest and is decoded and encoded once. Splits with the same names
in the same order share a class set, and so the decisions about their common videos.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zar_ray.data.manifest import Manifest
from zar_ray.data.protocols import EvaluationSplit
from zar_ray.results.case import Case

# Columns that a manifest's rows are given on their way through the job.
CLASS_SETS = pa.field("class_sets", pa.list_(pa.int32()))
RIGHT_IDS = pa.field("right_ids", pa.list_(pa.list_(pa.int32())))


@dataclass(frozen=True, eq=False)
class Workload:
    """Videos and what is asked about them.

    Attributes:
        manifest: The videos of all splits, each once.
        splits: The protocol's splits.
        class_sets: The distinct candidate classes.
        sets_of_splits: Which class set each split has.
    """

    manifest: Manifest
    splits: tuple[EvaluationSplit, ...]
    class_sets: tuple[tuple[str, ...], ...]
    sets_of_splits: tuple[int, ...]

    @classmethod
    def of(cls, manifest: Manifest, splits: Sequence[EvaluationSplit]) -> Workload:
        """Takes the videos that any split has out of a manifest."""
        class_sets = tuple(dict.fromkeys(split.class_names for split in splits))
        return cls(
            manifest.keep(chain.from_iterable(split.video_ids for split in splits)),
            tuple(splits),
            class_sets,
            tuple(class_sets.index(split.class_names) for split in splits),
        )

    @property
    def multi_label(self) -> bool:
        """Whether a video may show several classes."""
        return any(split.multi_label for split in self.splits)

    def table(self) -> pa.Table:
        """The manifest's table with `CLASS_SETS`, in ascending order, and `RIGHT_IDS`, the right label ids in each."""
        ids = self.manifest.table["video_id"]
        # Of each video and class set, which of the labels of all splits after one another.
        place = np.full((len(ids), len(self.class_sets)), -1)
        before = 0
        for split, class_set in zip(self.splits, self.sets_of_splits, strict=True):
            looked_up = pc.SetLookupOptions(pa.array(split.video_ids, pa.string()))
            found = pc.call_function("index_in", [ids], looked_up).fill_null(-1).to_numpy()
            place[found >= 0, class_set] = before + found[found >= 0]
            before += len(split)
        labels = pa.array(list(chain.from_iterable(split.labels for split in self.splits)), RIGHT_IDS.type.value_type)
        sets_of = marked(place >= 0)
        right = pa.ListArray.from_arrays(sets_of.offsets, labels.take(pa.array(place[place >= 0])))
        return self.manifest.table.append_column(CLASS_SETS, sets_of.cast(CLASS_SETS.type)).append_column(
            RIGHT_IDS, right.cast(RIGHT_IDS.type)
        )

    def usable(self) -> tuple[int, ...]:
        """How many videos each class set has that could be opened: what its streams are given at most."""
        table = self.manifest.table
        whole = pc.SetLookupOptions(table.filter(pc.field("error").is_null())["video_id"])
        inside = (pc.call_function("is_in", [ids], whole) for ids in self._ids_of_sets())
        return tuple(int(one.to_numpy(zero_copy_only=False).sum()) for one in inside)

    def expected_rows(self, cases: Sequence[Case]) -> dict[str, pa.Array]:
        """The videos that a finished run's table has a row of, each once, by case id."""
        videos = self._ids_of_sets()
        return {case.case_id: videos[case.class_set] for case in cases}

    def _ids_of_sets(self) -> list[pa.Array]:
        """The videos of each class set, each once."""
        of_sets: list[list[pa.Array]] = [[] for _ in self.class_sets]
        for split, class_set in zip(self.splits, self.sets_of_splits, strict=True):
            of_sets[class_set].append(pa.array(split.video_ids, pa.string()))
        return [pa.concat_arrays(ids).unique() for ids in of_sets]

    def cases_of(self, split: EvaluationSplit, cases: Iterable[Case]) -> tuple[Case, ...]:
        """The cases that classify a split's videos, in order."""
        class_set = self.sets_of_splits[self.splits.index(split)]
        return tuple(case for case in cases if case.class_set == class_set)


def marked(places: np.ndarray) -> pa.ListArray:
    """Of each row of bool (N, M) the numbers of the places that are marked, as int32."""
    ends = pa.array(np.append(0, places.sum(axis=1).cumsum()), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(np.nonzero(places)[1], pa.int32()))


def of_class_set(videos: pa.Table, class_set: int) -> np.ndarray:
    """Bool (N,): which rows of `Workload.table` are classified among a class set."""
    column = videos[CLASS_SETS.name].combine_chunks()
    inside = np.zeros(len(column), bool)
    parents = pc.call_function("list_parent_indices", [column]).to_numpy()
    inside[parents[column.flatten().to_numpy() == class_set]] = True
    return inside
