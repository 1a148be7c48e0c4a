"""The `zar` command.  Each command is a verb on one thing; jobs/*.py call the same functions.

Heavy libraries are imported inside the commands that need them, so that `zar --version` and a misspelt option answer
at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro
import yaml
from rich.console import Console
from rich.table import Table

import zar_ray
from zar_ray.command_line import fail, parse, parse_run
from zar_ray.config import (
    AblateConfig,
    AuditConfig,
    EvalConfig,
    IndexConfig,
    Options,
    PredictConfig,
    ShotsConfig,
    TrainConfig,
    ViewConfig,
    ZarConfig,
)
from zar_ray.errors import ConfigError, TrackingError, ZarError, suggestion


def _command(function: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """Shows a user's mistake as one line, and an interruption without a traceback."""

    def run(argv: Sequence[str]) -> int:
        try:
            return function(argv)
        except ZarError as error:
            return fail(error)
        except KeyboardInterrupt:
            print("zar: interrupted; what is finished is kept, and the same command continues it", file=sys.stderr)
            return 130
        except BrokenPipeError:
            if not _output_is_unread():
                raise
            return 128 + signal.SIGPIPE

    run.__doc__ = function.__doc__
    return run


def _output_is_unread() -> bool:
    """Whether nobody reads our output any more, as under `| head`; then nothing more is written to it."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _show(options: Options) -> int:
    print(yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False), end="")
    return 0


@_command
def eval_command(argv: Sequence[str]) -> int:
    """Evaluate methods on a dataset, a manifest, a list or a folder of videos."""
    invocation = parse_run(EvalConfig, argv, "zar eval")
    if invocation.show_config:
        return _show(invocation.options)
    from zar_ray.demo import ensure_demo
    from zar_ray.evaluation.alphas import describe_alphas, run_alphas
    from zar_ray.evaluation.job import describe, prepare
    from zar_ray.evaluation.model_table import describe_models, run_models
    from zar_ray.evaluation.seeds import run_seeds

    options, console = invocation.options, Console(highlight=False, soft_wrap=True)
    if options.models and invocation.dry_run:
        console.print(describe_models(options, console))
        return 0
    sweep = options.interpolate_with is not None or bool(options.alphas)
    if not invocation.dry_run:
        ensure_demo(options, console)
        alphas = run_alphas(options, console) if sweep and not options.models else ()
        runs = [run for one in alphas for run in one.runs]
        if options.models:
            runs = run_models(options, console).runs
        elif not sweep:
            runs = run_seeds(options, console)
        for run in runs if options.report else ():
            _write_report(run.run_file.rpartition("/")[0], mlflow_uri=options.mlflow_uri)
        return 0
    console.print(describe(*prepare(options, console)))
    if sweep:
        console.print(describe_alphas(options))
    return 0


@_command
def ablate_command(argv: Sequence[str]) -> int:
    """Evaluate many settings in one pass over the videos, and compare them."""
    invocation = parse_run(AblateConfig, argv, "zar ablate")
    if invocation.show_config:
        return _show(invocation.options)
    from zar_ray.demo import ensure_demo
    from zar_ray.evaluation.ablation import describe, prepare, run_ablation

    console = Console(highlight=False, soft_wrap=True)
    if not invocation.dry_run:
        ensure_demo(invocation.options, console)
        sweep = run_ablation(invocation.options, console)
        if invocation.options.report:
            folder = sweep.settings[0].summary.run_file.rpartition("/")[0]
            _write_report(folder, mlflow_uri=invocation.options.mlflow_uri)
        return 0
    console.print(describe(prepare(invocation.options, console)))
    return 0


@_command
def predict_command(argv: Sequence[str]) -> int:
    """Rank given labels for given files, before and after adaptation."""
    invocation = parse_run(PredictConfig, argv, "zar predict")
    options = invocation.options
    if invocation.show_config:
        return _show(options)
    if not options.videos:
        raise ConfigError("zar predict: give the video files to look at")
    if options.labels is None:
        raise ConfigError('zar predict: give the candidate classes with --labels "a,b,c" or a file with one a line')
    if options.server is not None:
        from zar_ray.remote_prediction import predict_on_server, require_asked

        require_asked(options, argv)
        return predict_on_server(options, options.server, invocation.dry_run)
    if options.token is not None:
        raise ConfigError("zar predict: --token goes with --server")
    from zar_ray.adaptation.methods import get_method
    from zar_ray.data.datasets import parse_class_names
    from zar_ray.evaluation.predict import predict
    from zar_ray.models.loading import load_model
    from zar_ray.reporting.tables import print_ranking

    for method in options.method:
        get_method(method)
    labels = parse_class_names(options.labels)
    if invocation.dry_run:
        print(f"{len(options.videos)} videos, {len(labels)} labels, methods {', '.join(options.method)}")
        return 0
    console = Console(highlight=False)
    model = load_model(options)
    failed = 0
    for ranking in predict(model, labels, options):
        failed += ranking.error is not None
        if options.json_lines:
            print(json.dumps({**asdict(ranking), "random_weights": model.random_weights}, ensure_ascii=False))
        else:
            print_ranking(ranking, console, random_weights=model.random_weights)
    return 1 if failed else 0


@_command
def train_command(argv: Sequence[str]) -> int:
    """Train CLIP on the videos of a manifest, through Ray Train."""
    invocation = parse_run(TrainConfig, argv, "zar train")
    if invocation.show_config:
        return _show(invocation.options)
    from zar_ray.training import experiments, inputs, job

    console = Console(highlight=False, soft_wrap=True)
    alone = invocation.options.protocol == "standard"
    if invocation.dry_run:
        console.print((inputs if alone else experiments).describe(invocation.options))
        return 0
    (job.run_training if alone else experiments.run_experiment)(invocation.options, console)
    return 0


@_command
def data_index_command(argv: Sequence[str]) -> int:
    """Find a benchmark's, a folder's or a list's videos, probe them and write the manifest."""
    about = "Probes every file in parallel and writes one Parquet row a video; bad files stay in with their error."
    options = parse(IndexConfig, argv, "zar data index", description=about)
    from zar_ray.data.indexing import run_index

    run_index(options, Console(highlight=False, soft_wrap=True))
    return 0


@_command
def data_show_command(argv: Sequence[str]) -> int:
    """Show what a manifest holds."""

    def show(manifest: Annotated[str, tyro.conf.Positional], rows: int = 10) -> int:
        """Shows a manifest's counts by split and its first rows.

        Args:
            manifest: The manifest's file.
            rows: Rows to show.
        """
        from zar_ray.data.manifest import read_manifest
        from zar_ray.reporting.tables import print_manifest

        print_manifest(read_manifest(manifest), Console(highlight=False), rows)
        return 0

    return parse(show, argv, "zar data show")


@_command
def data_list_command(argv: Sequence[str]) -> int:
    """List the benchmarks, their protocols, and whether their manifests are there."""

    def show(data_root: Path | None = None) -> int:
        """Lists every benchmark with its splits, classes and videos, and whether its manifest is there.

        Args:
            data_root: Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets.
        """
        from zar_ray.data.overview import benchmark_statuses
        from zar_ray.reporting.tables import print_benchmarks

        print_benchmarks(benchmark_statuses(data_root), Console(highlight=False))
        return 0

    return parse(show, argv, "zar data list")


@_command
def data_shots_command(argv: Sequence[str]) -> int:
    """Draw a few-shot training set from a benchmark's official training videos."""
    about = "Draws so many training videos a class and writes their manifest, for `zar train --dataset`."
    options = parse(ShotsConfig, argv, "zar data shots", description=about)
    from zar_ray.data.few_shot import write_shots

    target, drawn = write_shots(options)
    name = drawn.name if options.output is None and options.data_root is None else target
    print(f"{target}: {len(drawn)} videos, {len(drawn.class_names)} classes; zar train --dataset {name}")
    return 0


@_command
def data_audit_command(argv: Sequence[str]) -> int:
    """Look for mistakes in a manifest, or in lists and their labels."""
    about = (
        "Checks labels against file names, duplicates, overlaps, shared classes, files and counts. The exit status is "
        "1 if anything is wrong; warnings and notes do not change it."
    )
    options = parse(AuditConfig, argv, "zar data audit", description=about)
    from zar_ray.data.audit import run_audit

    report = run_audit(options)
    for line in report.lines():
        print(line)
    return 1 if report.wrong else 0


@_command
def report_mlflow_command(argv: Sequence[str]) -> int:
    """Send a finished run to MLflow."""

    def send(run: Annotated[str, tyro.conf.Positional], uri: str | None = None) -> int:
        """Sends a finished run to MLflow, once.

        Args:
            run: The run's folder.
            uri: The tracking store; by default mlflow.db beside the run's folder.
        """
        from zar_ray.tracking import log_run_folder

        receipt = log_run_folder(run, uri)
        known = "" if receipt.new else " already"
        print(f"{run}: is{known} run {receipt.run_id} of experiment {receipt.experiment} at {receipt.uri}")
        return 0

    return parse(send, argv, "zar report mlflow")


def _write_report(
    run: str, output: str | None = None, samples: int = 6, attention: bool = True, mlflow_uri: str | None = None
) -> None:
    """Writes a run's report, adds it to the run in MLflow, and says where it is."""
    from zar_ray.explanation import attention_figures
    from zar_ray.reporting.html_report import REPORT, write_report
    from zar_ray.tracking import attach_report

    place, page = write_report(run, output, samples, attention_figures if attention else None)
    try:
        for receipt in attach_report(run, REPORT, page.encode(), mlflow_uri):
            print(f"{receipt.uri}: report attached to run {receipt.run_id} of experiment {receipt.experiment}")
    except TrackingError as error:
        print(f"report not attached to MLflow: {error}", file=sys.stderr)
    print(f"report   {place}")


@_command
def report_run_command(argv: Sequence[str]) -> int:
    """Write a finished run's report as one HTML file."""

    def report(
        run: Annotated[str, tyro.conf.Positional],
        output: str | None = None,
        samples: int = 6,
        attention: bool = True,
        mlflow_uri: str | None = None,
    ) -> int:
        """Writes a report that needs nothing besides itself, and adds it to the run in MLflow if it was logged there.

        Args:
            run: The run's folder.
            output: The file; by default report.html in the run's folder.
            samples: How many of the videos most helped, most hurt, and with attention maps are shown.
            attention: Draw where the model looks, for which the run's weights and videos must be at hand.
            mlflow_uri: The store that the run was logged to, where it needs a password; by default all of them.
        """
        _write_report(run, output, samples, attention, mlflow_uri)
        return 0

    return parse(report, argv, "zar report run")


@_command
def report_compare_command(argv: Sequence[str]) -> int:
    """Compare finished runs, video by video where they are of the same videos."""

    def compare(
        runs: Annotated[tuple[str, ...], tyro.conf.Positional],
        output: str | None = None,
        format: Literal["terminal", "markdown", "csv"] = "terminal",
        mlflow_uri: str | None = None,
    ) -> int:
        """Holds runs against the first of them: accuracies, which classes and videos changed, and what it cost.

        Args:
            runs: Folders of runs, or their run ids in MLflow.
            output: A file that gets all of it (.html) or the plot alone (.png, .svg).
            format: For people, for documents or for programs.
            mlflow_uri: The store that run ids are of.
        """
        from zar_ray.reporting.comparison import compare_runs
        from zar_ray.reporting.comparison_views import report_comparison, write_comparison
        from zar_ray.tracking import logged_run

        comparison = compare_runs(runs, logged_run(mlflow_uri) if mlflow_uri is not None else None)
        report_comparison(comparison, format, Console(highlight=False))
        if output is not None:
            print(f"{write_comparison(comparison, output)}: the comparison of {len(runs)} runs", file=sys.stderr)
        return 0

    return parse(compare, argv, "zar report compare")


@_command
def report_table_command(argv: Sequence[str]) -> int:
    """Show a published table beside your own finished runs."""

    def table(
        name: Annotated[str, tyro.conf.Positional],
        output: str = EvalConfig.model_fields["output"].default,
        format: Literal["terminal", "markdown", "csv"] = "terminal",
        mlflow_uri: str | None = None,
    ) -> int:
        """Fills the published cells that finished runs belong to, and says how the others are filled.

        Args:
            name: The table: zar-table1 to zar-table5, actionclip or ezclip.
            output: Folder or URI that holds the runs.
            format: For people, for documents or for programs.
            mlflow_uri: An MLflow store whose evaluations are looked at too.
        """
        from zar_ray.reporting.published_table import report_table
        from zar_ray.tracking import logged_runs

        more = logged_runs(mlflow_uri) if mlflow_uri is not None else ()
        report_table(name, output, format, Console(highlight=False), more)
        return 0

    return parse(table, argv, "zar report table")


@_command
def checkpoint_parity_command(argv: Sequence[str]) -> int:
    """Hold this code against reference vectors of official implementations."""

    def parity(fixtures: Annotated[Path, tyro.conf.Positional], videos: Path | None = None) -> int:
        """Prints one line an array: name, largest absolute difference, tolerance, ok; exit status 1 on any miss.

        Args:
            fixtures: A fixture's folder, or a folder of such folders.
            videos: Folder that a fixture's video files are looked up under; by default found above the fixture.
        """
        from zar_ray.parity import check_fixtures, format_checks

        checks = check_fixtures(fixtures, videos)
        print(format_checks(checks))
        return 0 if all(check.ok for check in checks) else 1

    return parse(parity, argv, "zar checkpoint parity")


@_command
def checkpoint_import_command(argv: Sequence[str]) -> int:
    """Make a zar-ray checkpoint of another system's file, and account for its tensors."""

    def convert(
        file: Annotated[Path, tyro.conf.Positional],
        base: str | None = None,
        model: str | None = None,
        output: Path | None = None,
    ) -> int:
        """Recognises OpenAI's, open_clip's and the published systems' files by their keys (docs/models.md).

        Args:
            file: The checkpoint.
            base: What gives tensors that the file lacks: a checkpoint file, or an open_clip NAME:TAG such as
                ViT-B-16-quickgelu:openai.
            model: The open_clip name of its architecture, for open_clip's files, which do not tell their activation.
            output: The .safetensors file to write; by default beside the file, ending in .zar.safetensors.
        """
        from zar_ray.models.importing import default_output, plan_import

        plan = plan_import(file, base, model)
        print("\n".join(plan.lines()))
        target = output or default_output(file)
        plan.write(target)
        print(f"{target}: written; zar eval --checkpoint {target}")
        return 0

    return parse(convert, argv, "zar checkpoint import")


@_command
def checkpoint_export_command(argv: Sequence[str]) -> int:
    """Write a checkpoint for open_clip, or in OpenAI's layout."""

    def export(
        checkpoint: Annotated[str, tyro.conf.Positional],
        output: Path,
        format: Literal["open_clip", "openai"] = "open_clip",
        half: bool = False,
    ) -> int:
        """Writes what other code reads, and says what its format cannot tell.

        Args:
            checkpoint: A checkpoint file, or an open_clip NAME:TAG.
            output: For open_clip a folder, which describes itself, or a .safetensors file; for OpenAI's layout a
                .safetensors or .pt file.
            format: Whose code shall read it.
            half: Round the weights to half precision.
        """
        from zar_ray.models.exporting import export_checkpoint

        export = export_checkpoint(checkpoint, output, format, half)
        print(f"{export.path}: written; {export.usage}")
        for what in export.lost:
            print(f"  not told by this format: {what}")
        return 0

    return parse(export, argv, "zar checkpoint export")


@_command
def checkpoint_merge_command(argv: Sequence[str]) -> int:
    """Average the weights of checkpoints."""

    def merge(
        checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional],
        output: Path,
        alpha: float | None = None,
        pixels_of: str | None = None,
    ) -> int:
        """Averages checkpoints of one architecture; all parameters alike, the logit scale too.

        Args:
            checkpoints: Two or more checkpoint files or open_clip NAME:TAG.
            output: The .safetensors file to write.
            alpha: Share of the second of two: 0 gives the first, 1 the second (WiSE-FT); by default equal shares.
            pixels_of: The one whose mean, deviation and sizes the result has, where they differ.
        """
        from zar_ray.models.merging import interpolate, merge_checkpoints

        if alpha is None:
            merge_checkpoints(checkpoints, None, output, pixels_of)
        elif len(checkpoints) == 2:
            interpolate(checkpoints[0], checkpoints[1], alpha, output, pixels_of)
        else:
            raise ConfigError(f"zar checkpoint merge: --alpha is for two checkpoints, and {len(checkpoints)} are given")
        print(f"{output}: written; zar eval --checkpoint {output}")
        return 0

    return parse(merge, argv, "zar checkpoint merge")


@_command
def cost_command(argv: Sequence[str]) -> int:
    """Say what models hold, train and compute, and what ZAR's tuning adds."""

    def cost(
        models: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
        frames: int = 16,
        class_names: str = "kinetics400",
        length: int = 300,
        steps: int = 1,
    ) -> int:
        """Counts from shapes alone, without weights or videos; a GFLOP is 1e9 multiplications with addition.

        Args:
            models: Names of systems or of open_clip's models, or checkpoint files; by default CLIP and all systems.
            frames: Frames a view; models for views of another length have their own.
            class_names: The candidate classes: a list of conf/classes, "a,b,c", or a file with one a line.
            length: Frames of the video whose views are counted.
            steps: ZAR's steps.
        """
        from zar_ray.costs import cost_rows, print_costs
        from zar_ray.data.classes import class_list, known_class_lists
        from zar_ray.data.datasets import parse_class_names
        from zar_ray.models.systems import known_systems

        if min(frames, length, steps) < 1:
            raise ConfigError("zar cost: --frames, --length and --steps are 1 or more")
        known = class_names in known_class_lists()
        names = class_list(class_names) if known else parse_class_names(class_names)
        options = EvalConfig(
            views=ViewConfig(frames=frames, eval_frames=frames), zar=ZarConfig(steps=steps), method=("zar",)
        )
        chosen = models or (EvalConfig.model_fields["model"].default, *known_systems())
        rows = cost_rows(chosen, names, options, length)
        console = Console(highlight=False)
        print_costs(rows, console)
        console.print(
            "view, encoding and tuning are GFLOPs as papers count. view: an evaluation view as published. encoding:\n"
            f"of the images that ZAR takes of a video of {length} frames. tuning: of the text of {len(names)} classes,"
            f" --steps {steps}.",
            style="dim",
        )
        return 0

    return parse(cost, argv, "zar cost")


@_command
def doctor_command(argv: Sequence[str]) -> int:
    """Say what works on this machine and what does not."""

    def doctor(mlflow_uri: str | None = None) -> int:
        """Checks versions, CPUs, GPUs, decoders, and whether weights, MLflow and Ray can be reached.

        Args:
            mlflow_uri: A tracking store to try; by default a local one.
        """
        from zar_ray.doctor import diagnose

        table = Table("", "what", "found", box=None, pad_edge=False)
        checks = diagnose(mlflow_uri)
        marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}
        for check in checks:
            table.add_row(marks[check.status], check.name, check.detail)
        Console(highlight=False).print(table)
        return 1 if any(check.status == "missing" for check in checks) else 0

    return parse(doctor, argv, "zar doctor")


COMMANDS: dict[tuple[str, ...], Callable[[Sequence[str]], int]] = {
    ("eval",): eval_command,
    ("ablate",): ablate_command,
    ("predict",): predict_command,
    ("train",): train_command,
    ("data", "index"): data_index_command,
    ("data", "show"): data_show_command,
    ("data", "list"): data_list_command,
    ("data", "audit"): data_audit_command,
    ("data", "shots"): data_shots_command,
    ("report", "run"): report_run_command,
    ("report", "compare"): report_compare_command,
    ("report", "mlflow"): report_mlflow_command,
    ("report", "table"): report_table_command,
    ("checkpoint", "import"): checkpoint_import_command,
    ("checkpoint", "export"): checkpoint_export_command,
    ("checkpoint", "merge"): checkpoint_merge_command,
    ("checkpoint", "parity"): checkpoint_parity_command,
    ("cost",): cost_command,
    ("doctor",): doctor_command,
}


def _usage() -> str:
    width = max(len(" ".join(words)) for words in COMMANDS)
    lines = [f"  zar {' '.join(words):<{width}}  {run.__doc__}" for words, run in COMMANDS.items()]
    return "\n".join(
        ["usage: zar COMMAND [OPTIONS]", "", *lines, "", "`zar COMMAND --help` shows a command's options."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 when it failed, 2 for a mistake on the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"zar-ray {zar_ray.__version__}")
        return 0
    for length in (2, 1):
        run = COMMANDS.get(tuple(words[:length]))
        if run is not None:
            return run(words[length:])
    within = [" ".join(known) for known in COMMANDS if len(known) == 2 and known[0] == words[0]]
    known = within or [" ".join(known) for known in COMMANDS]
    said = " ".join(words[:2]) if within else words[0]
    return fail(ConfigError(f'no command "{said}"{suggestion(said, known)}'))


if __name__ == "__main__":
    sys.exit(main())
