"""From a benchmark's name and its folder to a listing: official annotations, published lists, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from zar_ray.data.benchmarks import charades, hmdb51, kinetics, ssv2, ucf101
from zar_ray.data.benchmarks.layout import Adapter, Annotations, Files, LayoutReport, NoAnnotationsError, to_listing
from zar_ray.data.benchmarks.lists import VideoList, merge_lists
from zar_ray.data.classes import CLASSES_OF, class_list
from zar_ray.data.listing import Listing
from zar_ray.errors import ConfigError, suggestion

# The datasets are those of `CLASSES_OF`, whose order and spelling of classes a manifest has.
ADAPTERS: Mapping[str, Adapter] = {
    "charades": charades.annotate,
    "hmdb51": hmdb51.annotate,
    "k400": partial(kinetics.annotate, name="k400", classes="kinetics400", title="Kinetics-400"),
    "k600": partial(kinetics.annotate, name="k600", classes="kinetics600", title="Kinetics-600"),
    "ssv2": ssv2.annotate,
    "ucf101": ucf101.annotate,
}


def list_benchmark(
    data: str,
    root: str | Path,
    annotations: str | Path | None = None,
    lists: Sequence[tuple[str, VideoList]] = (),
    available_only: bool = False,
) -> tuple[Listing, LayoutReport]:
    """Finds a benchmark's videos.

    Args:
        data: The dataset, a key of `ADAPTERS`.
        root: The folder of its videos.
        annotations: The folder of its annotations, where that is another.
        lists: Published lists, each with the manifest's split it stands for; with them official annotations may lack.
        available_only: Leave missing videos out, rather than keep them as rows with an error.

    Raises:
        ConfigError: There is no such dataset.
        ManifestError: Folders, annotations or lists cannot be used.
    """
    if data not in ADAPTERS:
        raise ConfigError(f'no dataset "{data}" that can be indexed by name{suggestion(data, ADAPTERS)}')
    files = Files.below(root, annotations)
    official: Annotations | None = None
    try:
        official = ADAPTERS[data](files)
    except NoAnnotationsError:
        if not lists:
            raise
    if lists:
        official = merge_lists(data, files, lists, official, class_list(CLASSES_OF[data]))
    assert official is not None
    return to_listing(official, files, available_only)


def list_published(
    name: str, root: str | Path, lists: Sequence[tuple[str, VideoList]], available_only: bool = False
) -> tuple[Listing, LayoutReport]:
    """Finds the videos of published lists; the class names are the lists'.

    Args:
        name: The dataset's name.
        root: The folder of the videos.
        lists: Each list with the manifest's split it becomes.
        available_only: Leave missing videos out, rather than keep them as rows with an error.

    Raises:
        ManifestError: The folder or the lists cannot be used.
    """
    files = Files.below(root)
    return to_listing(merge_lists(name, files, lists), files, available_only)
