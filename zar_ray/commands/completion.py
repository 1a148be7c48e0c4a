"""`zar --completion SHELL`: a script by which a shell completes commands, options and their values."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Mapping, Sequence

import shtab

from zar_ray.adaptation.methods import METHODS
from zar_ray.commands.entries import Entry
from zar_ray.commands.help import Helped
from zar_ray.errors import ConfigError

_SHELLS = ("bash", "zsh", "fish")
# Kinds of values that name no file. Any other text may, and a shell completes what it knows nothing of by files.
_NO_FILES = {"N", "X", "BYTES", "SECONDS", "SHARE", "BENCHMARK", "NAME", "WORDS"}
# What shtab 1.13 writes for zsh, and what zsh wants: a script that is sourced is registered, like one under `eval`, and
# of several arguments each is completed.
_FOR_ZSH = {"$zsh_eval_context[-1] == eval ]]": "$zsh_eval_context[-1] == (eval|file) ]]", '"(*)::': '"*:'}


def completion(
    shell: str, commands: Mapping[str, str], function_of: Callable[[str], Callable[[Sequence[str]], int]]
) -> str:
    """The script of a shell.

    Args:
        shell: bash, zsh or fish.
        commands: All commands, of one word or two, with what they do.
        function_of: Gives a command's function.

    Raises:
        ConfigError: It is none of these shells.
    """
    if shell not in _SHELLS:
        raise ConfigError(f"--completion {shell}".rstrip() + f": say for which shell, {', '.join(_SHELLS)}")
    parser = argparse.ArgumentParser(prog="zar", add_help=False)
    parser.add_argument("--help", action="store_true", help="All commands.")
    parser.add_argument("--version", action="store_true", help="The installed version.")
    parser.add_argument("--completion", choices=_SHELLS, help="Print what completes commands in a shell.")
    things = parser.add_subparsers()
    verbs: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for words, about in commands.items():
        thing, _, verb = words.partition(" ")
        if verb and thing not in verbs:
            about_thing = ", ".join(known.split()[1] for known in commands if known.startswith(f"{thing} "))
            verbs[thing] = things.add_parser(thing, add_help=False, help=about_thing).add_subparsers()
        own = (verbs[thing] if verb else things).add_parser(verb or thing, add_help=False, help=about)
        for entry in _entries(function_of(words)):
            _add(own, entry)
    script = shtab.complete(parser, shell=shell)
    for written, wanted in _FOR_ZSH.items() if shell == "zsh" else ():
        script = script.replace(written, wanted)
    return script


def _entries(function: Callable[[Sequence[str]], int]) -> Sequence[Entry]:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            function(["--help"])
        except Helped as told:
            return told.entries
    raise AssertionError("a command without help")


def _add(parser: argparse.ArgumentParser, entry: Entry) -> None:
    about = entry.about.replace("%", "%%")
    if entry.positional:
        action = parser.add_argument(entry.name, nargs="*" if entry.several else "?", help=about)
    elif not entry.value:
        action = parser.add_argument(entry.written, action="store_true", help=about)
    else:
        nargs = "*" if entry.several else None
        choices = entry.choices if entry.name != "method" else [*METHODS]
        action = parser.add_argument(f"--{entry.name}", nargs=nargs, choices=choices or None, help=about)
    if entry.value and not action.choices and entry.value.split()[0] not in _NO_FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
