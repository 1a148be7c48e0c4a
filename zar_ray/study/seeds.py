"""One evaluation with several seeds of the view plans: a run each, and the mean over them."""

from __future__ import annotations

from rich.console import Console

from zar_ray.errors import ConfigError
from zar_ray.evaluation.options import EvalConfig
from zar_ray.reporting.seed_means import print_seeds
from zar_ray.results.record import RunSummary
from zar_ray.study.job import run_evaluation


def run_seeds(options: EvalConfig, console: Console) -> tuple[RunSummary, ...]:
    """Runs or continues an evaluation for each of `options.seeds`, or once with `options.seed` where there are none.

    Each run has a folder of its own, named after its seed, and can be continued and repeated alone.

    Raises:
        ConfigError: A seed is given twice.
        RunError: More videos of a run failed than `max_failed` allows; its results are written, later seeds not begun.
        ZarError: A run cannot start or was stopped.
    """
    if len(set(options.seeds)) < len(options.seeds):
        raise ConfigError(f"--seeds {' '.join(map(str, options.seeds))}: names a seed twice")
    runs = [options]
    if options.seeds:
        runs = [
            options.model_copy(
                update={"seed": seed, "seeds": (), "name": f"{options.name}_seed{seed}" if options.name else None}
            )
            for seed in options.seeds
        ]
    summaries = tuple(run_evaluation(one, console) for one in runs)
    if len(summaries) > 1:
        print_seeds(summaries, console)
    return summaries
