"""The commands `zar eval` and `zar ablate`: both run a study."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence

from zar_ray.commands.parsing import command, parse_run, show_options
from zar_ray.commands.report import write_run_report
from zar_ray.errors import ConfigError
from zar_ray.storage import folder_of
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
    from zar_ray.cluster import require_cluster

    if not invocation.dry_run:
        require_cluster(options.address)
    from zar_ray.reporting.study_tables import print_study
    from zar_ray.study.demo import ensure_demo
    from zar_ray.study.plan import describe, plan_study
    from zar_ray.study.run import run_study
    from zar_ray.study.sweeps import known_sweeps

    if kind is AblateConfig and not options.sweep:
        raise ConfigError(f"{prog}: say what to vary with --sweep NAME or FILE.yaml ({', '.join(known_sweeps())})")
    console = invocation.console()
    if invocation.dry_run:
        output_console(soft_wrap=True).print(describe(plan_study(options, console)))
        return 0
    ensure_demo(options, console)
    record = run_study(options, console)
    if options.report:
        with contextlib.redirect_stdout(sys.stderr if invocation.as_json else sys.stdout):
            write_run_report(folder_of(record.whole.run_file), mlflow_uri=options.mlflow_uri)
    if invocation.as_json:
        print(json.dumps(record.to_json()))
    elif invocation.quiet:
        print_study(record, output_console(soft_wrap=True))
    return 0
