"""The command `zar predict`; with `--server` a service does the work, without PyTorch and Ray here."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import model_validator
from rich.console import Console

from zar_ray.adaptation.rankings import Ranking
from zar_ray.adaptation.shared_options import PredictOptions
from zar_ray.client import Client, ServiceError
from zar_ray.commands.parsing import command, glance, parse_run, show_options
from zar_ray.commands.words import videos_last
from zar_ray.data.datasets import candidate_labels
from zar_ray.data.finding import find_videos
from zar_ray.errors import ConfigError, suggestion
from zar_ray.options.base import operational, require_distinct
from zar_ray.options.layers import leaves, read_yaml
from zar_ray.reporting.ranking_files import rankings_csv
from zar_ray.reporting.rankings import print_rankings
from zar_ray.serving.schema import ServedMethod
from zar_ray.terminal import output_console
from zar_ray.untrusted import parse_json

_P = TypeVar("_P", bound=PredictOptions)

# What a request to a service can say, besides methods' own options; all else that decides about numbers is its own.
ASKED = {"videos", "listed", "labels", "method", "template", "seed", "seeds", "top_k"}
ASKED |= {"json_lines", "csv", "server", "at_once", "token"}
ASKED |= {"reject_below", "reject_score"}
# What a service says of a file, which costs that file alone.
_FILE_PROBLEMS = {"unusable-video", "video-too-large", "body-too-large", "internal-error", "timeout"}


class RemoteOptions(PredictOptions):
    """Options of `zar predict --server`, with those of methods as they were given: the service knows them."""

    own: Annotated[dict[str, dict[str, Any]], tyro.conf.Suppress] = operational({}, "Methods' own options by group.")

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Takes groups that are not known here, as a configuration file has them, for methods'."""
        groups = {name for name, value in values.items() if isinstance(value, dict) and name not in cls.model_fields}
        rest = {name: value for name, value in values.items() if name not in groups}
        return {**rest, "own": {**values.get("own", {}), **{name: values[name] for name in groups}}} if groups else rest


@command
def predict_command(argv: Sequence[str]) -> int:
    """Rank given labels for given files, before and after adaptation."""
    said, _ = glance(argv, "zar predict", "server", "config")
    if said.server is not None or (said.config is not None and read_yaml(Path(said.config)).get("server") is not None):
        return _predict_on_server(argv)
    from zar_ray.adaptation.methods import get_method
    from zar_ray.adaptation.options import PredictConfig

    words = videos_last(argv, PredictConfig)
    invocation = parse_run(PredictConfig, words, "zar predict", predict_command.__doc__)
    options = invocation.options
    if invocation.show_config:
        return show_options(options)
    _require_question(options)
    if options.token is not None:
        raise ConfigError("zar predict: --token goes with --server")
    from zar_ray.adaptation.predict import predict
    from zar_ray.models.loading import load_model
    from zar_ray.models.text import remark_on_words
    from zar_ray.video.sandbox import DecoderProcess

    for method in options.method:
        try:
            get_method(method)
        except ConfigError as error:
            if not Path(method).exists():
                raise
            raise ConfigError(f"zar predict: {error}; videos stand before the options, or last, behind --") from error
    options, labels = _looked_up(options)
    if invocation.dry_run:
        print(f"{len(options.videos)} videos, {len(labels)} labels, methods {', '.join(options.method)}")
        return 0
    console = output_console()
    with (
        _table_file(options, labels) as write,
        # It starts while the model is loaded.
        DecoderProcess(resizer=options.resize, decoder=options.decoder) as decoder,
    ):
        model = load_model(options)
        if (remark := remark_on_words(model, options)) is not None and not options.json_lines:
            console.print(f"{model.name}: {remark}", highlight=False)
        rankings = predict(model, labels, options, decoder)
        failed = _printed(rankings, console, options, write, random_weights=model.random_weights)
    return 1 if failed else 0


def _looked_up(options: _P) -> tuple[_P, tuple[str, ...]]:
    """The options with each file that they name, and the labels; what is wrong with them costs no model's loading."""
    labels = candidate_labels(options.labels or "")
    found = find_videos(options.videos, options.listed)
    if found.skipped is not None:
        print(f"skipped: {found.skipped}", file=sys.stderr)
    return options.model_copy(update={"videos": found.videos, "listed": None}), labels


def _table_file(
    options: PredictOptions, labels: tuple[str, ...]
) -> AbstractContextManager[Callable[[Ranking], None] | None]:
    return nullcontext() if options.csv is None else rankings_csv(options.csv, min(options.top_k, len(labels)))


def _printed(
    rankings: Iterable[Ranking],
    console: Console,
    options: PredictOptions,
    write: Callable[[Ranking], None] | None,
    *,
    random_weights: bool,
) -> int:
    said = {"random_weights": random_weights, "json_lines": options.json_lines}
    return print_rankings(rankings, console, options.videos, options.method, write=write, **said)


def _require_question(options: PredictOptions) -> None:
    """Refuses a command that names no videos or no labels."""
    if not options.videos and options.listed is None:
        raise ConfigError("zar predict: give the video files or folders to look at, before the options or behind --")
    if options.labels is None:
        raise ConfigError('zar predict: give the candidate classes with --labels "a,b,c" or a file with one a line')
    require_distinct("zar predict: --seeds", options.seeds, "a seed")


def _split_own(argv: Sequence[str]) -> tuple[list[str], dict[str, dict[str, list[str]]]]:
    """A command line without methods' own options, and these: the words after each, by group and name."""
    rest: list[str] = []
    own: dict[str, dict[str, list[str]]] = {}
    into = rest
    for word in argv:
        group, dot, name = word.partition("=")[0].removeprefix("--").partition(".")
        if not word.startswith("--"):
            into.append(word)
        elif not dot or group == "views":
            rest.append(word)
            into = rest
        else:
            _, sign, value = word.partition("=")
            into = own.setdefault(group, {})[name.replace("-", "_")] = [value] if sign else []
    return rest, own


def _require_asked(options: RemoteOptions, own: Collection[str], argv: Sequence[str]) -> None:
    """Refuses options that a service decides, be they on the command line or in a file; `own` are methods' groups."""
    default, chosen = leaves(RemoteOptions().model_dump()), leaves(options.model_dump(exclude={"own"}))
    # An option's own default may not be the service's.
    words = {word.partition("=")[0][2:].replace("-", "_").removeprefix("no_") for word in argv if word[:2] == "--"}
    if "views" in words:
        words.add("views.eval_views")
    idle = [name for name in chosen if name not in ASKED and (chosen[name] != default[name] or name in words)]
    if idle:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise ConfigError(f"zar predict: the service at --server decides {names}; leave out what it decides")
    for group in own:
        if group not in options.method:
            raise ConfigError(f"zar predict: --{group}: no such method is asked for{suggestion(group, options.method)}")


def _predict_on_server(argv: Sequence[str]) -> int:
    """Has a service rank the labels for each file, and prints the rankings as `zar predict` does."""
    rest, own = _split_own(videos_last(argv, RemoteOptions))
    invocation = parse_run(RemoteOptions, rest, "zar predict", predict_command.__doc__)
    options = invocation.options
    if invocation.show_config:
        return show_options(options)
    _require_question(options)
    _require_asked(options, own, rest)
    options, labels = _looked_up(options)
    with Client(str(options.server), options.token or os.environ.get("ZAR_TOKEN") or None) as client:
        if invocation.dry_run:
            print(
                f"{len(options.videos)} videos, {len(labels)} labels, methods {', '.join(options.method)}, {client.url}"
            )
            return 0
        # Before any file is sent: it also tells whether the service is there and lets us in.
        random_weights = any(model.random_weights for model in client.models().models)
        of_methods = {
            method.name: {**options.own.get(method.name, {}), **_typed(own.get(method.name, {}), method)}
            for method in client.methods().methods
        }
        rankings = _served(client, labels, options, of_methods)
        with _table_file(options, labels) as write, closing(rankings):
            failed = _printed(rankings, output_console(), options, write, random_weights=random_weights)
    return 1 if failed else 0


def _typed(own: Mapping[str, list[str]], method: ServedMethod) -> dict[str, Any]:
    """Words as the values that a method's schema wants; what does not fit stays as it is, and the service says so."""
    known = (method.options or {}).get("properties", {})
    values: dict[str, Any] = {}
    for name, words in own.items():
        if not words:
            values[name if name in known else name.removeprefix("no_")] = name in known
        elif known.get(name, {}).get("type") == "array":
            values[name] = [_scalar(word) for word in words]
        else:
            values[name] = words[0] if known.get(name, {}).get("type") == "string" else _scalar(" ".join(words))
    return values


def _scalar(word: str) -> Any:
    try:
        return parse_json(word.lower() if word in ("True", "False") else word)
    except ValueError:
        return word


def _served(
    client: Client, labels: tuple[str, ...], options: PredictOptions, of_methods: Mapping[str, Mapping[str, Any]]
) -> Generator[Ranking]:
    """One ranking a file and method, in the order given, as `zar_ray.adaptation.predict.predict` yields them."""

    def ask(question: tuple[str, str]) -> Ranking:
        video, method = question
        try:
            answer = client.classify(
                video,
                labels,
                template=options.template,
                method=method,
                top_k=options.top_k,
                options=of_methods.get(method) or None,
                seed=None if options.seeds else options.seed,
                seeds=options.seeds or None,
                reject_below=options.reject_below,
                reject_score=None if options.reject_below is None else options.reject_score,
            )
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "no such file" if missing else f"cannot be read: {error.strerror or error}"
            return Ranking(video, method, (), (), error=reason)
        except ServiceError as error:
            if error.code not in _FILE_PROBLEMS:
                raise
            return Ranking(video, method, (), (), error=error.detail)
        seeds = answer.seeds or (answer.seed,)
        said = {"certainty": answer.certainty, "reject": answer.reject}
        return Ranking(video, method, answer.before, answer.after, seeds, answer.video.warning, **said)

    yield from _asked(ask, [(video, method) for video in options.videos for method in options.method], options.at_once)


def _asked(
    ask: Callable[[tuple[str, str]], Ranking], questions: Sequence[tuple[str, str]], at_once: int
) -> Generator[Ranking]:
    """The answers in order, of several questions at a time.

    A service that has no room for so many, though the client came back as often as it was told to, is asked the same
    by itself, and then half as many.
    """
    waiting, flying = deque(questions), deque[tuple[tuple[str, str], Future[Ranking]]]()
    pool = ThreadPoolExecutor(at_once)
    try:
        while waiting or flying:
            while waiting and len(flying) < at_once:
                flying.append((waiting[0], pool.submit(ask, waiting.popleft())))
            question, answer = flying.popleft()
            try:
                ranking = answer.result()
            except ServiceError as error:
                if error.code != "overloaded":
                    raise
                at_once = max(1, at_once // 2)
                wait([other for _, other in flying])
                ranking = ask(question)
            yield ranking
    finally:
        # What is on its way ends with the client; nothing further is sent.
        pool.shutdown(wait=False, cancel_futures=True)
