"""Few-shot and base-to-novel experiments: what `zar train --protocol few_shot --seeds 1 2 3` runs.

For each seed so many training videos a class are drawn, a model is trained on them and evaluated; the result is the
mean over the seeds.  The experiment has a folder of its own:

STORAGE/NAME/
experiment.json    what it is of, each seed's training and evaluation, the means
seedN.parquet      the videos drawn with seed N
training/          the trainings' checkpoints to go on from
runs/              the evaluations
mlflow.json        where it was logged
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError, safe_open

from zar_ray.adaptation.methods import get_method
from zar_ray.data.datasets import Benchmark, known_benchmarks, load_benchmark, protocol_name
from zar_ray.data.few_shot import draw_shots
from zar_ray.data.manifest import Manifest, read_manifest, write_manifest
from zar_ray.errors import ConfigError, ManifestError, RunError, TrackingError, suggestion
from zar_ray.evaluation.options import EvalConfig
from zar_ray.models import checkpoints, learned_context
from zar_ray.options.base import fingerprint, identity
from zar_ray.options.layers import merge, validate, zar_home
from zar_ray.provenance import provenance
from zar_ray.reporting.seed_means import SeedMean, markdown_rows, print_rows, seed_means, seed_notes, seed_table
from zar_ray.results.folder import differences
from zar_ray.results.record import MlflowState, RunSummary
from zar_ray.storage import Storage
from zar_ray.study.job import run_evaluation
from zar_ray.tracking import RunGroup, default_uri, log_group
from zar_ray.training.inputs import settled
from zar_ray.training.job import run_training
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import trained_options

RECORD = "experiment.json"

_TITLES = {"few_shot": "few-shot", "base_to_novel": "base to novel"}


@dataclass(frozen=True)
class SeedResult:
    """One seed of an experiment.

    Attributes:
        seed: The seed of the draw, the training and the view plans.
        checkpoint: The file that was trained.
        training: What its training ended with (`steps`, `loss`, `accuracy`) and its MLflow `run_id`; empty where the
            file was there and the record of its training is not.
        summary: Its evaluation.
    """

    seed: int
    checkpoint: Path
    training: Mapping[str, Any]
    summary: RunSummary


@dataclass(frozen=True)
class ExperimentResult:
    """A finished experiment.

    Attributes:
        name: Its name.
        folder: Its folder.
        seeds: Its seeds, in the order asked for.
        means: Means over them, by method, split and metric.
        mlflow: Where it was logged, or why not.
    """

    name: str
    folder: str
    seeds: tuple[SeedResult, ...]
    means: tuple[SeedMean, ...]
    mlflow: MlflowState


@dataclass(frozen=True)
class _Seed:
    """What is to be done for one seed."""

    seed: int
    videos: Manifest
    training: TrainConfig
    evaluation: EvalConfig
    trained: bool

    @property
    def checkpoint(self) -> Path:
        assert self.training.output is not None
        return self.training.output


@dataclass(frozen=True)
class _Plan:
    """An experiment before it starts."""

    config: TrainConfig
    name: str
    folder: Storage
    benchmark: Benchmark
    seeds: tuple[_Seed, ...]
    record: Mapping[str, Any]
    mlflow_uri: str | None
    why_not_logged: str | None


def describe(config: TrainConfig) -> str:
    """What an experiment would do, in a few lines.

    Raises:
        ZarError: An option or the dataset cannot be used.
    """
    plan = _plan(config)
    drawn = plan.seeds[0].videos
    done = [str(one.seed) for one in plan.seeds if one.trained]
    lines = [
        f"experiment  {_TITLES[config.protocol]}, {plan.benchmark.title}, {config.shots} shots, "
        f"seeds {', '.join(str(one.seed) for one in plan.seeds)}",
        f"training    {len(drawn)} videos of {len(drawn.class_names)} classes a seed",
        f"evaluation  {_evaluated(plan)}, methods {', '.join(config.method)}",
        f"folder      {plan.folder.path()}",
    ]
    if done:
        lines.append(f"there       trained already: seed{'s' if len(done) > 1 else ''} {', '.join(done)}")
    lines += [f"checkpoint  {one.checkpoint}" for one in plan.seeds]
    return "\n".join(lines)


def run_experiment(config: TrainConfig, console: Console) -> ExperimentResult:
    """Runs or continues an experiment, writes its record and prints its table.

    A seed whose checkpoint is there is not trained again, and an evaluation goes on where it stopped.

    Args:
        config: The options, `protocol` being ``few_shot`` or ``base_to_novel``.
        console: Where it shows how it goes.

    Raises:
        ConfigError: An option is missing or does not fit the dataset.
        ManifestError: The benchmark's manifest is missing, or has too few training videos.
        RunError: The folder or a checkpoint is of other options; or a training or an evaluation failed. The same
            command continues.
    """
    plan = _plan(config)
    if config.overwrite:
        plan.folder.delete_folder()
    console.print(
        f"{_TITLES[config.protocol]}, {plan.benchmark.title}, {config.shots} shots, {len(plan.seeds)} seeds, "
        f"in {plan.folder.path()}"
    )
    _write_record(plan, plan.record)
    results = []
    for number, one in enumerate(plan.seeds, 1):
        console.print(f"\nseed {one.seed} ({number} of {len(plan.seeds)})")
        write_manifest(one.videos, str(one.training.dataset))
        training = _earlier(plan.record, one.seed).get("training", {})
        if one.trained:
            console.print(f"trained already: {one.checkpoint}")
        else:
            trained = run_training(one.training, console)
            training = {
                "steps": trained.steps,
                "loss": trained.loss,
                "accuracy": trained.accuracy,
                "run_id": trained.run_id,
            }
        summary = run_evaluation(one.evaluation, console)
        results.append(SeedResult(one.seed, one.checkpoint, training, summary))
        plan = _with_seed(plan, results[-1])
        _write_record(plan, plan.record)
    runs = [one.summary for one in results]
    means = seed_means(runs, harmonic=config.protocol == "base_to_novel")
    record = {**plan.record, "means": [asdict(one) for one in means], "means_over_seeds": list(config.seeds)}
    _write_record(plan, record)
    rows, notes = seed_table(config.seeds, runs, means), seed_notes(runs, means)
    mlflow = _log(plan, tuple(results), means, markdown_rows(rows, notes))
    _write_record(plan, {**record, "mlflow": asdict(mlflow)})
    console.print()
    print_rows(rows, notes, console)
    console.print(f"record  {plan.folder.path(RECORD)}")
    console.print(f"MLflow  {mlflow.uri} (run {mlflow.run_id})" if mlflow.run_id else f"MLflow  {mlflow.why_not}")
    return ExperimentResult(plan.name, plan.folder.path(), tuple(results), means, mlflow)


def _checked(config: TrainConfig) -> TrainConfig:
    """The options, after a look at those that an experiment needs.

    Raises:
        ConfigError: One is missing, or two do not fit together.
    """
    where = f"--protocol {config.protocol}"
    if config.dataset is None:
        raise ConfigError(f"{where}: say which benchmark with --dataset, such as hmdb51")
    if not config.seeds:
        raise ConfigError(f"{where}: say which seeds to draw training videos with, such as --seeds 1 2 3")
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"--seeds {' '.join(map(str, config.seeds))}: names a seed twice")
    if len(set(config.method)) < len(config.method):
        raise ConfigError(f"--method {' '.join(config.method)}: names a method twice")
    if config.protocol == "base_to_novel" and config.split is not None:
        raise ConfigError(f"--split {config.split}: {where} trains on the base classes and evaluates both halves")
    for name in config.method:
        get_method(name)
    return config


def _plan(config: TrainConfig) -> _Plan:
    """Looks at everything that can be wrong, and settles what is to be done for each seed."""
    config = settled(_checked(config))
    benchmark = _benchmark(config)
    place = benchmark.manifest_path(config.data_root)
    if "://" not in place and not Path(place).is_file():
        raise ManifestError(
            f'{benchmark.name}: no manifest at {place}; make one with "{benchmark.make_command(config.data_root)}"'
        )
    manifest = read_manifest(place)
    folder = _folder(config)
    name = folder.location.rpartition("/")[2]
    record = _opened(folder, config)
    uri, why_not = _store(config, folder)
    split = config.split or next((spec.name for spec in benchmark.splits if spec.train), None)
    seeds = []
    for seed in config.seeds:
        drawn = draw_shots(benchmark, manifest, config.shots, seed, split)
        if not config.overwrite:
            _check_drawn(drawn, folder, seed)
        training = _training(config, name, folder, seed, uri)
        assert training.output is not None
        seeds.append(
            _Seed(
                seed,
                drawn,
                training,
                _evaluation(config, benchmark, split, training, name, folder, uri),
                trained=not config.overwrite and training.output.exists() and _is_of(training.output, training),
            )
        )
    return _Plan(config, name, folder, benchmark, tuple(seeds), record, uri, why_not)


def _benchmark(config: TrainConfig) -> Benchmark:
    dataset = str(config.dataset)
    if config.protocol == "base_to_novel":
        benchmark = load_benchmark(protocol_name(dataset, config.protocol))
    elif dataset in known_benchmarks():
        benchmark = load_benchmark(dataset)
    else:
        near = suggestion(dataset, known_benchmarks())
        raise ConfigError(f'--protocol {config.protocol}: no benchmark "{dataset}"{near}')
    if benchmark.multi_label or not any(spec.train for spec in benchmark.splits):
        raise ConfigError(f"--protocol {config.protocol}: {dataset} has no training videos to draw from")
    return benchmark


def _folder(config: TrainConfig) -> Storage:
    root = Storage(config.storage or str(zar_home() / "training"))
    default = f"{config.protocol}-{config.dataset}-{config.shots}shot-{fingerprint(_identity(config))}"
    return root.child(config.name or default)


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What all seeds have in common."""
    return {name: value for name, value in identity(config).items() if name != "seed"}


def _opened(folder: Storage, config: TrainConfig) -> dict[str, Any]:
    """The experiment's record, new or continued; under --overwrite new, with nothing deleted yet.

    Raises:
        RunError: The folder holds another experiment, or something else.
    """
    now = _identity(config)
    if not folder.exists(RECORD):
        if folder.names():
            raise RunError(f"{folder.path()}: holds files that are not an experiment's; choose another --name")
        return {"identity": now, "seeds": []}
    if config.overwrite:
        return {"identity": now, "seeds": []}
    try:
        record = json.loads(folder.read(RECORD))
        changed = differences(record["identity"], now)
        seeds = [{**one, "seed": int(one["seed"])} for one in record["seeds"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder.path(RECORD)}: cannot be read ({error}); --overwrite the experiment or choose another --name"
        ) from None
    if changed:
        raise RunError(
            f"{folder.path()}: holds an experiment with other options ({'; '.join(changed)}); "
            "give this one a --name of its own, or --overwrite the other"
        )
    return {"identity": now, "seeds": seeds}


def _store(config: TrainConfig, folder: Storage) -> tuple[str | None, str | None]:
    """One MLflow store for the trainings, the evaluations and the experiment, or why there is none."""
    if not config.mlflow:
        return None, "not logged: switched off by --no-mlflow"
    if config.mlflow_uri:
        return config.mlflow_uri, None
    try:
        return default_uri(folder.location.rpartition("/")[0]), None
    except TrackingError as error:
        return None, f"not logged: {error}"


def _check_drawn(drawn: Manifest, folder: Storage, seed: int) -> None:
    name = _manifest_name(seed)
    if folder.exists(name) and read_manifest(folder.path(name)).fingerprint() != drawn.fingerprint():
        raise RunError(
            f"{folder.path(name)}: the videos drawn with seed {seed} were others, so the benchmark's manifest has "
            "changed since; give this experiment a --name and --output of its own, or --overwrite the other"
        )


def _manifest_name(seed: int) -> str:
    return f"seed{seed}.parquet"


def _training(config: TrainConfig, name: str, folder: Storage, seed: int, uri: str | None) -> TrainConfig:
    assert config.output is not None
    update = {
        "protocol": "standard",
        "dataset": folder.path(_manifest_name(seed)),
        "split": None,
        "seed": seed,
        "seeds": (),
        "output": config.output.with_name(f"{config.output.stem}-seed{seed}{config.output.suffix}"),
        "storage": folder.path("training"),
        "name": f"{name}-seed{seed}",
        "overwrite": False,
        "mlflow_uri": uri,
        "mlflow": uri is not None,
        "register_as": config.register_as if uri is not None else None,
    }
    return config.model_copy(update=update)


def _evaluation(
    config: TrainConfig,
    benchmark: Benchmark,
    split: str | None,
    training: TrainConfig,
    name: str,
    folder: Storage,
    uri: str | None,
) -> EvalConfig:
    """The evaluation of what a seed trains: as the benchmark says, with as many frames as it is trained on."""
    assert training.output is not None
    shared = EvalConfig.model_fields.keys() & TrainConfig.model_fields.keys()
    shared -= {"dataset", "split", "protocol", "output", "name", "seed", "seeds", "overwrite", "batch_size"}
    shared -= {"num_workers", "decode_workers", "checkpoint", "context", "mlflow", "mlflow_uri"}
    values = {key: value for key, value in benchmark.eval_options().items() if key != "seeds"}
    # The same videos are never both trained on and tested: of a benchmark with several splits only the drawn one's.
    few_shot = config.protocol == "few_shot"
    values = merge(
        values,
        {
            **config.model_dump(include=shared),
            **trained_options(training, training.output),
            "dataset": config.dataset,
            "protocol": "standard" if few_shot else config.protocol,
            "split": split if few_shot else None,
            "views": {"eval_frames": config.frames},
            "seed": training.seed,
            "output": folder.path("runs"),
            "name": f"{training.name}_{'+'.join(config.method)}",
            "mlflow": uri is not None,
            "mlflow_uri": uri,
        },
    )
    return validate(EvalConfig, values, f"{benchmark.name}, its evaluation")


def _is_of(checkpoint: Path, training: TrainConfig) -> bool:
    """Whether a file was trained with these options; refused if it was not.

    Raises:
        RunError: It was trained with others, or is nothing that was trained here.
    """
    way_out = "delete it, name another --output, or --overwrite the experiment"
    try:
        with safe_open(checkpoint, "pt") as file:
            metadata = file.metadata() or {}
        about = metadata.get(checkpoints.METADATA_KEY) or metadata[learned_context.METADATA_KEY]
        noted = json.loads(about)["notes"]["training"]
        # As options, so that those that came later count at what they were then: their defaults.
        before = {**identity(TrainConfig.model_validate(noted)), "dataset": Path(noted["dataset"]).name}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise RunError(f"{checkpoint}: is there, and nothing that zar train wrote; {way_out}") from None
    now = {**identity(training), "dataset": Path(str(training.dataset)).name}
    changed = differences(before, now)
    if changed:
        raise RunError(f"{checkpoint}: was trained with other options ({'; '.join(changed)}); {way_out}")
    return True


def _evaluated(plan: _Plan) -> str:
    if plan.config.protocol == "base_to_novel":
        return " and ".join(spec.name for spec in plan.benchmark.splits)
    return f"test videos of split {plan.seeds[0].evaluation.split}"


def _earlier(record: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return next((one for one in record["seeds"] if one["seed"] == seed), {})


def _with_seed(plan: _Plan, result: SeedResult) -> _Plan:
    """The plan with a finished seed in its record; seeds that are not asked for this time stay in it."""
    entry = {
        "seed": result.seed,
        "checkpoint": str(result.checkpoint),
        "training": dict(result.training),
        "summary": result.summary.to_json(),
    }
    kept = [one for one in plan.record["seeds"] if one["seed"] != result.seed]
    seeds = sorted([*kept, entry], key=lambda one: one["seed"])
    return replace(plan, record={**plan.record, "seeds": seeds})


def _write_record(plan: _Plan, record: Mapping[str, Any]) -> None:
    content = {
        "name": plan.name,
        "config": plan.config.model_dump(mode="json"),
        "provenance": provenance(),
        **record,
    }
    plan.folder.write(RECORD, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _log(plan: _Plan, seeds: tuple[SeedResult, ...], means: tuple[SeedMean, ...], note: str) -> MlflowState:
    if plan.mlflow_uri is None:
        return MlflowState(why_not=plan.why_not_logged)
    children: dict[str, dict[str, str]] = {}
    for one in seeds:
        for run in (one.training.get("run_id"), one.summary.mlflow.run_id):
            if run is not None:
                children[str(run)] = {"seed": str(one.seed)}
    group = RunGroup(
        name=plan.name,
        kind="experiment",
        config=plan.config.model_dump(mode="json"),
        tags={"dataset": plan.benchmark.name, "protocol": plan.config.protocol},
        children=children,
        numbers={name: value for one in means for name, value in one.numbers().items()},
        note=note,
        files=(RECORD,),
    )
    try:
        receipt = log_group(group, plan.folder, plan.mlflow_uri)
    except TrackingError as error:
        return MlflowState(why_not=f"not logged: {error}")
    return MlflowState(receipt.uri, receipt.experiment, receipt.run_id)
