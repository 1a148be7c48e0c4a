"""What all commands do alike: options from the command line, laid over configuration files, and mistakes as one line.

`tyro` makes the options and their help from the pydantic models of the options, dotted for nested ones
(`--views.frames 8`).  What it would print as a box over several lines is put on one here.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import inspect
import io
import itertools
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro
import yaml
from rich.console import Console

from zar_ray.commands.entries import Entry, entries_of
from zar_ray.commands.help import RESULTS, RUNS, about_of, print_help
from zar_ray.data.layering import WEIGHTS, is_evaluation, layered
from zar_ray.errors import ConfigError, DeviceLostError, ZarError
from zar_ray.interruption import CONTINUES, Terminated, sigterm_interrupts
from zar_ray.options.base import Options
from zar_ray.options.layers import read_yaml, validate
from zar_ray.terminal import output_console, take_every_letter

_SAYING = ("quiet", "json")
_T = TypeVar("_T")
_O = TypeVar("_O", bound=Options)

_BOX = re.compile(r"[╭╮╰╯│─]+")
_RULE = re.compile(r"[│ ] ?(───|---)")
_NOISE = re.compile(
    r"Error parsing \S+: \d+ validation errors? for \S+ |\[type=[^\]]*\]|For further information visit \S+"
    r"|typing\.Annotated\[.*\]: "
    r"|^Invalid choice (?=invalid)|no type matching .*? could be instantiated from (?=\[)|Got errors: .* - "
)


def parse(
    kind: Callable[..., _T] | type[_T],
    argv: Sequence[str],
    prog: str,
    default: Any = None,
    description: str | None = None,
    *,
    run: tuple[Entry, ...] = (),
) -> _T:
    """Parses a command line into a model, a dataclass or a function's result.

    Args:
        kind: What to build, or a function to call with what the options say.
        argv: The words after the command.
        prog: The command, as the help shows it.
        default: An instance whose values stand where the command line says nothing.
        description: The help's first lines; by default the docstring of `kind`.
        run: What a run's line may hold besides its options.

    Raises:
        ConfigError: An option is unknown or a value does not fit.
        SystemExit: With status 0, after `--help` or `--help-all`.
    """
    about = description or about_of(kind)
    print_help(kind, prog, about, argv, run=run)
    given = {} if default is None else {"default": default}
    said = io.StringIO()
    command = not isinstance(kind, type)
    try:
        with contextlib.redirect_stderr(said):
            built, unknown = tyro.cli(
                _deferred(kind) if command else kind,
                args=list(argv),
                prog=prog,
                description=description,
                return_unknown_args=True,
                **given,
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ConfigError(f"{prog}: {_unboxed(said.getvalue())}") from None
    if unknown:
        word = unknown[0]
        what = "option" if word.startswith("-") else "word"
        way_out = _nearest(word, kind)
        if word.startswith("-") and not word.startswith("--") and any(one.positional for one in entries_of(kind)):
            way_out = f"; what begins with a dash and is no option stands last, behind --: {prog} ... -- {word}"
        raise ConfigError(f"{prog}: unknown {what} {word}{way_out}")
    return built() if command else built


def _deferred(function: Callable[..., _T]) -> Callable[..., Callable[[], _T]]:
    """The same function to tyro, which calls what it parses: ours runs when the whole line is known to be right."""

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], _T]:
        return functools.partial(function, *args, **kwargs)

    return bind


def _unboxed(text: str) -> str:
    """What tyro says in a box, on one line, without its title and the help it repeats."""
    _, *lines = text.splitlines()
    if lines and _RULE.match(lines[0]):  # below the title where the output is not UTF-8, which has no boxes
        del lines[0]
    content = itertools.takewhile(lambda line: not _RULE.match(line), lines)
    message = " ".join(_BOX.sub(" ", line).strip() for line in content)
    message = _NOISE.sub("", " ".join(message.split()))
    return f"{message.strip()} (see --help)"


def _nearest(word: str, kind: Callable[..., Any] | type[Any]) -> str:
    name, entries = word.split("=")[0].lstrip("-"), entries_of(kind)
    if any(one.positional and one.name == name for one in entries):
        return "; it is given without its name"
    known = [*(one.name for one in entries if not one.positional), "help"]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean --{near[0]}?" if near else "; --help lists the known ones"


@dataclass(frozen=True)
class Invocation(Generic[_O]):
    """A parsed command line of a run.

    Attributes:
        options: The resolved options.
        show_config: Print them and do nothing else.
        dry_run: Check all that can be checked without running, and say what would run.
        quiet: Print the results alone.
        as_json: Print the results as JSON.
    """

    options: _O
    show_config: bool
    dry_run: bool
    quiet: bool = False
    as_json: bool = False

    def console(self) -> Console:
        """Where to say how it goes: nowhere when only results are asked for, beside them when they are JSON."""
        return output_console(soft_wrap=True, quiet=self.quiet, stderr=self.as_json)


def parse_run(
    kind: type[_O], argv: Sequence[str], prog: str, about_command: str | None = None, *, results: bool = False
) -> Invocation[_O]:
    """Options from, lowest first: defaults, the benchmark's file, `--config FILE`, the command line.

    Args:
        kind: The options' class; a `dataset` among them may name a benchmark that brings options of its own.
        argv: The words after the command.
        prog: The command, as the help shows it.
        about_command: What it does, for the help; by default what the docstring of `kind` says.
        results: Whether it ends with results, that may be asked for alone or as JSON.

    Raises:
        ConfigError: A file or an option is wrong.
    """
    argv = _spelt_out(argv)
    if is_evaluation(kind):
        argv = _several_models(argv)
    about, rest = glance(argv, prog, "config", flags=("show-config", "dry-run", *_SAYING * results))
    said, _ = glance(rest, prog, "dataset", "protocol", *WEIGHTS)
    from_file = read_yaml(Path(about.config)) if about.config else {}
    protocol = said.protocol or from_file.get("protocol", "standard")
    dataset = said.dataset or from_file.get("dataset")
    given = {name: getattr(said, name) for name in WEIGHTS if getattr(said, name) is not None}
    values = layered(kind, from_file, given, dataset=dataset, protocol=protocol)
    values = {name: value for name, value in values.items() if name not in given}
    default = validate(kind, values, str(about.config or prog))
    options = parse(kind, rest, prog, default, about_command, run=RESULTS if results else RUNS)
    saying = (about.quiet, about.json) if results else ()
    return Invocation(options, about.show_config, about.dry_run, *saying)


def glance(
    argv: Sequence[str], prog: str, *options: str, flags: Sequence[str] = ()
) -> tuple[argparse.Namespace, list[str]]:
    """What a command line says of some options, before all of them are known; and the words without them.

    Raises:
        ConfigError: One of them has no value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in options:
        parser.add_argument(f"--{name}")
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true")
    try:
        return parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{prog}: {error}") from None


def _spelt_out(argv: Sequence[str]) -> list[str]:
    """The words with ``--views 4x3``, as multi-view testing is written in papers, in full."""
    words = list(argv)
    for place, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name == "--views" and (sign or place + 1 < len(words)):
            words[place] = f"--views.eval-views{sign}{value}"
    return words


def _several_models(argv: Sequence[str]) -> list[str]:
    """The words with ``--model A B``, a run each, as ``--models A B``."""
    words = list(argv)
    for place, word in enumerate(words):
        values = itertools.takewhile(lambda value: not value.startswith("--"), words[place + 1 :])
        if word == "--model" and len([*values]) > 1:
            words[place] = "--models"
    return words


def command(function: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """Shows a user's mistake as one line, an interruption without a traceback, and all else on any output."""

    @functools.wraps(function)
    def run(argv: Sequence[str]) -> int:
        take_every_letter()
        try:
            with sigterm_interrupts():
                return function(argv)
        except (ZarError, DeviceLostError) as error:
            return fail(error)
        except KeyboardInterrupt as told:
            print(f"zar: interrupted; {CONTINUES}", file=sys.stderr)
            return 128 + (signal.SIGTERM if isinstance(told, Terminated) else signal.SIGINT)
        except BrokenPipeError:
            if not _output_is_unread():
                raise
            return 128 + signal.SIGPIPE

    return run


def verb(
    prog: str, kind: type[Options] | None = None
) -> Callable[[Callable[..., int]], Callable[[Sequence[str]], int]]:
    """Makes a command of a function: the words after `prog` are its arguments, and its docstring is the help.

    Of a function that takes options as its one argument, `kind` is their class.
    """
    if kind is None:
        return lambda function: command(lambda argv: parse(function, argv, prog))
    return lambda function: command(
        lambda argv: function(parse(kind, argv, prog, description=inspect.getdoc(function)))
    )


def _output_is_unread() -> bool:
    """Whether nobody reads our output any more, as under `| head`; then nothing more is written to it."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def show_options(options: Options) -> int:
    """Prints resolved options as YAML, as `--config` reads them; returns the exit status."""
    print(yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False), end="")
    return 0


def fail(error: Exception) -> int:
    """Shows a user's mistake as one line; returns the exit status."""
    print(f"zar: {error}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1
