"""From a benchmark's name and its folder to a listing: official annotations, published lists, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zar_ray.data.benchmarks import charades, hmdb51, kinetics, ssv2, ucf101
from zar_ray.data.benchmarks.layout import Adapter, Annotations, Files, LayoutReport, NoAnnotationsError, to_listing
from zar_ray.data.benchmarks.lists import VideoList, merge_lists, read_list
from zar_ray.data.classes import CLASSES_OF, class_list
from zar_ray.data.index import Listing
from zar_ray.data.protocols import SplitSpec
from zar_ray.errors import ConfigError, suggestion

# The datasets are those of `CLASSES_OF`, whose order and spelling of classes a manifest has.
ADAPTERS: Mapping[str, Adapter] = {
    "charades": charades.annotate,
    "hmdb51": hmdb51.annotate,
    "k400": kinetics.annotate_400,
    "k600": kinetics.annotate_600,
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


def read_lists(
    given: Sequence[str], labels: Sequence[str], specs: Sequence[SplitSpec] = ()
) -> list[tuple[str, VideoList]]:
    """Reads what ``--list [SPLIT=]FILE ...`` and ``--labels FILE ...`` name.

    Args:
        given: The lists. SPLIT is the split of the benchmark that a list stands for, or what the manifest shall call
            it; without it a benchmark's splits come in their order, else the file's name is taken.
        labels: Their class names, one for all or one each; by default those of the benchmark's splits.
        specs: The benchmark's splits.

    Returns:
        Each list with the manifest's split it stands for.

    Raises:
        ConfigError: Numbers or names do not fit together.
        ManifestError: A file cannot be read.
    """
    if labels and len(labels) not in (1, len(given)):
        raise ConfigError(f"--labels: {len(labels)} given for {len(given)} lists; give one for all, or one each")
    if not labels and not specs:
        raise ConfigError("--list: give the names of its labels with --labels FILE, or a class list's name")
    named = [_split_and_file(text, specs) for text in given]
    if specs and any(split is None for split, _ in named):
        if len(named) != len(specs):
            known = ", ".join(spec.name for spec in specs)
            raise ConfigError(f"--list: say which split {given[0]} is, as SPLIT=FILE (splits: {known})")
        named = [(split or spec.name, file) for (split, file), spec in zip(named, specs, strict=True)]
    by_name = {spec.name: spec for spec in specs}
    lists = []
    for number, (split, file) in enumerate(named):
        spec = by_name.get(split or "")
        own = labels[min(number, len(labels) - 1)] if labels else spec.classes or "" if spec else ""
        member = (spec.videos or (spec.name,))[0] if spec else split or Path(file).stem
        lists.append((member, read_list(file, own)))
    return lists


def _split_and_file(text: str, specs: Sequence[SplitSpec]) -> tuple[str | None, str]:
    split, sign, file = text.partition("=")
    if not sign or Path(text).expanduser().exists():
        return None, text
    if specs and split not in [spec.name for spec in specs]:
        raise ConfigError(f'--list: no split "{split}"{suggestion(split, [spec.name for spec in specs])}')
    return split, file
