"""Few-shot and base-to-novel experiments: a study whose models are trained on the way, an axis of shots and of seeds.

For each number of shots and each training seed so many training videos a class are drawn, and a model is trained on
them; then one study evaluates all of these models together. The experiment has a folder of its own:

STORAGE/NAME/
16shot-seed1.parquet   the videos drawn
training/              the trainings' checkpoints to go on from
runs/NAME/             the study
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from zar_ray.adaptation.methods import get_method
from zar_ray.data.datasets import known_benchmarks, load_benchmark, protocol_name
from zar_ray.data.few_shot import draw_shots
from zar_ray.data.manifest import Manifest, read_manifest, write_manifest
from zar_ray.data.protocols import Benchmark
from zar_ray.errors import ConfigError, RunError, suggestion
from zar_ray.models import checkpoints, learned_context
from zar_ray.models.formats import safetensors_notes
from zar_ray.options.base import fingerprint, meaning, require_distinct
from zar_ray.options.layers import merge, validate, zar_home
from zar_ray.options.places import AnyFile
from zar_ray.results.folder import differences
from zar_ray.results.study_record import StudyRecord
from zar_ray.storage import Storage
from zar_ray.study.axes import ModelChoice, plain_name
from zar_ray.study.options import EvalConfig
from zar_ray.study.run import run_study
from zar_ray.tracking import default_uri, put_below
from zar_ray.training.job import run_training, settled
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import trained_options
from zar_ray.untrusted import parse_json

_TITLES = {"few_shot": "few-shot", "base_to_novel": "base to novel"}


@dataclass(frozen=True)
class Training:
    """One training of an experiment.

    Attributes:
        videos: The videos drawn.
        config: Its options, with its number of shots, and the seed of the draw and of the training.
        output: The checkpoint that it writes.
        done: Whether that is there already.
    """

    videos: Manifest
    config: TrainConfig
    output: AnyFile
    done: bool

    @property
    def coordinates(self) -> dict[str, str]:
        """Its label on each of the experiment's axes."""
        begun = self.config.checkpoint.stem if self.config.checkpoint else self.config.model
        return {"model": begun, "shots": str(*self.config.shots), "training seed": str(self.config.seed)}


@dataclass(frozen=True)
class Experiment:
    """An experiment before it starts.

    Attributes:
        config: Its options.
        folder: Its folder.
        benchmark: What it is of.
        trainings: What is trained, by shots, then seed.
        evaluation: The options of its study.
    """

    config: TrainConfig
    folder: Storage
    benchmark: Benchmark
    trainings: tuple[Training, ...]
    evaluation: EvalConfig


def describe(config: TrainConfig) -> str:
    """What an experiment would do, in a few lines.

    Raises:
        ZarError: An option or the dataset cannot be used.
    """
    plan = plan_experiment(config)
    evaluated = f"test videos of split {plan.evaluation.split}"
    if config.protocol == "base_to_novel":
        evaluated = " and ".join(spec.name for spec in plan.benchmark.splits)
    drawn = {one.coordinates["shots"]: one.videos for one in plan.trainings}
    return "\n".join(
        [
            f"experiment  {_heading(plan)}",
            *(
                f"training    {len(videos)} videos a seed: {shots} of each of {len(videos.class_names)} classes"
                for shots, videos in drawn.items()
            ),
            f"evaluation  {evaluated}, methods {', '.join(config.method)}",
            f"folder      {plan.folder.path()}",
            *(f"checkpoint  {one.output}{' (trained already)' if one.done else ''}" for one in plan.trainings),
        ]
    )


def run_experiment(config: TrainConfig, console: Console) -> StudyRecord:
    """Trains what is not trained yet, then runs or continues the study of all models, and prints its tables.

    Args:
        config: The options, `protocol` being ``few_shot`` or ``base_to_novel``.
        console: Where it shows how it goes.

    Raises:
        ConfigError: An option is missing or does not fit the dataset.
        ManifestError: The benchmark's manifest is missing, or has too few training videos.
        RunError: The folder or a checkpoint is of other options; or a training or the evaluation failed. The same
            command continues.
    """
    plan = plan_experiment(config)
    if config.overwrite:
        plan.folder.delete_folder()
    console.print(f"{_heading(plan)}, in {plan.folder.path()}")
    logged: dict[str, dict[str, str]] = {}
    for number, one in enumerate(plan.trainings, 1):
        shots, seed = one.coordinates["shots"], one.coordinates["training seed"]
        console.print(f"\n{shots} shots, seed {seed} ({number} of {len(plan.trainings)})")
        write_manifest(one.videos, str(one.config.dataset))
        if one.done:
            console.print(f"trained already: {one.output}")
        elif (run_id := run_training(one.config, console).run_id) is not None:
            logged[run_id] = {"shots": shots, "seed": seed}
    console.print()
    models = [ModelChoice(one.coordinates, trained_options(one.config, one.output)) for one in plan.trainings]
    record = run_study(plan.evaluation, console, models)
    if logged and record.whole.mlflow.run_id is not None and record.whole.mlflow.uri is not None:
        put_below(record.whole.mlflow.run_id, logged, plan.evaluation.mlflow_uri or record.whole.mlflow.uri)
    return record


def plan_experiment(config: TrainConfig) -> Experiment:
    """Looks at everything that can be wrong, and settles what is to be trained and evaluated.

    Raises:
        ZarError: An option, the dataset, the folder or a checkpoint that is there cannot be used.
    """
    where = f"--protocol {config.protocol}"
    if config.dataset is None:
        raise ConfigError(f"{where}: say which benchmark with --dataset, such as hmdb51")
    if not config.seeds:
        raise ConfigError(f"{where}: say which seeds to draw training videos with, such as --seeds 1 2 3")
    for name, values in (("seeds", config.seeds), ("shots", config.shots), ("method", config.method)):
        require_distinct(f"--{name}", values, "one")
    if config.protocol == "base_to_novel" and config.split is not None:
        raise ConfigError(f"--split {config.split}: {where} trains on the base classes and evaluates both halves")
    for name in config.method:
        get_method(name)
    config = settled(config)
    benchmark = _benchmark(config)
    manifest, folder = read_manifest(benchmark.existing_manifest(config.data_root)), _folder(config)
    split = config.split or next((spec.name for spec in benchmark.splits if spec.train), None)
    trainings = []
    for shots, seed in product(config.shots, config.seeds):
        drawn = draw_shots(benchmark, manifest, shots, seed, split)
        training = _training(config, folder, shots, seed)
        assert training.output is not None
        place = str(training.dataset)
        there = not config.overwrite and folder.exists(Storage.of_file(place)[1])
        if there and read_manifest(place).fingerprint() != drawn.fingerprint():
            raise RunError(
                f"{place}: the videos drawn with seed {seed} were others, so the benchmark's manifest has "
                "changed since; give this experiment a --name and --output of its own, or --overwrite the other"
            )
        done = not config.overwrite and training.output.exists() and _is_of(training.output, training)
        trainings.append(Training(drawn, training, training.output, done))
    return Experiment(config, folder, benchmark, tuple(trainings), _evaluation(config, benchmark, split, folder))


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
    """The experiment's folder; by default named by all that its trainings have in common.

    Raises:
        RunError: It holds something else.
    """
    root = Storage(config.storage or str(zar_home() / "training"))
    common = {name: value for name, value in meaning(config).items() if name not in ("seed", "shots")}
    folder = root.child(config.name or f"{config.protocol}-{config.dataset}-{fingerprint(common)}")
    if alien := [name for name in folder.names() if not name.endswith(".parquet")]:
        raise RunError(f"{folder.path(alien[0])}: is not an experiment's; choose another --name")
    return folder


def _training(config: TrainConfig, folder: Storage, shots: int, seed: int) -> TrainConfig:
    assert config.output is not None
    name = f"{shots}shot-seed{seed}"
    update = {
        "protocol": "standard",
        "dataset": folder.path(f"{name}.parquet"),
        "split": None,
        "seed": seed,
        "seeds": (),
        "shots": (shots,),
        "output": config.output.with_name(f"{config.output.stem}-{name}{config.output.suffix}"),
        "storage": folder.path("training"),
        "name": f"{folder.name}-{name}",
        "overwrite": False,
        "mlflow_uri": _mlflow_uri(config, folder),
    }
    return config.model_copy(update=update)


def _mlflow_uri(config: TrainConfig, folder: Storage) -> str | None:
    """One store for the trainings and the study; by default beside the experiment's folder."""
    return config.mlflow_uri or (default_uri(folder.parent.location) if folder.is_local else None)


def _evaluation(config: TrainConfig, benchmark: Benchmark, split: str | None, folder: Storage) -> EvalConfig:
    """The study of what is trained: as the benchmark says, with as many frames as it is trained on."""
    shared = EvalConfig.model_fields.keys() & TrainConfig.model_fields.keys()
    shared -= {"dataset", "split", "protocol", "output", "name", "seed", "seeds", "overwrite", "batch_size"}
    shared -= {"num_workers", "decode_workers", "checkpoint", "context", "mlflow_uri"}
    values = {key: value for key, value in benchmark.eval_options().items() if key != "seeds"}
    # The same videos are never both trained on and tested: of a benchmark with several splits only the drawn one's.
    few_shot = config.protocol == "few_shot"
    shots, seeds = ("+".join(map(str, of_one)) for of_one in (config.shots, config.seeds))
    given: dict[str, Any] = {
        **config.model_dump(include=shared),
        "dataset": config.dataset,
        "protocol": "standard" if few_shot else config.protocol,
        "split": split if few_shot else None,
        "views": {"eval_frames": config.frames},
        "output": folder.path("runs"),
        "name": plain_name(f"{shots}shot_seeds{seeds}_{'+'.join(config.method)}"),
        "mlflow_uri": _mlflow_uri(config, folder),
    }
    return validate(EvalConfig, merge(values, given), f"{benchmark.name}, its evaluation")


def _is_of(checkpoint: AnyFile, training: TrainConfig) -> bool:
    """Whether a file was trained with these options; refused if it was not.

    Raises:
        RunError: It was trained with others, or is nothing that was trained here.
    """
    way_out = "delete it, name another --output, or --overwrite the experiment"
    try:
        with checkpoint.open("rb") as file:
            metadata = safetensors_notes(file)
        about = metadata.get(checkpoints.METADATA_KEY) or metadata[learned_context.METADATA_KEY]
        noted = parse_json(about)["notes"]["training"]
        before = {**meaning(TrainConfig.model_validate(noted)), "dataset": Path(noted["dataset"]).name}
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{checkpoint}: is there, and nothing that zar train wrote; {way_out}") from None
    now = {**meaning(training), "dataset": Path(str(training.dataset)).name}
    if changed := differences(before, now):
        raise RunError(f"{checkpoint}: was trained with other options ({'; '.join(changed)}); {way_out}")
    return True


def _heading(plan: Experiment) -> str:
    config = plan.config
    return (
        f"{_TITLES[config.protocol]}, {plan.benchmark.title}, {', '.join(map(str, config.shots))} shots, "
        f"seeds {', '.join(map(str, config.seeds))}"
    )
