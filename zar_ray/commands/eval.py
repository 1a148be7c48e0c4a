"""The command `zar eval`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from zar_ray.commands.common import command, show_options
from zar_ray.commands.parsing import parse_run
from zar_ray.commands.report import write_run_report
from zar_ray.evaluation.options import EvalConfig


@command
def eval_command(argv: Sequence[str]) -> int:
    """Evaluate methods on a dataset, a manifest, a list or a folder of videos."""
    invocation = parse_run(EvalConfig, argv, "zar eval")
    if invocation.show_config:
        return show_options(invocation.options)
    from zar_ray.study.alphas import describe_alphas, run_alphas
    from zar_ray.study.demo import ensure_demo
    from zar_ray.study.job import describe, prepare
    from zar_ray.study.model_table import describe_models, run_models
    from zar_ray.study.seeds import run_seeds

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
            write_run_report(run.run_file.rpartition("/")[0], mlflow_uri=options.mlflow_uri)
        return 0
    console.print(describe(*prepare(options, console)))
    if sweep:
        console.print(describe_alphas(options))
    return 0
