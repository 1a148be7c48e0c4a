"""Protocols: which videos are classified among which names, and how often.

A protocol is a set of splits.  Each takes some videos of one manifest and has class names, and so label ids, of its
own; a video may be in several splits and still is one row of the manifest, decoded and encoded once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from zar_ray.data.classes import by_key, class_list, classes_of, name_key
from zar_ray.data.listing import NO_SPLIT
from zar_ray.data.manifest import Manifest
from zar_ray.errors import ConfigError, ManifestError, suggestion
from zar_ray.options.base import Options, option
from zar_ray.options.layers import zar_home
from zar_ray.options.places import at_home
from zar_ray.storage import is_uri

_ROWS_AT_ONCE = 2**14
_NAMED = 5


class SplitSpec(Options):
    """One split of a protocol, as a benchmark's file says it."""

    name: str = Field(min_length=1, description="What `--split` calls it.")
    classes: str | None = option(
        None, "Its class names: a file of conf/classes, without .txt; by default the manifest's own."
    )
    without: str | None = option(None, "A class list whose names are left out, exactly as they are written.")
    videos: tuple[str, ...] = option((), "The manifest's splits its videos come from; none means all.")
    otherwise: tuple[str, ...] = option(
        (), "The manifest's splits to take where it has no video of any split's `videos`."
    )
    train: tuple[str, ...] = option((), "The manifest's splits that few-shot training videos come from.")
    count: int | None = option(None, "How many videos the official or published split has.", ge=1)
    about: bool = option(False, "`count` is a round figure, as links rot; it is no error to differ.")

    def class_names(self, own: Sequence[str] = ()) -> tuple[str, ...]:
        """The names in label-id order; those of a split without a list are the manifest's `own`.

        Raises:
            ConfigError: There is no such list.
        """
        left_out = set(class_list(self.without)) if self.without else set()
        names = own if self.classes is None else class_list(self.classes)
        return tuple(name for name in names if name not in left_out)


class Benchmark(Options):
    """A dataset with its protocol: the content of `conf/benchmarks/NAME.yaml`.

    `manifest` and `make` may name ``{home}`` (ZAR_HOME), ``{data_root}``, ``{name}`` and ``{data}`` (the dataset that
    benchmarks of one manifest share), `make` also ``{manifest}``.
    """

    name: str = Field(min_length=1, description="What `--dataset` calls it; the file's name.")
    title: str = Field(min_length=1, description="What tables call it.")
    reference: str | None = option(None, "The key of the dataset's source in conf/references.bib.")
    classes: int | None = option(None, "How many classes the dataset has.", ge=1)
    split: str | None = option(
        None, "The manifest's split that is evaluated by default, where the manifest has splits."
    )
    data: str | None = option(None, "The dataset that `zar data index` finds; several benchmarks may share one.")
    average: Literal["mean", "harmonic"] = option("mean", "What is reported over the splits.")
    videos: int | None = option(None, "How many videos its splits have together.", ge=1)
    manifest: str = option("{data_root}/{data}/manifest.parquet", "Where its manifest lies.")
    make: str = option(
        "zar data index {data} --root FOLDER --output {manifest}", "The command that makes its manifest, for messages."
    )
    splits: tuple[SplitSpec, ...] = option((), "The protocol: what is evaluated, split by split.")
    multi_label: bool = option(False, "Whether a video may show several classes.")
    legacy_swaps: tuple[tuple[str, str], ...] = option(
        (), "Pairs of class names that published label files exchange by mistake."
    )
    renamed: dict[str, str] = option({}, "Class names that Kinetics-400 has too, with its words for them.")
    options: dict[str, Any] = option({}, "Defaults of `zar eval` for it, dotted ones nested.")

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
            "data_root": datasets_folder(data_root),
        }

    def evaluations(
        self, manifest: Manifest, split: str | None = None, *, legacy_labels: bool = False
    ) -> tuple[EvaluationSplit, ...]:
        """The protocol's splits, or one of them, over a manifest's videos.

        The manifest may spell the class names of a list in its own way (see `name_key`); `legacy_labels` names classes
        as published label files do, mistakes included.

        Raises:
            ConfigError: There is no such split, or the benchmark's file defines none.
            ManifestError: The manifest has no video for a split, or one of a class that the dataset does not have.
        """
        if not self.splits:
            raise ConfigError(f"{self.name}: its file in conf/benchmarks defines no splits to evaluate")
        known = by_key(manifest.class_names if self.data is None else class_list(classes_of(self.data)))
        for name in manifest.class_names:
            if name_key(name) not in known:  # its videos would be in no split, without a word
                raise ManifestError(
                    f'{self.name}: the manifest\'s class "{name}" is no class of {self.title}'
                    f'{suggestion(name, known.values())}; make one with "{self.make_command()}"'
                )
        named = [spec.name for spec in self.splits]
        if split is not None and split not in named:
            raise ConfigError(f'{self.name}: no split "{split}"{suggestion(split, named)}')
        there = set(manifest.splits)
        # Where lists were imported for some splits, the others are not to be filled with whatever else is there.
        alone = there.isdisjoint(member for spec in self.splits for member in spec.videos)
        found = []
        for spec in self.splits:
            if split in (None, spec.name):
                wanted = set(spec.otherwise if alone else spec.videos)
                if spec.videos and wanted.isdisjoint(there):
                    raise ManifestError(
                        f"{self.name}, split {spec.name}: the manifest has no videos of {' or '.join(spec.videos)}, "
                        f'only of {", ".join(sorted(there)) or "nothing"}; make one with "{self.make_command()}"'
                    )
                table = manifest.table.filter(pa.array(manifest.members(wanted))) if spec.videos else manifest.table
                found.append(_evaluation(self, spec, table, manifest.class_names, legacy_labels))
        return tuple(found)

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
class EvaluationSplit:
    """One evaluation: some videos, some names to choose among, and which are right.

    A video has exactly one right label id, or any number where the protocol is multi-label; none where it has no label,
    which a protocol with class names of its own leaves out.
    """

    benchmark: str
    name: str  # the split's, in its protocol
    class_names: tuple[str, ...]  # the names to choose among; a label id is a position in them
    video_ids: tuple[str, ...]  # in alphabetical order; broken videos are among them
    labels: tuple[tuple[int, ...], ...]  # the right label ids of each video
    multi_label: bool = False  # whether a video may show several classes
    expected: int | None = None  # how many videos the official or published split has, where that is known
    approximate: bool = False  # whether that is a round figure or links rot, so that to differ is no error
    unlabelled: int = 0  # how many videos of the split were left out since they have no label
    legacy: bool = False  # whether the names stand in the order of the published label files, mistakes included
    exchanged: frozenset[int] = frozenset()  # label ids that those files call by another name than is right
    renamed: Mapping[str, str] = field(default_factory=dict)  # names that Kinetics-400 has too, with its words
    held_out: tuple[str, ...] = ()  # of all the run's splits; a label id beyond the class names counts on in these

    def __len__(self) -> int:
        return len(self.video_ids)

    @property
    def relabelled(self) -> int:
        """How many of the videos the published label files call by another name than is right."""
        return sum(not self.exchanged.isdisjoint(ids) for ids in self.labels)

    @property
    def unknown(self) -> int:
        """How many of the videos are of classes that were held out."""
        return sum(bool(ids) and ids[0] >= len(self.class_names) for ids in self.labels)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say beside results, a line each."""
        where = f"{self.benchmark}, split {self.name}"
        notes = []
        if self.expected is not None and len(self) != self.expected:
            about = "about " if self.approximate else ""
            notes.append(f"{where}: {len(self):,} videos here, {about}{self.expected:,} in the published split")
        if empty := len(self.class_names) - len({i for ids in self.labels for i in ids if i < len(self.class_names)}):
            notes.append(f"{where}: {empty} of the {len(self.class_names)} classes have no video here")
        if self.unlabelled:
            notes.append(f"{where}: {self.unlabelled:,} videos without a label are left out")
        if self.held_out:
            shown = ", ".join([*self.held_out[:_NAMED], *["..."] * (len(self.held_out) > _NAMED)])
            held = f"{len(self.held_out)} held out ({shown})"
            known = f"{len(self) - self.unknown:,} have one of the {len(self.class_names)} known classes"
            notes.append(f"{where}: {self.unknown:,} videos are unknown, of the classes that are {held}; {known}")
        if self.relabelled:
            which = "the published label files' names" if self.legacy else "the right names, not the published files'"
            notes.append(f"{where}: {self.relabelled:,} of {len(self):,} videos are scored differently: uses {which}")
        if self.renamed:
            pairs = ", ".join(f'"{new}" (Kinetics-400: "{old}")' for new, old in sorted(self.renamed.items()))
            notes.append(f"{where}: {len(self.renamed)} classes are Kinetics-400 classes under another name: {pairs}")
        return tuple(notes)

    def restricted_to(self, video_ids: Collection[str]) -> EvaluationSplit:
        """The same evaluation on those of its videos that are among the given ones, such as the first few."""
        kept = frozenset(video_ids)
        pairs = [(i, ids) for i, ids in zip(self.video_ids, self.labels, strict=True) if i in kept]
        return replace(self, video_ids=tuple(i for i, _ in pairs), labels=tuple(ids for _, ids in pairs))


def datasets_folder(data_root: str | Path | None) -> Path:
    """The folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets."""
    return at_home(data_root) if data_root is not None else zar_home() / "datasets"


def whole_split(manifest: Manifest, split: str | None = None) -> EvaluationSplit:
    """The evaluation of a manifest that belongs to no benchmark: one split of it, or all, over its own class names.

    Videos without a label are among them.

    Raises:
        ManifestError: There is no such split.
    """
    whole = SplitSpec(name=split or "all")
    own = Benchmark(name=manifest.name, title=manifest.name, splits=(whole,), make="zar data index")
    return own.evaluations(manifest.select(split))[0]


def _evaluation(
    benchmark: Benchmark, spec: SplitSpec, table: pa.Table, own: Sequence[str], legacy_labels: bool
) -> EvaluationSplit:
    names = spec.class_names(own)
    exact = {n: index for index, n in enumerate(names)}
    alike = {name_key(n): index for index, n in enumerate(names)} if spec.classes is not None else {}
    position = {label: exact.get(label, alike.get(name_key(label))) for label in own}
    video_ids: list[str] = []
    labels: list[tuple[int, ...]] = []
    unlabelled = 0
    # A million videos have few distinct labels: these are made once.
    made: dict[tuple[str, ...], tuple[int, ...]] = {}
    table = table.select(["video_id", "class_name", "labels"]).sort_by("video_id")
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for video_id, name, several in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            names_of_video = tuple(several) if several is not None else () if name is None else (name,)
            if (ids := made.get(names_of_video)) is None:
                ids = tuple(sorted({number for one in names_of_video if (number := position[one]) is not None}))
                made[names_of_video] = ids
            known = several is not None or name is not None
            unlabelled += not known
            if ids or (not names_of_video and ((known and benchmark.multi_label) or spec.classes is None)):
                video_ids.append(video_id)
                labels.append(ids)
    if not video_ids:
        raise ManifestError(
            f"{benchmark.name}, split {spec.name}: the manifest has no video of its {len(names)} classes; make one "
            f'with "{benchmark.make_command()}"'
        )
    exchanged = dict(benchmark.legacy_swaps) | {b: a for a, b in benchmark.legacy_swaps}
    swapped = frozenset(i for i, n in enumerate(names) if exchanged.get(n) in names)
    return EvaluationSplit(
        benchmark=benchmark.name,
        name=spec.name,
        class_names=tuple(exchanged[n] if legacy_labels and i in swapped else n for i, n in enumerate(names)),
        video_ids=tuple(video_ids),
        labels=tuple(labels),
        multi_label=benchmark.multi_label,
        expected=spec.count,
        approximate=spec.about,
        unlabelled=unlabelled if spec.classes is not None else 0,
        legacy=legacy_labels,
        exchanged=swapped,
        renamed={n: old for n, old in benchmark.renamed.items() if n in names},
    )
