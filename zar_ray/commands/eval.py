"""The commands `zar eval` and `zar ablate`: both run a study."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from zar_ray.commands.parsing import command, parse_run, show_options
from zar_ray.study.options import AblateConfig, EvalConfig


@command
def eval_command(argv: Sequence[str]) -> int:
    """Evaluate methods on a dataset, a manifest, a list or a folder of videos."""
    return _run_study(EvalConfig, argv, "zar eval")


@command
def ablate_command(argv: Sequence[str]) -> int:
    """Evaluate many settings in one pass over the videos, and compare them."""
    return _run_study(AblateConfig, argv, "zar ablate")


def _run_study(kind: type[EvalConfig], argv: Sequence[str], prog: str) -> int:
    invocation = parse_run(kind, argv, prog)
    options = invocation.options
    if invocation.show_config:
        return show_options(options)
    from zar_ray.api.studies import require_sweep, run_options

    console = Console(highlight=False, soft_wrap=True)
    if invocation.dry_run:
        from zar_ray.study.plan import describe, plan_study

        require_sweep(options, prog)
        console.print(describe(plan_study(options, console)))
        return 0
    run_options(options, console, prog)
    return 0
