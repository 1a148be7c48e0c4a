"""The commands `zar eval` and `zar ablate`: both run a study."""

from __future__ import annotations

import json
from collections.abc import Sequence

from zar_ray.commands.parsing import command, parse_run, show_options
from zar_ray.study.options import AblateConfig, EvalConfig
from zar_ray.terminal import output_console


@command
def eval_command(argv: Sequence[str]) -> int:
    """Evaluate methods on a dataset, a manifest, a list or a folder of videos."""
    return _run_study(EvalConfig, argv, "zar eval", eval_command.__doc__)


@command
def ablate_command(argv: Sequence[str]) -> int:
    """Evaluate many settings in one pass over the videos, and compare them."""
    return _run_study(AblateConfig, argv, "zar ablate", ablate_command.__doc__)


def _run_study(kind: type[EvalConfig], argv: Sequence[str], prog: str, about: str | None) -> int:
    invocation = parse_run(kind, argv, prog, about, results=True)
    options = invocation.options
    if invocation.show_config:
        return show_options(options)
    from zar_ray.api.studies import require_sweep, run_options
    from zar_ray.reporting.study_tables import print_study

    console, results = invocation.console(), output_console(soft_wrap=True)
    if invocation.dry_run:
        from zar_ray.commands.plan import before_run
        from zar_ray.study.plan import describe, plan_study

        require_sweep(options, prog)
        study = plan_study(options, console)
        results.print(describe(study))
        for line in before_run(study, console):
            results.print(line, markup=False)
        return 0
    record = run_options(options, console, prog)
    if invocation.as_json:
        print(json.dumps(record.to_json()))
    elif invocation.quiet:
        print_study(record, results)
    return 0
