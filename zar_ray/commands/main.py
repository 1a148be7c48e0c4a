"""The `zar` command.  Each command is a verb on one thing; jobs/*.py call the same functions.

A verb's module is imported when it is called, so that `zar --version` and a misspelt verb answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

import zar_ray
from zar_ray.commands.parsing import command, fail
from zar_ray.errors import ConfigError, suggestion

COMMANDS = {
    "eval": "Evaluate methods on a dataset, a manifest, a list or a folder of videos.",
    "ablate": "Evaluate many settings in one pass over the videos, and compare them.",
    "predict": "Rank given labels for given files, before and after adaptation.",
    "train": "Train CLIP on the videos of a manifest, through Ray Train.",
    "data index": "Find a benchmark's, a folder's or a list's videos, probe them and write the manifest.",
    "data show": "Show what a manifest holds.",
    "data list": "List the benchmarks, their protocols, and whether their manifests are there.",
    "data audit": "Look for mistakes in a manifest, or in lists and their labels.",
    "data shots": "Draw a few-shot training set from a benchmark's official training videos.",
    "report run": "Write a finished run's report as one HTML file.",
    "report compare": "Compare finished runs, video by video where they are of the same videos.",
    "report cite": "Describe a finished run's protocol in LaTeX, with the BibTeX entries to cite.",
    "report mlflow": "Send a finished run to MLflow.",
    "report threshold": "Print how sure a run's decisions must be for a share of them to be kept.",
    "report table": "Show a published table beside your own finished runs.",
    "features show": "Show what a folder of image features holds.",
    "features prune": "Delete image features that were not used for long, and put small files together.",
    "checkpoint import": "Make a zar-ray checkpoint of another system's file, and account for its tensors.",
    "checkpoint export": "Write a checkpoint for open_clip, or in OpenAI's layout.",
    "checkpoint merge": "Average the weights of checkpoints.",
    "checkpoint parity": "Hold this code against reference vectors of official implementations.",
    "models": "List what can be loaded by name, searchable.",
    "methods": "List the test-time methods with what each needs, updates and costs, searchable.",
    "plan": "Say what an evaluation would take on a cluster: hours, bytes, dollars, and what is short.",
    "cost": "Say what models hold, train and compute, and what ZAR's tuning adds.",
    "doctor": "Say what works on this machine and what does not.",
}
"""All commands with what they do, in a line."""

_MODULES = {"ablate": "eval"}  # of commands that share another one's; those of a thing are in a module of its name


def function_of(words: str) -> Callable[[Sequence[str]], int]:
    """The function of a command.

    Raises:
        ZarError: An installed package's method cannot be loaded.
    """
    thing = words.partition(" ")[0]
    module = importlib.import_module(f"zar_ray.commands.{_MODULES.get(thing, thing)}")
    return getattr(module, f"{words.replace(' ', '_')}_command")


def _usage(thing: str = "") -> str:
    """All commands; or those about a thing."""
    known = {words: about for words, about in COMMANDS.items() if words.startswith(f"{thing} ") or not thing}
    width = max(map(len, known))
    lines = [f"  zar {words:<{width}}  {about}" for words, about in known.items()]
    title = f"usage: zar {thing} VERB [OPTIONS]" if thing else "usage: zar COMMAND [OPTIONS]"
    one = f"zar {thing} VERB" if thing else "zar COMMAND"
    completion = [] if thing else ["`zar --completion bash` (zsh, fish) prints what completes them in a shell."]
    return "\n".join([title, "", *lines, "", f"`{one} --help` shows a command's options.", *completion])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 when it failed, 2 for a mistake on the command line."""
    return _main(list(sys.argv[1:] if argv is None else argv))


@command
def _main(words: Sequence[str]) -> int:
    words = list(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage(), flush=True)
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"zar-ray {zar_ray.__version__}", flush=True)
        return 0
    if words[0].partition("=")[0] == "--completion":
        from zar_ray.commands.completion import completion

        print(completion(words[0].partition("=")[2] or " ".join(words[1:]), COMMANDS, function_of), flush=True)
        return 0
    for length in (2, 1):
        if (said := " ".join(words[:length])) in COMMANDS:
            return function_of(said)(words[length:])
    within = [known for known in COMMANDS if known.startswith(f"{words[0]} ")]
    if within and (len(words) == 1 or words[1] in ("-h", "--help", "help")):
        print(_usage(words[0]), flush=True)
        return 0 if len(words) > 1 else 2
    said = " ".join(words[:2]) if within else words[0]
    return fail(ConfigError(f'no command "{said}"{suggestion(said, within or list(COMMANDS))}'))


if __name__ == "__main__":
    sys.exit(main())
