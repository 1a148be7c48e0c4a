"""The command `zar ablate`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from zar_ray.commands.common import command, show_options
from zar_ray.commands.parsing import parse_run
from zar_ray.commands.report import write_run_report
from zar_ray.evaluation.options import AblateConfig


@command
def ablate_command(argv: Sequence[str]) -> int:
    """Evaluate many settings in one pass over the videos, and compare them."""
    invocation = parse_run(AblateConfig, argv, "zar ablate")
    if invocation.show_config:
        return show_options(invocation.options)
    from zar_ray.study.ablation import describe, prepare, run_ablation
    from zar_ray.study.demo import ensure_demo

    console = Console(highlight=False, soft_wrap=True)
    if not invocation.dry_run:
        ensure_demo(invocation.options, console)
        sweep = run_ablation(invocation.options, console)
        if invocation.options.report:
            folder = sweep.settings[0].summary.run_file.rpartition("/")[0]
            write_run_report(folder, mlflow_uri=invocation.options.mlflow_uri)
        return 0
    console.print(describe(prepare(invocation.options, console)))
    return 0
