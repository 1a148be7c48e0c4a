"""The command `zar train`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from zar_ray.commands.parsing import command, parse_run, show_options
from zar_ray.terminal import output_console
from zar_ray.training.options import TrainConfig


@command
def train_command(argv: Sequence[str]) -> int:
    """Train CLIP on the videos of a manifest, through Ray Train."""
    invocation = parse_run(TrainConfig, argv, "zar train", train_command.__doc__, results=True)
    if invocation.show_config:
        return show_options(invocation.options)
    from zar_ray.cluster import require_cluster

    if not invocation.dry_run:
        require_cluster(invocation.options.address)
    from zar_ray.reporting.study_tables import print_study
    from zar_ray.study import few_shot
    from zar_ray.training import job

    options, console, results = invocation.options, invocation.console(), output_console(soft_wrap=True)
    alone = options.protocol == "standard"
    if invocation.dry_run:
        results.print((job if alone else few_shot).describe(options))
        return 0
    if alone:
        trained = job.run_training(options, console)
        if invocation.as_json:
            print(json.dumps(asdict(trained), default=str))
        elif invocation.quiet:
            results.print(trained.checkpoint, markup=False)
        return 0
    record = few_shot.run_experiment(options, console)
    if invocation.as_json:
        print(json.dumps(record.to_json()))
    elif invocation.quiet:
        print_study(record, results)
    return 0
