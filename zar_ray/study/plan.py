"""A study before it runs: its videos and classes opened once, its axes multiplied, its folder named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from zar_ray.adaptation.methods import get_method
from zar_ray.cluster import inside_job
from zar_ray.data.class_texts import is_context_file
from zar_ray.data.datasets import choose_splits, open_dataset, protocol_name, resolve_dataset
from zar_ray.data.held_out import held_out_classes, hold_out, plain_words
from zar_ray.errors import ConfigError, ManifestError
from zar_ray.evaluation.orders import require_classes
from zar_ray.evaluation.planning import AskedModel
from zar_ray.evaluation.streams import check_methods, orders_for
from zar_ray.evaluation.workload import Workload
from zar_ray.options.base import require_distinct
from zar_ray.options.layers import zar_home
from zar_ray.options.places import at_home, file_of, from_home
from zar_ray.results.folder import RunFolder
from zar_ray.results.study_record import CORRUPTION
from zar_ray.storage import Storage, is_uri
from zar_ray.study.axes import Axes, ModelChoice, axes_of, place_of, plain_name
from zar_ray.study.options import EvalConfig


@dataclass(frozen=True, eq=False)
class Study:
    """What would run.

    Attributes:
        options: The study's own options, with every default filled in that depends on the dataset or on where it runs.
        workload: The videos and what is asked about them.
        axes: What is multiplied.
    """

    options: EvalConfig
    workload: Workload
    axes: Axes

    @property
    def folder(self) -> RunFolder:
        """Where its results go."""
        return RunFolder(Storage(self.options.output).child(self.options.name or ""))

    def asked(self) -> tuple[AskedModel, ...]:
        """Each model with its options under every setting: what an evaluation of one cell alone would be given."""
        asked, no_axes = [], {"models": (), "seeds": (), "sweep": (), "alphas": (), "interpolate_with": None}
        for one in self.axes.models:
            update = {**no_axes, "name": self.options.name, **one.update}
            if one.mixture is not None:
                update["checkpoint"] = place_of(one.mixture, self.options.output)
            cells = (setting.options.model_copy(update=update) for setting in self.axes.settings)
            asked.append(AskedModel(one.label, tuple(cells)))
        return tuple(asked)


def plan_study(options: EvalConfig, console: Console, models: Sequence[ModelChoice] = ()) -> Study:
    """Opens the dataset once, multiplies the axes, and settles what the options leave open.

    As of `axes_of`, `models` are its models where the options do not name them.

    Raises:
        ZarError: The dataset, a class name, an axis or an option cannot be used.
    """
    if options.dataset is None:
        raise ConfigError("zar eval: say what to evaluate with --dataset NAME, MANIFEST.parquet, LIST.csv or FOLDER")
    for name in options.method:
        get_method(name)
    require_distinct("--method", options.method, "a method")
    reference_method(options)
    settled = _settled(options)
    # Before the videos are looked for: what a setting or a model says can be wrong.
    axes = axes_of(settled, models)
    settings = [one.options for one in axes.settings]
    check_methods(settled, settings)
    workload = _open(settled, console)
    orders = orders_for(settings)
    if any(order.name == "by_class" for order in orders):
        require_classes(workload.manifest.table)
    if settled.name is None:
        settled = settled.model_copy(update={"name": run_name(settled, workload.manifest.name, axes)})
    return Study(settled, workload, axes)


def reference_method(options: EvalConfig) -> str:
    """The method whose errors corruption errors are relative to.

    Raises:
        ConfigError: It is not among those that run.
    """
    named = options.corruption_reference
    if named is not None and named not in options.method:
        raise ConfigError(
            f"--corruption-reference {named}: is not among the methods that run, {', '.join(options.method)}"
        )
    return named or ("zero_shot" if "zero_shot" in options.method else options.method[0])


def _settled(options: EvalConfig) -> EvalConfig:
    """The options with places that workers, which have working folders of their own, can find."""
    of_file = is_context_file(options.context)
    return options.model_copy(
        update={
            "output": kept_folder("output", options.output),
            "features": options.features and kept_folder("features", options.features),
            "checkpoint": at_home(options.checkpoint) if options.checkpoint else None,
            "class_texts": at_home(options.class_texts) if options.class_texts else None,
            "context": str(at_home(file_of(str(options.context)))) if of_file else options.context,
            "sweep": tuple(str(at_home(one)) if Path(one).suffix else one for one in options.sweep),
            "seed": options.seeds[0] if options.seeds else options.seed,
        }
    )


def _open(options: EvalConfig, console: Console) -> Workload:
    """The videos of the splits that the options ask for."""
    source = resolve_dataset(protocol_name(str(options.dataset), options.protocol), options.data_root)
    manifest = open_dataset(source, console=console, decoder=options.decoder)
    splits = choose_splits(manifest, source.benchmark, options)
    held_out = held_out_classes(splits, options)
    splits = tuple(hold_out(split, held_out) for split in splits)
    for split in splits:
        if len(split.class_names) < 2:
            raise ManifestError(
                f"{options.dataset}: has {len(split.class_names)} class names, and choosing needs two; "
                'give the candidate classes with --class-names "a,b,c" or a file'
            )
    workload = Workload.of(manifest, splits)
    if options.limit is not None:
        limited = workload.manifest.select(limit=options.limit)
        kept = limited.table["video_id"].to_pylist()
        workload = Workload.of(limited, [split.restricted_to(kept) for split in splits])
    note = source.benchmark.note(manifest) if source.benchmark else None
    for line in (*([note] if note else []), *(line for split in workload.splits for line in split.notes)):
        console.print(line, highlight=False, markup=False)
    if not len(workload.manifest):
        raise ManifestError(f"{options.dataset}: no videos")
    return workload


def kept_folder(option: str, location: str) -> str:
    """A folder that outlives this process, as an absolute path or URI.

    Raises:
        ConfigError: A relative path inside a Ray job, whose working folder is deleted with the job.
    """
    if is_uri(location):
        return location
    path = from_home(location)
    if path.is_absolute() or not inside_job():
        return str(path.absolute())
    if option == "output" and location == EvalConfig.model_fields["output"].default:
        return str(zar_home() / "runs")
    raise ConfigError(f"--{option} {location}: a Ray job's folder is temporary; give an absolute path or a URI")


def run_name(options: EvalConfig, dataset: str, axes: Axes) -> str:
    """The folder of a run that is given no name: from what is run, so that submitting it again continues it."""
    models = dict.fromkeys(one.coordinates["model"] for one in axes.models)
    seeds = dict.fromkeys(one.coordinates["seed"] for one in axes.settings)
    parts = [dataset, options.split, "+".join(models)]
    if options.interpolate_with is not None:
        parts.append(f"with-{options.interpolate_with.stem}")
    parts += ["+".join(options.corruption)]
    parts += ["+".join(options.method), *(one.sweep.name for one in axes.sweeps)]
    orders = dict.fromkeys(one.name for one in orders_for(one.options for one in axes.settings))
    parts += [] if {*orders} <= {EvalConfig.model_fields["order"].default} else ["+".join(orders)]
    parts += [plain_words(options)]
    parts += [f"limit{options.limit}"] if options.limit else []
    parts += [f"seed{'+'.join(seeds)}"] if options.seeds or len(seeds) == 1 else [f"seed{options.seed}"]
    return plain_name("_".join(part for part in parts if part))


def describe(study: Study) -> str:
    """What would run, in a few lines."""
    options, workload, axes = study.options, study.workload, study.axes
    broken = len(workload.manifest) - workload.manifest.table["error"].null_count
    shown = f"{options.dataset}{f', {options.protocol}' if options.protocol != 'standard' else ''}"
    splits = [f"{split.name}: {len(split)} videos, {len(split.class_names)} classes" for split in workload.splits]
    if len(splits) == 1:
        splits[0] = splits[0].partition(": ")[2] if workload.splits[0].name == "all" else f"split {splits[0]}"
    lines = [f"dataset   {shown}, {'; '.join(splits)}{f' ({broken} videos broken)' if broken else ''}"]
    cells, orders = len(axes.models) * len(axes.settings), orders_for(one.options for one in axes.settings)
    if len(splits) > 1 or cells > 1:
        # Corruptions that follow each other have a pass each in every order.
        passes = len(orders) * (len(options.corruption) if options.continual else 1)
        often = f"in each of {passes} passes" if passes > 1 else "once"
        lines.append(f"videos    {len(workload.manifest)}, each decoded {often}")
    models = dict.fromkeys(one.coordinates["model"] for one in axes.models)
    if len(models) == 1 and axes.models[0].update.keys() == {CORRUPTION}:
        lines.append(f"model     {options.checkpoint or f'{options.model} ({options.pretrained})'}")
    else:
        lines.append(f"models    {', '.join(models)}")
    if options.alphas:
        shares = ", ".join(f"{alpha:g}" for alpha in options.alphas)
        lines.append(f"alphas    {shares}: shares of {options.interpolate_with}, the rest the model")
    if options.corruption:
        shown = (one.coordinates[CORRUPTION] for one in axes.models)
        lines.append(f"frames    {', '.join(dict.fromkeys(shown))}")
    lines.append(f"methods   {', '.join(options.method)}")
    if orders:
        lines.append(f"order     {', '.join(map(str, orders))}")
    if axes.sweeps:
        named = [f"{one.sweep.name} ({len(one.places)} settings)" for one in axes.sweeps]
        distinct = len({one.place for one in axes.settings})
        lines.append(f"sweeps    {', '.join(named)}: {distinct} distinct settings in one pass")
    if options.seeds:
        lines.append(f"seeds     {', '.join(map(str, options.seeds))}")
    if cells > 1:
        lines.append(f"cells     {cells}")
    return "\n".join([*lines, f"results   {study.folder.storage.location}"])
