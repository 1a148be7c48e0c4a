"""What `--dataset` may be: a benchmark's name, a manifest, a CSV or a folder; and what `--class-names` may be."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console

from zar_ray.data.classes import CLASSES_OF, by_key, class_list, distinct_names, name_key, tidy_name
from zar_ray.data.listing import NO_SPLIT, Listing, list_csv, list_folder
from zar_ray.data.manifest import Manifest, read_manifest
from zar_ray.data.probing import probe_listing
from zar_ray.data.protocols import EvaluationSplit, Protocol, evaluation_splits
from zar_ray.errors import ConfigError, ManifestError, suggestion
from zar_ray.options.layers import conf_dir, read_yaml, validate, zar_home
from zar_ray.storage import is_uri
from zar_ray.video.options import Decoder

_MANIFEST = "manifest.parquet"
_BASE_TO_NOVEL = "base2novel"


class Benchmark(Protocol):
    """A dataset with its protocol: the content of `conf/benchmarks/NAME.yaml`.

    `manifest` and `make` may name ``{home}`` (ZAR_HOME), ``{data_root}``, ``{name}`` and ``{data}`` (the dataset that
    benchmarks of one manifest share), `make` also ``{manifest}``.
    """

    title: str = Field(min_length=1, description="What tables call it.")
    classes: int | None = Field(None, ge=1, description="How many classes the dataset has.")
    split: str | None = Field(
        None, description="The manifest's split that is evaluated by default, where the manifest has splits."
    )
    data: str | None = Field(
        None, description="The dataset that `zar data index` knows how to find; several benchmarks may share one."
    )
    average: Literal["mean", "harmonic"] = Field("mean", description="What is reported over the splits.")
    videos: int | None = Field(None, ge=1, description="How many videos its splits have together.")
    manifest: str = Field("{data_root}/{data}/manifest.parquet", description="Where its manifest lies.")
    make: str = Field(
        "zar data index {data} --root FOLDER --output {manifest}",
        description="The command that makes its manifest, for messages.",
    )
    options: dict[str, Any] = Field({}, description="Defaults of `zar eval` for this benchmark, dotted ones nested.")

    def manifest_path(self, data_root: str | Path | None = None) -> str:
        """Where the manifest lies; `data_root` is by default ZAR_HOME/datasets."""
        return self.manifest.format(**self._places(data_root))

    def make_command(self, data_root: str | Path | None = None) -> str:
        """The command that makes the manifest."""
        return self.make.format(manifest=self.manifest_path(data_root), **self._places(data_root))

    def existing_manifest(self, data_root: str | Path | None = None) -> str:
        """Where the manifest is; a URI is taken for good.

        Raises:
            ManifestError: There is none; the message says how to make it.
        """
        place = self.manifest_path(data_root)
        if not is_uri(place) and not Path(place).is_file():
            raise ManifestError(f'{self.name}: no manifest at {place}; make one with "{self.make_command(data_root)}"')
        return place

    def _places(self, data_root: str | Path | None) -> dict[str, object]:
        return {
            "name": self.name,
            "data": self.data or self.name,
            "home": zar_home(),
            "data_root": _data_root(data_root),
        }

    def evaluations(
        self, manifest: Manifest, split: str | None = None, *, legacy_labels: bool = False
    ) -> tuple[EvaluationSplit, ...]:
        """The protocol's splits over a manifest's videos.

        Args:
            manifest: The videos.
            split: Only this split of the protocol; by default all.
            legacy_labels: Name classes as published label files do, mistakes included.

        Raises:
            ConfigError: There is no such split, or the benchmark's file defines none.
            ManifestError: The manifest has no video for a split, or one of a class that the dataset does not have.
        """
        if not self.splits:
            raise ConfigError(f"{self.name}: its file in conf/benchmarks defines no splits to evaluate")
        if self.data is not None:
            self._check_classes(manifest, CLASSES_OF[self.data])
        return evaluation_splits(self, manifest, split=split, legacy_labels=legacy_labels)

    def _check_classes(self, manifest: Manifest, classes: str) -> None:
        """A class in no list would leave its videos out of every split without a word."""
        known = by_key(class_list(classes))
        for name in manifest.class_names:
            if name_key(name) not in known:
                raise ManifestError(
                    f'{self.name}: the manifest\'s class "{name}" is no class of {self.title}'
                    f'{suggestion(name, known.values())}; make one with "{self.make_command()}"'
                )

    def eval_options(self) -> dict[str, Any]:
        """`options` with ``{home}`` filled in, as defaults of `zar eval`."""
        return {k: v.replace("{home}", str(zar_home())) if isinstance(v, str) else v for k, v in self.options.items()}

    def split_of(self, manifest: Manifest) -> str | None:
        """The split to evaluate by default; None (all videos) where the manifest was made without splits."""
        return None if manifest.splits == (NO_SPLIT,) else self.split

    def note(self, manifest: Manifest) -> str | None:
        """What to say beside results on this manifest, one line; None where it holds all classes."""
        if self.classes is None or len(manifest.class_names) == self.classes:
            return None
        return (
            f"{self.name}: the manifest has {len(manifest.class_names)} class names, {self.title} has {self.classes}; "
            "accuracies compare only with results over the same class names"
        )


@dataclass(frozen=True)
class DatasetSource:
    """A dataset that was found, before it is read.

    Attributes:
        name: What results call it.
        path: The manifest, CSV or folder, absolute; a manifest may be a URI.
        benchmark: The benchmark, where it is one.
    """

    name: str
    path: str
    benchmark: Benchmark | None = None


def default_manifest(name: str, data_root: str | Path | None = None) -> Path:
    """Where `resolve_dataset` looks for the manifest of a dataset that is no benchmark."""
    return _data_root(data_root) / name / _MANIFEST


def known_benchmarks() -> tuple[str, ...]:
    """The names of the shipped benchmarks, in alphabetical order."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def load_benchmark(name: str) -> Benchmark:
    """Reads a benchmark's file.

    Raises:
        ConfigError: There is no such benchmark, or its file is wrong.
    """
    if name not in known_benchmarks():
        raise ConfigError(f'no benchmark "{name}"{suggestion(name, known_benchmarks())}')
    path = _folder() / f"{name}.yaml"
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


def resolve_dataset(dataset: str, data_root: str | Path | None = None) -> DatasetSource:
    """Finds out what a dataset's name means.

    A benchmark's name comes first (``./k600`` is the folder of that name), then a name under `data_root` that holds a
    manifest, then a path.

    Args:
        dataset: A benchmark, a manifest (.parquet, also a URI), a CSV or a folder.
        data_root: Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets.

    Raises:
        ManifestError: There is nothing by that name, or the benchmark has no manifest yet.
        ConfigError: The benchmark's file is wrong.
    """
    if dataset in known_benchmarks():
        benchmark = load_benchmark(dataset)
        return DatasetSource(dataset, benchmark.existing_manifest(data_root), benchmark)
    if is_uri(dataset):
        return DatasetSource(_stem(dataset), dataset)
    path = Path(dataset).expanduser().absolute()
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
    """Reads a dataset's manifest; a folder or a CSV is indexed on the way.

    Args:
        source: What `resolve_dataset` found.
        console: Where progress is shown while files are probed.
        decoder: What probes them.
        workers: Probing processes; by default one a CPU.

    Returns:
        The manifest, named as the source is.

    Raises:
        ManifestError: It cannot be read, or does not fit together.
    """
    if not is_uri(source.path) and (Path(source.path).is_dir() or source.path.lower().endswith(".csv")):
        manifest = index_dataset(source.path, console=console, decoder=decoder, workers=workers)
    else:
        manifest = read_manifest(source.path)
    return dataclasses.replace(manifest, name=source.name)


def index_dataset(
    place: str | Path,
    *,
    console: Console | None = None,
    decoder: Decoder = "auto",
    workers: int | None = None,
) -> Manifest:
    """Makes a manifest of a folder of videos or of a CSV that lists them; see `list_dataset` and `probe_listing`.

    Args:
        place: The folder or the CSV.
        console: Where progress is shown.
        decoder: What probes the files.
        workers: Probing processes; by default one a CPU.

    Raises:
        ManifestError: The folder or the CSV cannot be used.
    """
    return probe_listing(list_dataset(place), decoder, workers, console, str(place))


def list_dataset(
    place: str | Path, root: str | Path | None = None, class_names: Sequence[str] | None = None
) -> Listing:
    """The videos of a folder or of a CSV that lists them; see `list_folder` and `list_csv`.

    Raises:
        ManifestError: The folder or the CSV cannot be used.
    """
    path = Path(place).expanduser()
    if path.is_file() and path.suffix.lower() == ".csv":
        return list_csv(path, root, class_names)
    if path.is_file():
        raise ManifestError(f"{place}: is neither a folder of videos nor a list of them (.csv)")
    if root is not None:
        raise ManifestError(f"{place}: a root goes with a CSV; a folder's paths start from the folder")
    return list_folder(path, class_names)


def parse_class_names(text: str) -> tuple[str, ...]:
    """Class names in label-id order, from ``a,b,c`` or from a UTF-8 file with one a line.

    In a list a name that holds a comma stands in "double quotes"; in a file a line is a name as it is.

    Raises:
        ConfigError: The file cannot be read, or a name is empty or occurs twice.
    """
    path = Path(text).expanduser()
    if _is_file(path):
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{text}: the class names cannot be read ({error})") from error
        return distinct_names(map(tidy_name, lines), text, "line", ConfigError)
    if "," not in text and path.suffix in (".txt", ".csv", ".lst"):
        raise ConfigError(f"{text}: no such file of class names")
    return split_class_names(text)


def split_class_names(text: str) -> tuple[str, ...]:
    """Class names in label-id order, from ``a,b,c``; a name that holds a comma stands in "double quotes".

    Looks at no file, so it is also for texts of strangers.

    Raises:
        ConfigError: The text is no such list, or a name is empty or occurs twice.
    """
    try:
        names = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ConfigError(f"class names {text}: cannot be read as a list ({error})") from error
    return distinct_names(map(tidy_name, names), "class names", "name", ConfigError)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a list of names is too long for a file's name, or holds what no name may
        return False


def _folder() -> Path:
    return conf_dir() / "benchmarks"


def _data_root(data_root: str | Path | None) -> Path:
    return Path(data_root).expanduser().absolute() if data_root is not None else zar_home() / "datasets"


def is_bare(dataset: str) -> bool:
    """Whether it reads as a name rather than a path."""
    return not any(sign in dataset for sign in ("/", "\\", ".", "~"))


def _stem(path: str) -> str:
    """A manifest's name: its file's, or its folder's where the file is called as all manifests are."""
    parts = path.rstrip("/").split("/")
    return parts[-2] if parts[-1] == _MANIFEST and len(parts) > 1 and parts[-2] else Path(parts[-1]).stem
