"""One evaluation of several mixtures of two checkpoints: WiSE-FT's sweep (Wortsman et al., CVPR 2022, section 4).

The sweep has a folder of its own beside its runs:

OUTPUT/NAME/
alphas.json     the alphas with their checkpoints, runs and accuracies
checkpoints/    the mixed checkpoints
mlflow.json     where it was logged
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console

from zar_ray.data.datasets import protocol_name, resolve_dataset
from zar_ray.errors import ConfigError, ModelError, RunError, TrackingError
from zar_ray.evaluation.options import EvalConfig
from zar_ray.models.merging import interpolate
from zar_ray.reporting.seed_means import markdown_rows, print_rows
from zar_ray.results.record import Estimate, RunSummary
from zar_ray.storage import Storage
from zar_ray.study.inputs import run_name
from zar_ray.study.job import output_root
from zar_ray.study.seeds import run_seeds
from zar_ray.tracking import RunGroup, default_uri, log_group

RECORD = "alphas.json"

# A place in a table: what was measured (a split, or an average over splits), and with which method.
_Place = tuple[str, str]


@dataclass(frozen=True)
class AlphaResult:
    """The evaluation of one mixture.

    Attributes:
        alpha: Share of the second checkpoint.
        checkpoint: The mixed checkpoint.
        runs: Its runs, one a seed of the view plans.
    """

    alpha: float
    checkpoint: Path
    runs: tuple[RunSummary, ...]


@dataclass(frozen=True)
class Score:
    """The main accuracy of a mixture: top-1, or of a multi-label split mAP; a fraction in [0, 1].

    Attributes:
        value: It, after adaptation; with several seeds the mean over them.
        low: Lower end of its 95 % interval over the videos, of a single seed; an average over splits has none.
        high: Its upper end.
        std: Standard deviation between several seeds, n - 1 in its denominator.
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None

    def shown(self) -> str:
        """In per cent, with its interval or deviation."""
        text = f"{100 * self.value:.1f}"
        if self.low is not None and self.high is not None:
            text += f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return text if self.std is None else f"{text} +/- {100 * self.std:.1f}"


def describe_alphas(options: EvalConfig) -> str:
    """What a sweep would do, as a line.

    Raises:
        ConfigError: See `run_alphas`.
    """
    _check(options)
    alphas = ", ".join(f"{alpha:g}" for alpha in options.alphas)
    return f"alphas    {alphas}: shares of {options.interpolate_with}, the rest {_first(options)}"


def run_alphas(options: EvalConfig, console: Console) -> tuple[AlphaResult, ...]:
    """Runs or continues an evaluation for each of `options.alphas` and prints the accuracies side by side.

    Each alpha's checkpoint, (1 - alpha) of the model that the options name and alpha of `options.interpolate_with`, is
    written and evaluated as a run of its own, once with each of `options.seeds`.

    Raises:
        ConfigError: One of the two options is missing, or an alpha is given twice.
        ModelError: The two checkpoints cannot be mixed.
        RunError: A mixture cannot be written.
        ZarError: A run cannot start, was stopped, or had too many failed videos; its results are written.
    """
    _check(options)
    second = Path(str(options.interpolate_with)).expanduser().absolute()
    resolve_dataset(protocol_name(str(options.dataset), options.protocol), options.data_root)
    root = output_root(options.output)
    folder = Storage(root).child(_name(options))
    # Every node that can read the second checkpoint can read its neighbours; results may lie where models cannot.
    place = Path(folder.location) / "checkpoints" if folder.is_local else second.parent / _name(options)
    results = []
    for number, alpha in enumerate(options.alphas, 1):
        console.print(f"\nalpha {alpha:g} ({number} of {len(options.alphas)})")
        checkpoint = place / f"{_mixture(options)}-alpha{alpha:g}.safetensors"
        _merge(_first(options), second, alpha, checkpoint)
        update = {
            "checkpoint": checkpoint,
            "interpolate_with": None,
            "alphas": (),
            "name": f"{options.name}_alpha{alpha:g}" if options.name else None,
        }
        results.append(AlphaResult(alpha, checkpoint, run_seeds(options.model_copy(update=update), console)))
    scores = [_scores(one.runs) for one in results]
    _write(results, scores, options, folder)
    tables = _tables(options.alphas, scores)
    notes = _notes(options.alphas, scores, len(results[0].runs))
    console.print()
    for title, rows in tables.items():
        if len(tables) > 1:
            console.print(title, style="bold")
        print_rows(rows, (), console)
    for note in notes:
        console.print(note, style="dim")
    console.print(f"record  {folder.path(RECORD)}")
    text = "\n".join(f"**{title}**\n\n{markdown_rows(rows, ())}" for title, rows in tables.items())
    console.print(f"MLflow  {_log(results, scores, options, folder, root, text + ' '.join(notes))}")
    return tuple(results)


def _check(options: EvalConfig) -> None:
    if options.interpolate_with is None:
        raise ConfigError("--alphas: name the checkpoint to interpolate with, --interpolate-with FILE")
    if not options.alphas:
        raise ConfigError("--interpolate-with: give its shares, such as --alphas 0 0.25 0.5 0.75 1")
    if len({f"{alpha:g}" for alpha in options.alphas}) < len(options.alphas):
        raise ConfigError(f"--alphas {' '.join(f'{alpha:g}' for alpha in options.alphas)}: names an alpha twice")
    for path in (options.checkpoint, options.interpolate_with):
        if path is not None and not path.expanduser().is_file():
            raise ModelError(f"{path}: no such checkpoint file")


def _first(options: EvalConfig) -> str:
    """The model that alpha 0 is, as `interpolate` takes it."""
    if options.checkpoint is not None:
        return str(options.checkpoint.expanduser().absolute())
    return f"{options.model}:{options.pretrained}"


def _mixture(options: EvalConfig) -> str:
    first = options.checkpoint.stem if options.checkpoint else f"{options.model}-{options.pretrained}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", first) + f"+{Path(str(options.interpolate_with)).stem}"


def _name(options: EvalConfig) -> str:
    dataset = Path(protocol_name(str(options.dataset), options.protocol)).stem
    mixed = options.model_copy(update={"checkpoint": Path(f"{_mixture(options)}.safetensors")})
    return f"{options.name or run_name(mixed, dataset)}_alphas"


def _merge(first: str, second: Path, alpha: float, target: Path) -> None:
    """Writes a mixture in place of one that an earlier session left: it is the same, or its sources have changed."""
    # The file's name is the model's, so the unfinished one has it too, in a folder of its own.
    unfinished = target.parent / f".{uuid.uuid4().hex}"
    try:
        unfinished.mkdir(parents=True)
        # What fine-tuning was given to see, the mixtures see too.
        interpolate(first, second, alpha, unfinished / target.name, pixels_of=second)
        (unfinished / target.name).replace(target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _scores(runs: Sequence[RunSummary]) -> dict[_Place, Score]:
    """The main accuracies of one mixture."""
    found: dict[_Place, list[Estimate | float]] = {}
    for run in runs:
        for case in run.cases:
            main = case.map_after or (case.headline.after.top1 if case.headline else None)
            if main is not None:
                found.setdefault((case.split, case.method), []).append(main)
        for average in run.averages:
            if average.metric in ("top1", "map"):
                title = f"{average.kind} mean" if average.kind == "harmonic" else "mean of splits"
                found.setdefault((title, average.method), []).append(average.value)
    return {place: _score(values) for place, values in found.items()}


def _score(values: Sequence[Estimate | float]) -> Score:
    if len(values) > 1:
        plain = [one.value if isinstance(one, Estimate) else one for one in values]
        return Score(fmean(plain), std=stdev(plain))
    (only,) = values
    return Score(only.value, only.low, only.high) if isinstance(only, Estimate) else Score(only)


def _tables(alphas: Sequence[float], scores: Sequence[Mapping[_Place, Score]]) -> dict[str, list[tuple[str, ...]]]:
    """A table alpha x method for each split and average, its first row the heading."""
    tables = {}
    for title in dict.fromkeys(title for title, _ in scores[0]):
        methods = [method for known, method in scores[0] if known == title]
        rows = [
            (f"{alpha:g}", *(of_alpha[title, method].shown() for method in methods))
            for alpha, of_alpha in zip(alphas, scores, strict=True)
        ]
        tables[title] = [("alpha", *(f"{method} (%)" for method in methods)), *rows]
    return tables


def _notes(alphas: Sequence[float], scores: Sequence[Mapping[_Place, Score]], seeds: int) -> list[str]:
    if not scores[0]:
        return ["No video has a label, so there are no accuracies."]
    if seeds > 1:
        notes = [f"Mean +/- standard deviation over {seeds} seeds (n - 1 in its denominator)."]
    else:
        notes = ["Intervals hold with 95 %."]
    best = []
    for place in scores[0]:
        values = [of_alpha[place].value for of_alpha in scores]
        of = f"{place[1]} on {place[0]}" if len({title for title, _ in scores[0]}) > 1 else place[1]
        best.append(f"{of} at alpha {alphas[values.index(max(values))]:g}")
    notes.append(
        f"Highest: {'; '.join(best)}. That is chosen on the very videos it is measured on, which flatters it: settle "
        "alpha on other videos before quoting its accuracy."
    )
    return notes


def _write(
    results: Sequence[AlphaResult], scores: Sequence[Mapping[_Place, Score]], options: EvalConfig, folder: Storage
) -> None:
    content = {
        "config": options.model_dump(mode="json"),
        "alphas": [
            {
                "alpha": one.alpha,
                "checkpoint": str(one.checkpoint),
                "runs": [run.run_file for run in one.runs],
                "scores": [
                    {"of": title, "method": method, **asdict(score)} for (title, method), score in of_alpha.items()
                ],
            }
            for one, of_alpha in zip(results, scores, strict=True)
        ],
    }
    folder.write(RECORD, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _log(
    results: Sequence[AlphaResult],
    scores: Sequence[Mapping[_Place, Score]],
    options: EvalConfig,
    folder: Storage,
    root: str,
    note: str,
) -> str:
    """Logs the sweep as a run above its runs; says where it is, or why it is not there."""
    children = {run.mlflow.run_id: {"alpha": f"{one.alpha:g}"} for one in results for run in one.runs}
    if None in children:
        return "the sweep is not logged, as its runs are not"
    several = len({title for title, _ in scores[0]}) > 1
    curves = {
        f"{title}/{method}/accuracy" if several else f"{method}/accuracy": {
            round(1000 * one.alpha): of_alpha[title, method].value
            for one, of_alpha in zip(results, scores, strict=True)
        }
        for title, method in scores[0]
    }
    group = RunGroup(
        name=folder.location.rpartition("/")[2],
        kind="alphas",
        config=options.model_dump(mode="json"),
        tags={"dataset": str(options.dataset)},
        children={str(run): tags for run, tags in children.items()},
        numbers={},
        note=note,
        curves=curves,
        files=(RECORD,),
    )
    try:
        receipt = log_group(group, folder, options.mlflow_uri or default_uri(root))
    except TrackingError as error:
        return f"the sweep is not logged: {error}"
    return f"{receipt.uri} (run {receipt.run_id})"
