"""Evaluations: what `zar eval` and `zar ablate` call, and what is called in Python by the same options."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from zar_ray.api.runs import Run, open_run
from zar_ray.api.told import plain
from zar_ray.cluster import require_cluster
from zar_ray.data.layering import layered
from zar_ray.errors import ConfigError, TrackingError
from zar_ray.models.loading import weights_named
from zar_ray.options.layers import read_yaml, validate
from zar_ray.reporting.pages import Drawn
from zar_ray.results.study_record import StudyRecord
from zar_ray.storage import folder_of
from zar_ray.study.demo import ensure_demo
from zar_ray.study.options import AblateConfig, EvalConfig
from zar_ray.study.run import run_study
from zar_ray.study.sweeps import known_sweeps

Word = str | os.PathLike[str]


def evaluate(
    dataset: Word,
    *,
    model: Word | Sequence[Word] | None = None,
    method: str | Sequence[str] | None = None,
    config: Word | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Evaluates methods on videos, or goes on with an evaluation that was stopped; all of `zar eval`.

    Args:
        dataset: A benchmark, a manifest, a list (.csv) or a folder of videos.
        model: The model, as `zar_ray.load` takes it; of several each is evaluated in the same pass.
        method: The test-time method, or several; by default ``zero_shot`` and ``zar``.
        config: A YAML file of options, beneath those that are given here.
        quiet: Print nothing of how it goes.
        options: Further options of `zar eval`, nested ones as dictionaries: ``name="first"``, ``seeds=[0, 1, 2]``,
            ``views={"frames": 8}``, ``output="s3://BUCKET/runs"``.

    Returns:
        The finished run, opened.

    Raises:
        ConfigError: An option cannot be used.
        RunError: The run cannot start or was stopped, or more videos failed than `max_failed` allows; what is finished
            is kept, and the same call goes on.
        ZarError: The data or a model cannot be used.
    """
    told = {"dataset": dataset, "model": model, "method": method, **options}
    return _run(EvalConfig, "evaluate", told, config, quiet)


def study(
    dataset: Word,
    *,
    sweep: Word | Sequence[Word],
    model: Word | Sequence[Word] | None = None,
    method: str | Sequence[str] | None = None,
    config: Word | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Evaluates many settings in one pass over the videos; all of `zar ablate`.

    Args:
        dataset: As of `evaluate`.
        sweep: What to vary: names of conf/sweeps, such as ``"confidence"``, or YAML files.
        model: As of `evaluate`.
        method: The test-time method, or several; by default ``zar``.
        config: As of `evaluate`.
        quiet: As of `evaluate`.
        options: Further options of `zar ablate`.

    Returns:
        The finished run, opened; its cells are the settings, models and seeds.

    Raises:
        ZarError: As of `evaluate`.
    """
    told = {"dataset": dataset, "sweep": sweep, "model": model, "method": method, **options}
    return _run(AblateConfig, "study", told, config, quiet)


def _run(kind: type[EvalConfig], call: str, told: Mapping[str, Any], config: Word | None, quiet: bool) -> Run:
    given = {name: value for name, value in told.items() if value is not None}
    model = given.pop("model", None)
    if isinstance(model, str | os.PathLike):
        named = weights_named(model, given.get("pretrained"))
        given = {**{name: value for name, value in named.items() if value is not None}, **given}
    elif model is not None:
        given["models"] = model
    values = plain(kind, given, call)
    from_file = read_yaml(Path(config)) if config is not None else {}
    named, protocol = ({**from_file, **values}.get(name) for name in ("dataset", "protocol"))
    values = layered(kind, from_file, values, dataset=named, protocol=protocol or "standard")
    options = validate(kind, values, call)
    record = run_options(options, Console(quiet=quiet, highlight=False, soft_wrap=True), call)
    return open_run(folder_of(record.whole.run_file))


def run_options(options: EvalConfig, console: Console, call: str) -> StudyRecord:
    """Runs or continues what options say, with all that a command does besides; returns the run's record.

    Args:
        options: The options.
        console: Where it shows how it goes.
        call: What messages call the command or function.

    Raises:
        ZarError: See `zar_ray.study.run.run_study`.
    """
    require_cluster(options.address)
    require_sweep(options, call)
    ensure_demo(options, console)
    record = run_study(options, console)
    if options.report:
        publish_report(folder_of(record.whole.run_file), console, mlflow_uri=options.mlflow_uri)
    return record


def require_sweep(options: EvalConfig, call: str) -> None:
    """Refuses an ablation that varies nothing, with a `ConfigError`."""
    if isinstance(options, AblateConfig) and not options.sweep:
        raise ConfigError(f"{call}: say what to vary with --sweep NAME or FILE.yaml ({', '.join(known_sweeps())})")


def publish_report(
    run: str,
    console: Console,
    output: str | None = None,
    samples: int = 6,
    *,
    attention: bool = True,
    form: Drawn | None = None,
    mlflow_uri: str | None = None,
) -> None:
    """Writes a run's report, adds it to the run in MLflow if it was logged there, and says where both are.

    Args:
        run: The run's folder.
        console: Where that is said.
        output: As of `zar_ray.reporting.html_report.write_report`.
        samples: As of the same.
        attention: As of the same.
        form: As of the same.
        mlflow_uri: The store that the run was logged to, where it needs a password; by default all of them.

    Raises:
        RunError: The folder holds no finished run, or the file cannot be written.
    """
    # What draws a page, no other command needs.
    from zar_ray.reporting.html_report import write_report
    from zar_ray.tracking import attach_report

    place, files = write_report(run, output, samples, attention=attention, form=form)
    try:
        for receipt in attach_report(run, {name: file.encode() for name, file in files.items()}, mlflow_uri):
            said = f"report attached to run {receipt.run_id} of experiment {receipt.experiment}"
            console.print(f"{receipt.uri}: {said}", markup=False, soft_wrap=True)
    except TrackingError as error:
        print(f"report not attached to MLflow: {error}", file=sys.stderr)
    console.print(f"report   {place}", markup=False, soft_wrap=True)
