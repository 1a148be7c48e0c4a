"""The `zar` command.  Each command is a verb on one thing; jobs/*.py call the same functions.

A verb's module is imported when it is called, so that `zar --version` and a misspelt verb answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import zar_ray
from zar_ray.commands.parsing import fail
from zar_ray.errors import ConfigError, ZarError, suggestion

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
    "plan": "Say what an evaluation would take on a cluster: hours, bytes, dollars, and what is short.",
    "cost": "Say what models hold, train and compute, and what ZAR's tuning adds.",
    "doctor": "Say what works on this machine and what does not.",
}
"""All commands with what they do, in a line."""

_MODULES = {"ablate": "eval"}  # of commands that share another one's; those of a thing are in a module of its name


def _run(words: str, argv: Sequence[str]) -> int:
    """Runs a command with the words after its name; returns its exit status."""
    thing = words.partition(" ")[0]
    try:
        module = importlib.import_module(f"zar_ray.commands.{_MODULES.get(thing, thing)}")
    except ZarError as error:
        # An installed package's method that cannot be loaded.
        return fail(error)
    return getattr(module, f"{words.replace(' ', '_')}_command")(argv)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  zar {words:<{width}}  {about}" for words, about in COMMANDS.items()]
    return "\n".join(
        ["usage: zar COMMAND [OPTIONS]", "", *lines, "", "`zar COMMAND --help` shows a command's options."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 when it failed, 2 for a mistake on the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"zar-ray {zar_ray.__version__}")
        return 0
    for length in (2, 1):
        if (said := " ".join(words[:length])) in COMMANDS:
            return _run(said, words[length:])
    within = [known for known in COMMANDS if known.startswith(f"{words[0]} ")]
    said = " ".join(words[:2]) if within else words[0]
    return fail(ConfigError(f'no command "{said}"{suggestion(said, within or list(COMMANDS))}'))


if __name__ == "__main__":
    sys.exit(main())
