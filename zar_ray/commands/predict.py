"""The command `zar predict`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from zar_ray.commands.common import command, show_options
from zar_ray.commands.parsing import parse_run
from zar_ray.commands.remote_prediction import asks_a_server, predict_on_server, require_question
from zar_ray.errors import ConfigError


@command
def predict_command(argv: Sequence[str]) -> int:
    """Rank given labels for given files, before and after adaptation."""
    if asks_a_server(argv):
        return predict_on_server(argv)
    from zar_ray.adaptation.methods import get_method
    from zar_ray.adaptation.options import PredictConfig

    invocation = parse_run(PredictConfig, argv, "zar predict")
    options = invocation.options
    if invocation.show_config:
        return show_options(options)
    require_question(options)
    if options.token is not None:
        raise ConfigError("zar predict: --token goes with --server")
    from zar_ray.adaptation.predict import predict
    from zar_ray.data.datasets import parse_class_names
    from zar_ray.models.loading import load_model
    from zar_ray.models.text import remark_on_words
    from zar_ray.reporting.rankings import print_rankings

    for method in options.method:
        get_method(method)
    labels = parse_class_names(options.labels or "")
    if invocation.dry_run:
        print(f"{len(options.videos)} videos, {len(labels)} labels, methods {', '.join(options.method)}")
        return 0
    console = Console(highlight=False)
    model = load_model(options)
    if (remark := remark_on_words(model, options)) is not None and not options.json_lines:
        console.print(f"{model.name}: {remark}", highlight=False)
    rankings = predict(model, labels, options)
    failed = print_rankings(rankings, console, random_weights=model.random_weights, json_lines=options.json_lines)
    return 1 if failed else 0
