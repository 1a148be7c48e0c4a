"""Options of class texts, and of the commands on datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field

from zar_ray.options.base import FolderName, Options, operational, option
from zar_ray.options.places import FilePlace
from zar_ray.video.options import Decoder

NameStyle = Literal["raw", "split_camel_case", "lower_case"]

TextAverage = Literal["features", "probabilities"]


CONTEXT = "a video of a"
"""The context's words where neither the user nor the model's system names others."""


_DATA_ROOT = "Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets."


class ContextOption(Options):
    """What stands in front of a class name in a prompt, and what tuning starts from."""

    context: str | None = option(
        None,
        "The words the context vectors start from, or the .safetensors file of a learned context; by"
        ' default those of the model\'s system (docs/models.md), else "a video of a".',
        min_length=1,
    )


class PromptOptions(ContextOption):
    """What the text tower reads of a class."""

    name_style: NameStyle = option(
        "raw", "How prompts spell class names; split_camel_case makes ApplyEyeMakeup three words."
    )
    template: str | None = option(
        None,
        "A prompt with {} where the name goes, or a list: actionclip, clip_kinetics, clip_ucf101; by"
        ' default the context and "{}.".',
        min_length=1,
    )
    class_texts: FilePlace | None = option(
        None, "CSV (class,text) or JSON with texts in the names' place; whole prompts without a template."
    )
    template_average: TextAverage = option(
        "features",
        "What counts of a class with several texts: the mean of their features, as CLIP, or of the"
        " probabilities that each gives.",
    )


class DatasetOptions(Options):
    """Which videos, and which classes to choose among."""

    dataset: str | None = option(None, "A benchmark's name, a manifest (.parquet), a list (.csv) or a folder.")
    protocol: Literal["standard", "base_to_novel"] = option(
        "standard", "base_to_novel: both halves of k400, hmdb51, ucf101 or ssv2, and their harmonic mean."
    )
    split: str | None = option(
        None, "The one split of a benchmark's protocol to evaluate, or a manifest's; all by default."
    )
    class_names: str | None = option(
        None, 'The candidate classes: "a,b,c" or a file with one a line; by default the manifest\'s.'
    )
    legacy_labels: bool = option(False, "Score as published label files do, with the names that they exchange.")
    unknown_classes: str | None = option(
        None,
        "Classes to hold out of the candidate ones, whose videos stay in the run as unknown: a share of them (20%), or"
        ' their names, "a,b,c" or a file with one a line.',
    )
    unknown_seed: int = option(0, "Seed by which a share of --unknown-classes is drawn.", ge=0)
    limit: int | None = option(None, "Evaluate only so many videos, spread over the manifest.", ge=1)
    data_root: Path | None = operational(None, _DATA_ROOT)


class IndexConfig(Options):
    """Options of `zar data index`."""

    source: tyro.conf.Positional[str | None] = option(
        None,
        "A benchmark's name (see `zar data list`), a folder or URI with a sub-folder a class or with tar files, or a"
        " CSV of path,label[,split][,group][,member]; none with --list alone.",
    )
    output: str | None = option(
        None,
        "The manifest to write, also at a URI; by default where --dataset looks for the benchmark's or the list's, else"
        " manifest.parquet in the folder, or beside the CSV.",
    )
    root: str | None = option(
        None, "Folder of the videos of a benchmark or a list; with a CSV the folder or URI its paths start from."
    )
    annotations: Path | None = option(
        None, "Folder of a benchmark's official annotations, where that is not below --root."
    )
    list: tuple[str, ...] = option((), 'Published lists of "path label" lines, as FILE or SPLIT=FILE.')
    labels: tuple[str, ...] = option(
        (),
        "Class names of the lists, one for all or one each: a class list's name (hmdb51_base), a file with"
        ' one name a line, or an "id,name" CSV.',
    )
    available_only: bool = option(
        False, "Leave missing videos out and count them, rather than keep them as rows with an error."
    )
    class_names: str | None = option(
        None, 'Classes of a folder or CSV in label-id order, "a,b,c" or a file; by default those found.'
    )
    name: FolderName | None = option(
        None, "The dataset's name; by default the benchmark's, the folder's or the list's."
    )
    decoder: Decoder = option("auto", "Decoder to probe with.")
    workers: int | None = option(None, "Files probed at once; by default one a CPU.", ge=1)
    data_root: Path | None = option(None, _DATA_ROOT)


class AuditConfig(Options):
    """Options of `zar data audit`."""

    manifest: tyro.conf.Positional[str | None] = option(None, "A manifest's file.")
    list: tuple[str, ...] = option((), 'Lists of "path label" lines, as FILE or, with --dataset, SPLIT=FILE.')
    labels: tuple[str, ...] = option(
        (), "Class names of the lists, one for all or one each: a file or a class list's name (hmdb51_base)."
    )
    train: tuple[str, ...] = option((), "Lists or manifests of the training videos, to find those that are tested too.")
    train_labels: str | None = option(
        None, "Class names of the training set, also without --train: a file or a class list's name."
    )
    root: Path | None = option(None, "Folder of the videos, to find missing ones.")
    dataset: str | None = option(
        None, "The benchmark whose counts must be met; by default what the manifest says it is."
    )


class ShotsConfig(Options):
    """Options of `zar data shots`."""

    benchmark: tyro.conf.Positional[str] = Field(
        description="A benchmark with training videos, such as hmdb51 or k400-base2novel."
    )
    shots: int = option(16, "Videos a class.", ge=1)
    seed: int = option(1, "Seed of the draw: the same one draws the same videos, and more shots add to fewer.", ge=0)
    split: str | None = option(None, "The benchmark's split; by default its first (base, in base-to-novel).")
    output: Path | None = option(None, "The manifest to write; by default where --dataset finds it by its name.")
    data_root: Path | None = option(None, _DATA_ROOT)
