"""From a benchmark's name and its folder to a listing: official annotations, published lists, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zar_ray.data.benchmarks import charades, hmdb51, kinetics, ssv2, ucf101
from zar_ray.data.benchmarks.layout import Annotations, ClassNames, Files, LayoutReport, to_listing
from zar_ray.data.benchmarks.lists import VideoList, merge_lists
from zar_ray.data.classes import CLASSES_OF, class_list
from zar_ray.data.listing import Listing
from zar_ray.errors import ConfigError, ManifestError, suggestion


@dataclass(frozen=True)
class Adapter:
    """How the official annotations of a dataset are read.

    Attributes:
        title: What messages call the dataset.
        files: What there must be below the folder, for messages.
        annotate: Reads the annotations; without videos where there are none.
    """

    title: str
    files: str
    annotate: Callable[[Files, ClassNames], Annotations]


_KINETICS = "CSV with the columns label, youtube_id, time_start, time_end and split and no class folder"

# The datasets are those of `CLASSES_OF`, whose order and spelling of classes a manifest has.
ADAPTERS: Mapping[str, Adapter] = {
    "charades": Adapter("Charades", "Charades_v1_train.csv or Charades_v1_test.csv", charades.annotate),
    "hmdb51": Adapter("HMDB51", "CLASS_test_splitN.txt", hmdb51.annotate),
    "k400": Adapter("Kinetics-400", f"{_KINETICS} of Kinetics-400", kinetics.annotate),
    "k600": Adapter("Kinetics-600", f"{_KINETICS} of Kinetics-600", kinetics.annotate),
    "ssv2": Adapter("Something-Something V2", "train.json, validation.json or test.json", ssv2.annotate),
    "ucf101": Adapter("UCF101", "testlistNN.txt", ucf101.annotate),
}


def list_benchmark(
    data: str,
    root: str | Path,
    annotations: str | Path | None = None,
    lists: Sequence[VideoList] = (),
    available_only: bool = False,
) -> tuple[Listing, LayoutReport]:
    """Finds a benchmark's videos.

    Args:
        data: The dataset, a key of `ADAPTERS`.
        root: The folder of its videos.
        annotations: The folder of its annotations, where that is another.
        lists: Published lists; with them official annotations may lack.
        available_only: Leave missing videos out, rather than keep them as rows with an error.

    Raises:
        ConfigError: There is no such dataset.
        ManifestError: Folders, annotations or lists cannot be used.
    """
    if data not in ADAPTERS:
        raise ConfigError(f'no dataset "{data}" that can be indexed by name{suggestion(data, ADAPTERS)}')
    adapter, files = ADAPTERS[data], Files.below(root, annotations)
    classes = ClassNames(class_list(CLASSES_OF[data]), adapter.title)
    official = adapter.annotate(files, classes)
    if not official.videos:
        if not lists:
            raise ManifestError(
                f"{files.root}: no {adapter.files} below it; unpack the official annotations there, "
                "or name their folder with --annotations"
            )
        official = Annotations()
    official = merge_lists(data, classes.names, lists, official)
    return to_listing(data, classes.names, official, files, available_only)


def list_published(
    name: str, root: str | Path, lists: Sequence[VideoList], available_only: bool = False
) -> tuple[Listing, LayoutReport]:
    """Finds the videos of published lists; the class names are the lists', in turn.

    Args:
        name: The dataset's name.
        root: The folder of the videos.
        lists: The lists.
        available_only: Leave missing videos out, rather than keep them as rows with an error.

    Raises:
        ManifestError: The folder or the lists cannot be used.
    """
    names = tuple(dict.fromkeys(n for one in lists for n in one.class_names))
    return to_listing(name, names, merge_lists(name, names, lists), Files.below(root), available_only)
