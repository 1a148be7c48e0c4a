"""Which run measures which published result, and what it does differently."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from zar_ray.data.datasets import load_benchmark
from zar_ray.data.options import CONTEXT
from zar_ray.errors import ConfigError
from zar_ray.options.layers import conf_dir, leaves, merge
from zar_ray.reporting.numbers import counted
from zar_ray.reporting.published.tables import Column, PublishedTable, Recipe, Row, default_options
from zar_ray.results.case import CLEAN
from zar_ray.results.record import CaseMetrics, PairedComparison
from zar_ray.results.study_record import FinishedRun
from zar_ray.video.options import ViewConfig
from zar_ray.video.transforms import Preprocessing, short_side_for

# A table asks for the same few files again and again.
_benchmark = functools.cache(load_benchmark)

_QUICKGELU = "-quickgelu"
_HALVES = {"base_top1": "base", "novel_top1": "novel"}

# What a method without adaptation has of a run that adapts: the decision before it.
_NO_ADAPTATION = "zero_shot"
_ADAPTED = "zar"

# The options that a method reads, and those of them that matter without adaptation too, as far as papers state them:
# of a prompt's words only what stands for the class.
_READ = ("views", "zar", "context", "class_position", "name_style", "template", "class_texts")
_READ_ALWAYS = ("views.eval_views", "views.eval_sampling", "name_style", "class_texts")
_SHORT_SIDE = "views.short_side"


@dataclass(frozen=True)
class Measured:
    """A run's value for a published result.

    Attributes:
        value: In per cent.
        std: Standard deviation between splits in points; None for a single split or a harmonic mean.
        change: What adaptation changed on the same videos; None where nothing adapts, or where it is not known.
        differences: How the run departs from the published protocol, a phrase each.
    """

    run: FinishedRun
    value: float
    std: float | None
    change: PairedComparison | None
    differences: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A value among a run's metrics, with the cases that it is of."""

    value: float
    std: float | None
    cases: tuple[CaseMetrics, ...]
    change: PairedComparison | None


def measure(table: PublishedTable, row: Row, column: Column, runs: Sequence[FinishedRun]) -> Measured | None:
    """The value of the run that is nearest to the published protocol, or None where no run measures it.

    Trained weights come before random ones, all videos before --limit, then fewer differences before more, then newer
    before older.
    """
    if row.run is None:
        return None
    measured = [one for run in runs if (one := _measured(table, row.run, column, run)) is not None]

    def distance(one: Measured) -> tuple[bool, bool, int, float]:
        summary, limit = one.run.summary, one.run.config.get("limit")
        return (summary.random_weights, limit is not None, len(one.differences), -one.run.study.finished.timestamp())

    return min(measured, key=distance, default=None)


def why_another_model(table: PublishedTable, run: FinishedRun) -> str | None:
    """Why a run of one of a table's benchmarks fills no cell: its model is another one, whatever it is called.

    None where the model is the table's, by its towers and what it reads, and of runs of other benchmarks.
    """
    summary, cost = run.summary, run.summary.model_cost
    if not any(summary.dataset in (column.benchmark, *column.near) for column in table.columns):
        return None
    wanted, what = (table.model, table.input_size), "what it is is not known"
    if cost is not None:
        if (_family(cost.architecture or ""), cost.input_size) == wanted:
            return None
        kind = cost.architecture or "an architecture of its own"
        what = f"{kind}, {cost.parameters / 1e6:,.1f} M parameters, {cost.input_size} pixels"
    return f"{run.name}: fills no cell, as {summary.model} is no {wanted[0]} of {wanted[1]} pixels ({what})"


def fill_command(table: PublishedTable, row: Row, column: Column, output: str | None = None) -> str | None:
    """The command whose run measures a result: `zar eval`, or `zar ablate` for all rows of an ablation at once.

    None where nothing here measures it.  Runs go to `output`, if not to the default place.
    """
    recipe = row.run
    if recipe is None:
        return None
    swept = (conf_dir() / "sweeps" / f"{table.name}.yaml").is_file()
    verb, what = ("ablate", ["--sweep", table.name]) if swept else ("eval", [])
    words = ["zar", verb, "--dataset", column.benchmark, *what, "--method", recipe.method]
    named = [column.benchmark, *what[1:], recipe.method]
    if column.split is not None:
        words += ["--split", column.split]
        named.append(column.split)
    if recipe.training is not None:
        file, _ = table.trainings[recipe.training].of(column.benchmark)
        words += ["--checkpoint", file]
        named.append(PurePath(file).stem)
    elif table.model != _family(default_options()["model"]):
        words += ["--model", f"{table.model}{_QUICKGELU}"]
        named.append(table.model)
    unless_told = leaves(default_options(_benchmark(column.benchmark).options))
    # A sweep says what varies, and comes to the short side that its settings need by itself.
    of_sweep = (table.varies, _SHORT_SIDE) if swept else ()
    told = {
        name: one
        for name, one in _compared(recipe, recipe.expected()).items()
        if one != unless_told.get(name) and name not in of_sweep
    }
    for name, value in told.items():
        each = value if isinstance(value, list) else [value]
        values = [f"{one:g}" if isinstance(one, int | float) else str(one) for one in each]
        dashed = name.replace("_", "-")
        words += [f"--{dashed}", *values]
        named.append("-".join((dashed.rpartition(".")[2], *values)))
    if told:
        # A run's own name does not tell these options, and a folder holds one setting of them.
        words += ["--name", "_".join(named)]
    if output is not None:
        words += ["--output", output]
    return shlex.join(words)


def training_commands(table: PublishedTable, row: Row, column: Column) -> tuple[str, str] | None:
    """The file of trained weights that `fill_command` names, and how it is made; None where it names none."""
    if row.run is None or row.run.training is None:
        return None
    training = table.trainings[row.run.training]
    file, make = training.of(column.benchmark)
    return file, f"CLIP {table.model} after {training.name}: {make} ({training.about})"


def _measured(table: PublishedTable, recipe: Recipe, column: Column, run: FinishedRun) -> Measured | None:
    summary, config = run.summary, run.config
    if summary.dataset != column.benchmark and summary.dataset not in column.near:
        return None
    if why_another_model(table, run) is not None or set(config.get("corruption", ())) - {CLEAN}:
        return None
    if table.varies is not None:
        expected = leaves(recipe.expected())
        if leaves(config).get(table.varies) != expected[table.varies]:
            return None
    weights = _weights_difference(table, recipe, column, run)
    found = _find(run, recipe.method, column, before=False)
    if found is None and recipe.method == _NO_ADAPTATION:
        found = _find(run, _ADAPTED, column, before=True)
    if weights is None or found is None:
        return None
    differences = [
        *weights,
        *_protocol_differences(column, run, config, found),
        *_option_differences(table, recipe, config),
    ]
    if recipe.seeds > 1:
        differences.append(f"seed {summary.seed} instead of the mean of {recipe.seeds} seeds")
    std = None if found.std is None else 100 * found.std
    return Measured(run, 100 * found.value, std, found.change, tuple(differences))


def _find(run: FinishedRun, method: str, column: Column, *, before: bool) -> _Found | None:
    cases = tuple(case for case in run.summary.cases if case.method == method)
    metric = {"mAP": "map", "top5": "top5"}.get(column.metric, "top1")
    split = column.split or _HALVES.get(column.metric)
    if split is not None:
        return next((_of_case(case, metric, before) for case in cases if case.split == split), None)
    kind = "harmonic" if column.metric == "hm" else "mean"
    name = f"{metric}_before" if before else metric
    for average in run.summary.averages:
        if (average.method, average.metric, average.kind) == (method, name, kind):
            own = tuple(case for case in cases if case.split in average.splits)
            return _Found(average.value, average.std, own, average.change)
    if kind == "mean" and len(cases) == 1:
        return _of_case(cases[0], metric, before)
    return None


def _of_case(case: CaseMetrics, metric: str, before: bool) -> _Found | None:
    estimate = case.estimates("before" if before else "after").get(metric)
    change = None if before else case.change
    return None if estimate is None else _Found(estimate.value, None, (case,), change)


def _weights_difference(table: PublishedTable, recipe: Recipe, column: Column, run: FinishedRun) -> list[str] | None:
    """What is different in a run's weights; None where they are another row's."""
    random, tag = run.summary.random_weights, run.config.get("pretrained")
    file = None if run.config.get("checkpoint") is None else PurePath(run.config["checkpoint"]).name
    # A file that bears the model's name is held to have OpenAI's own weights, any other one to be trained further.
    trained = file is not None and not random and _family(PurePath(file).stem) != table.model
    if recipe.training is None:
        if random:
            return ["random weights"]
        if file is not None:
            return None if trained else [f"{file} taken for OpenAI's weights"]
        return [] if tag == "openai" else [f"{tag} weights instead of OpenAI's"]
    training = table.trainings[recipe.training].name
    if trained:
        return [f"{file} taken for weights with {training}"]
    recipes = (other.run for other in table.rows if column.name in other.results)
    if any(other is not None and (other.method, other.training) == (recipe.method, None) for other in recipes):
        return None
    if random:
        return ["random weights"]
    return [f"weights without {training}" if file or tag == "openai" else f"{tag} weights without {training}"]


def _family(model: str) -> str:
    return model.removesuffix(_QUICKGELU)


def _protocol_differences(column: Column, run: FinishedRun, config: Mapping[str, Any], found: _Found) -> list[str]:
    """What is different in videos, classes and labels."""
    summary = run.summary
    differences = []
    if summary.dataset != column.benchmark:
        differences.append(column.near[summary.dataset])
    specs = {spec.name: spec for spec in _benchmark(summary.dataset).splits}
    own_names = config["class_names"] is not None
    if own_names:
        differences.append("class names of one's own")
    if column.split is None and column.metric not in _HALVES and len(found.cases) < len(specs):
        names = ", ".join(case.split if case.split in specs else summary.split or "all" for case in found.cases)
        which = f"split {names} alone" if len(found.cases) == 1 else f"splits {names}"
        which = "all videos together" if names == "all" else which
        differences.append(f"{which} instead of the mean of {len(specs)} splits")
    if summary.unknown:
        differences.append(f"{summary.unknown:,} videos of classes that were held out are in no accuracy")
    if config["limit"] is not None:
        differences.append(f"limit {config['limit']} videos")
    elif summary.dataset == column.benchmark and not own_names:
        sizes = {split.name: split.videos for split in summary.splits}
        counts = [
            (sizes[case.split], spec.count, spec.about)
            for case in found.cases
            if case.split in sizes and (spec := specs.get(case.split)) is not None and spec.count is not None
        ]
        here, published = (sum(count[place] for count in counts) for place in (0, 1))
        if any(size != count for size, count, _ in counts):
            about = "about " if any(about for *_, about in counts) else ""
            differences.append(f"{here:,} videos instead of {about}{published:,}")
    if column.right_labels is not None and not config.get("legacy_labels"):
        differences.append(column.right_labels)
    failed = sum(case.failed for case in found.cases)
    if failed:
        differences.append(f"{counted(failed, 'failed video')} counted as wrong")
    return differences


def _option_differences(table: PublishedTable, recipe: Recipe, config: Mapping[str, Any]) -> list[str]:
    """What is different in the options that the method reads."""
    expected = _resolved(recipe.expected(), table.input_size)
    there = _resolved(config, table.input_size)
    found = leaves(there)
    return [
        f"{name.rpartition('.')[2].replace('_', ' ')} {_shown(found.get(name))} instead of {_shown(value)}"
        for name, value in _compared(recipe, expected).items()
        if found.get(name) != value
    ]


def _resolved(options: Mapping[str, Any], input_size: int) -> dict[str, Any]:
    """The options with the short side and the words that they come to, given or by default."""
    options = {**options, "context": options.get("context") or CONTEXT}
    try:
        side = short_side_for(ViewConfig.model_validate(options["views"]), Preprocessing(input_size=input_size))
    except (ValidationError, ConfigError):
        return options
    group, _, name = _SHORT_SIDE.partition(".")
    return merge(options, {group: {name: side}})


def _compared(recipe: Recipe, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The expected options that a recipe's numbers depend on, by their dotted names."""
    if recipe.method == _NO_ADAPTATION:
        names = (*leaves(recipe.options), *_READ_ALWAYS)
        return {name: value for name, value in leaves(expected).items() if name in names}
    return leaves({name: value for name, value in expected.items() if name in _READ})


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(one) for one in value)
    if isinstance(value, bool) or value is None:
        return "default" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    return f'"{value}"' if " " in str(value) else str(value)
