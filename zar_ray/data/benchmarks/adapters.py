"""From a benchmark's name and its folder to a listing: official annotations, published lists, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zar_ray.data.benchmarks import csv_tables, split_lists, ssv2
from zar_ray.data.benchmarks.layout import Annotations, ClassNames, Files, LayoutReport, to_listing
from zar_ray.data.benchmarks.lists import VideoList, merge_lists
from zar_ray.data.classes import class_list, classes_of
from zar_ray.data.listing import Listing
from zar_ray.errors import ConfigError, ManifestError, suggestion


class Adapter(NamedTuple):
    """How the official annotations of a dataset are read."""

    title: str  # what messages call the dataset
    files: str  # what there must be below the folder, for messages
    annotate: Callable[[Files, ClassNames], Annotations]  # without videos where there are no annotations


_KINETICS = "CSV with the columns label, youtube_id, time_start, time_end and split and no class folder"

ADAPTERS: Mapping[str, Adapter] = {
    "charades": Adapter("Charades", "Charades_v1_train.csv or Charades_v1_test.csv", csv_tables.annotate_charades),
    "hmdb51": Adapter("HMDB51", "CLASS_test_splitN.txt", split_lists.annotate_hmdb51),
    "k400": Adapter("Kinetics-400", f"{_KINETICS} of Kinetics-400", csv_tables.annotate_kinetics),
    "k600": Adapter("Kinetics-600", f"{_KINETICS} of Kinetics-600", csv_tables.annotate_kinetics),
    "ssv2": Adapter("Something-Something V2", "train.json, validation.json or test.json", ssv2.annotate),
    "ucf101": Adapter("UCF101", "testlistNN.txt", split_lists.annotate_ucf101),
}


def list_benchmark(
    data: str,
    root: str | Path,
    annotations: str | Path | None = None,
    lists: Sequence[VideoList] = (),
    available_only: bool = False,
) -> tuple[Listing, LayoutReport]:
    """Finds the videos of a dataset, a key of `ADAPTERS`, below `root`; its annotations may lie in another folder.

    With published lists the official annotations may lack.

    Raises:
        ConfigError: There is no such dataset.
        ManifestError: Folders, annotations or lists cannot be used.
    """
    if data not in ADAPTERS:
        raise ConfigError(f'no dataset "{data}" that can be indexed by name{suggestion(data, ADAPTERS)}')
    adapter, files = ADAPTERS[data], Files(root, annotations)
    classes = ClassNames(class_list(classes_of(data)), adapter.title)
    official = adapter.annotate(files, classes)
    if not official.videos and not lists:
        raise ManifestError(
            f"{files.root}: no {adapter.files} below it; unpack the official annotations there, "
            "or name their folder with --annotations"
        )
    official = merge_lists(data, classes.names, lists, official if official.videos else None)
    return to_listing(data, classes.names, official, files, available_only)


def list_published(
    name: str, root: str | Path, lists: Sequence[VideoList], available_only: bool = False
) -> tuple[Listing, LayoutReport]:
    """Finds the videos of published lists below `root`; the class names are the lists', in turn.

    Raises:
        ManifestError: The folder or the lists cannot be used.
    """
    names = tuple(dict.fromkeys(n for one in lists for n in one.class_names))
    return to_listing(name, names, merge_lists(name, names, lists), Files(root), available_only)
