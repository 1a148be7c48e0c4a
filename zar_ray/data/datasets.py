"""From `--dataset` (a benchmark, a manifest, a CSV or a folder), `--split` and `--class-names` to evaluation splits."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from zar_ray.data.classes import distinct_names, tidy_name
from zar_ray.data.listing import Listing, list_csv, list_folder
from zar_ray.data.manifest import Manifest, read_manifest
from zar_ray.data.options import DatasetOptions
from zar_ray.data.probing import probe_listing
from zar_ray.data.protocols import Benchmark, EvaluationSplit, datasets_folder, whole_split
from zar_ray.data.text_files import read_text
from zar_ray.errors import ConfigError, ManifestError, suggestion
from zar_ray.file_systems import Location
from zar_ray.options.layers import conf_dir, read_yaml, validate
from zar_ray.options.places import at_home, from_home
from zar_ray.storage import is_uri, suffix_of
from zar_ray.video.options import Decoder
from zar_ray.video.reading import require_decoder

_MANIFEST = "manifest.parquet"
_BASE_TO_NOVEL = "base2novel"


@dataclass(frozen=True)
class DatasetSource:
    """A dataset that was found, before it is read: a manifest (it may be a URI), CSV or folder, and its benchmark."""

    name: str
    path: str
    benchmark: Benchmark | None = None


def default_manifest(name: str, data_root: str | Path | None = None) -> Path:
    """Where `resolve_dataset` looks for the manifest of a dataset that is no benchmark."""
    return datasets_folder(data_root) / name / _MANIFEST


def known_benchmarks() -> tuple[str, ...]:
    """The names of the shipped benchmarks, in alphabetical order."""
    return tuple(sorted(path.stem for path in (conf_dir() / "benchmarks").glob("*.yaml")))


def load_benchmark(name: str) -> Benchmark:
    """Reads a benchmark's file.

    Raises:
        ConfigError: There is no such benchmark, or its file is wrong.
    """
    if name not in known_benchmarks():
        raise ConfigError(f'no benchmark "{name}"{suggestion(name, known_benchmarks())}')
    path = conf_dir() / "benchmarks" / f"{name}.yaml"
    benchmark = validate(Benchmark, {"name": name, **read_yaml(path)}, str(path))
    if benchmark.name != name:
        raise ConfigError(f"{path}: is named {benchmark.name} inside; the name must be the file's")
    try:
        benchmark.make_command()
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"{path}: manifest and make may hold {{home}}, {{data_root}}, {{name}} and {{data}}, "
            f"not {{{error.args[0]}}}"
        ) from error
    for split in benchmark.splits:
        split.class_names()
    return benchmark


def protocol_name(dataset: str, protocol: str) -> str:
    """The benchmark that a dataset is under a protocol, such as ``hmdb51-base2novel``.

    Raises:
        ConfigError: The dataset has no such protocol.
    """
    if protocol == "standard":
        return dataset
    name = f"{dataset}-{_BASE_TO_NOVEL}"
    if name not in known_benchmarks():
        having = (known.removesuffix(f"-{_BASE_TO_NOVEL}") for known in known_benchmarks() if _BASE_TO_NOVEL in known)
        raise ConfigError(f"--protocol {protocol}: {dataset} has none; these have one: {', '.join(having)}")
    return name


def without_protocol(benchmark: str) -> str:
    """What commands call a benchmark's dataset beside ``--protocol base_to_novel``, such as ``hmdb51``."""
    return benchmark.removesuffix(f"-{_BASE_TO_NOVEL}")


def resolve_dataset(dataset: str, data_root: str | Path | None = None) -> DatasetSource:
    """Finds out what a dataset's name means.

    A benchmark's name comes first (``./k600`` is the folder of that name), then a name under `data_root` (by default
    ZAR_HOME/datasets) that holds a manifest, then a path: a manifest (.parquet, also a URI), a CSV or a folder.

    Raises:
        ManifestError: There is nothing by that name, or the benchmark has no manifest yet.
        ConfigError: The benchmark's file is wrong.
    """
    if dataset in known_benchmarks():
        benchmark = load_benchmark(dataset)
        return DatasetSource(dataset, benchmark.existing_manifest(data_root), benchmark)
    if is_uri(dataset):
        return DatasetSource(_stem(Location.parse(dataset).path), dataset)
    path = at_home(dataset)
    own = default_manifest(dataset, data_root)
    if is_bare(dataset) and own.is_file() and not path.exists():
        return DatasetSource(dataset, str(own))
    if not path.exists():
        if is_bare(dataset):
            near = suggestion(dataset, known_benchmarks())
            raise ManifestError(f'no dataset "{dataset}": neither a benchmark nor a manifest, CSV or folder{near}')
        raise ManifestError(f"{dataset}: no such file or folder")
    if path.is_dir():
        return DatasetSource(path.name or "videos", str(path))
    if path.suffix.lower() in (".parquet", ".csv"):
        return DatasetSource(_stem(str(path)), str(path))
    raise ManifestError(
        f"{dataset}: is neither a manifest (.parquet), a list (.csv) nor a folder; `zar predict` takes single videos"
    )


def open_dataset(
    source: DatasetSource, console: Console | None = None, decoder: Decoder = "auto", workers: int | None = None
) -> Manifest:
    """Reads a dataset's manifest, to be named as the source is; a folder or a CSV is probed on the way.

    Raises:
        ManifestError: It cannot be read, or does not fit together.
        ConfigError: The decoder, by which videos are read later, cannot be loaded here.
    """
    require_decoder(decoder)
    kind = suffix_of(source.path)
    if kind == ".csv" or (kind != ".parquet" if is_uri(source.path) else Path(source.path).is_dir()):
        manifest = probe_listing(list_dataset(source.path), decoder, workers, console, source.path)
    else:
        manifest = read_manifest(source.path)
    return dataclasses.replace(manifest, name=source.name)


def list_dataset(
    place: str | Path, root: str | Path | None = None, class_names: Sequence[str] | None = None
) -> Listing:
    """The videos of a folder or of a CSV that lists them, or of their URIs; see `list_folder` and `list_csv`.

    Raises:
        ManifestError: The folder or the CSV cannot be used.
    """
    path, remote = from_home(place), is_uri(str(place))
    if (remote or path.is_file()) and suffix_of(str(place)) == ".csv":
        return list_csv(place, root, class_names)
    if path.is_file():
        raise ManifestError(f"{place}: is neither a folder of videos nor a list of them (.csv)")
    if root is not None:
        raise ManifestError(f"{place}: a root goes with a CSV; a folder's paths start from the folder")
    return list_folder(str(place) if remote else path, class_names)


def choose_splits(
    manifest: Manifest, benchmark: Benchmark | None, options: DatasetOptions
) -> tuple[EvaluationSplit, ...]:
    """The splits that the options ask for: a benchmark's protocol, or a manifest as it is.

    Raises:
        ConfigError: There is no such split, or an option does not go with the dataset.
        ManifestError: The manifest has no video for a split, or a label is not among the given class names.
    """
    if options.legacy_labels and not (benchmark and benchmark.legacy_swaps):
        raise ConfigError(f"--legacy-labels: no published label file of {options.dataset} is known to exchange names")
    if options.class_names is not None:
        # Names of one's own are no protocol's: the videos are the manifest's, or one of its splits.
        split = options.split or (benchmark.split_of(manifest) if benchmark else None)
        named = with_class_names(manifest.select(split), parse_class_names(options.class_names))
        return (whole_split(named),)
    if benchmark is None:
        return (whole_split(manifest, options.split),)
    return benchmark.evaluations(manifest, options.split, legacy_labels=options.legacy_labels)


def with_class_names(manifest: Manifest, class_names: tuple[str, ...]) -> Manifest:
    """The same videos with other candidate classes; labels keep their names and take their new positions.

    Raises:
        ManifestError: A video's label is not among the new classes.
    """
    position: dict[str | None, int | None] = {name: index for index, name in enumerate(class_names)}
    rows = list(manifest.rows())
    unknown = sorted({row.class_name for row in rows if row.class_name is not None} - position.keys())
    if unknown:
        raise ManifestError(
            f'{manifest.name}: {len(unknown)} of its labels are not among the given class names, such as "{unknown[0]}"'
            f"{suggestion(unknown[0], class_names)}"
        )
    named = (dataclasses.replace(row, label_id=position.get(row.class_name)) for row in rows)
    return Manifest.of(named, class_names, manifest.root, manifest.name)


def parse_class_names(text: str) -> tuple[str, ...]:
    """Class names in label-id order, from ``a,b,c`` or from a UTF-8 file with one a line.

    In a list a name that holds a comma stands in "double quotes"; in a file a line is a name as it is.

    Raises:
        ConfigError: The text is no such list, or a name is empty or occurs twice.
        ManifestError: The file cannot be read.
    """
    path = at_home(text)
    # A list of names may be too long for a file's name, or hold what no name may: then there is no such file.
    if is_uri(text) or os.path.isfile(path):  # noqa: PTH113
        lines = read_text(text if is_uri(text) else path).rstrip().splitlines()
        return distinct_names(map(tidy_name, lines), text, "line", ConfigError)
    if "," not in text and path.suffix in (".txt", ".csv", ".lst"):
        raise ConfigError(f"{text}: no such file of class names")
    try:
        names = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        shown = " ".join(text.split())
        raise ConfigError(f"class names {shown}: cannot be read as a list ({error})") from error
    return distinct_names(map(tidy_name, names), "class names", "name", ConfigError)


def candidate_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """The labels to rank: names, or what `parse_class_names` reads; a benchmark's name stands for its class names.

    Those of a benchmark whose splits have classes of their own are all of them, each once.

    Raises:
        ConfigError: A name is empty or occurs twice, there are fewer than two, or the benchmark's videos alone tell its
            classes.
        ManifestError: The file cannot be read.
    """
    if isinstance(labels, str) and labels in known_benchmarks():
        return _names_of(labels)
    if isinstance(labels, str):
        names = parse_class_names(labels)
    else:
        names = distinct_names(map(tidy_name, labels), "labels", "name", ConfigError)
    if len(names) < 2:
        raise ConfigError(
            f'labels: "{", ".join(names)}" alone; choosing needs two, as "a,b,c" or a file with one a line'
        )
    return names


def _names_of(labels: str) -> tuple[str, ...]:
    benchmark = load_benchmark(labels)
    names = [name for split in benchmark.splits for name in split.class_names()]
    if not names:
        raise ConfigError(f"labels {labels}: the names are those of its videos, which no list has; give them")
    return tuple(dict.fromkeys(names))


def is_bare(dataset: str) -> bool:
    """Whether it reads as a name rather than a path."""
    return not any(sign in dataset for sign in ("/", "\\", ".", "~"))


def _stem(path: str) -> str:
    """A manifest's name: its file's, or its folder's where the file is called as all manifests are."""
    parts = path.rstrip("/").split("/")
    return parts[-2] if parts[-1] == _MANIFEST and len(parts) > 1 and parts[-2] else Path(parts[-1]).stem
