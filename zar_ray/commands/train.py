"""The command `zar train`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from zar_ray.commands.parsing import command, parse_run, show_options
from zar_ray.training.options import TrainConfig


@command
def train_command(argv: Sequence[str]) -> int:
    """Train CLIP on the videos of a manifest, through Ray Train."""
    invocation = parse_run(TrainConfig, argv, "zar train")
    if invocation.show_config:
        return show_options(invocation.options)
    from zar_ray.cluster import require_cluster

    if not invocation.dry_run:
        require_cluster(invocation.options.address)
    from zar_ray.study import few_shot
    from zar_ray.training import job

    console = Console(highlight=False, soft_wrap=True)
    alone = invocation.options.protocol == "standard"
    if invocation.dry_run:
        console.print((job if alone else few_shot).describe(invocation.options))
        return 0
    (job.run_training if alone else few_shot.run_experiment)(invocation.options, console)
    return 0
