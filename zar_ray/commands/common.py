"""What all commands do alike: mistakes as one line, interruptions without a traceback."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Sequence

import yaml

from zar_ray.commands.parsing import fail, parse
from zar_ray.errors import ZarError
from zar_ray.options.base import Options


def command(function: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """Shows a user's mistake as one line, and an interruption without a traceback."""

    def run(argv: Sequence[str]) -> int:
        try:
            return function(argv)
        except ZarError as error:
            return fail(error)
        except KeyboardInterrupt:
            print("zar: interrupted; what is finished is kept, and the same command continues it", file=sys.stderr)
            return 130
        except BrokenPipeError:
            if not _output_is_unread():
                raise
            return 128 + signal.SIGPIPE

    return run


def verb(prog: str) -> Callable[[Callable[..., int]], Callable[[Sequence[str]], int]]:
    """Makes a command of a function: the words after `prog` are its arguments, and its docstring is the help."""
    return lambda function: command(lambda argv: parse(function, argv, prog))


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
