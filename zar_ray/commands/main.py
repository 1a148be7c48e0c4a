"""The `zar` command.  Each command is a verb on one thing; jobs/*.py call the same functions.

A verb's module is imported when it is called, so that `zar --version` and a misspelt verb answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import zar_ray
from zar_ray.commands.parsing import fail
from zar_ray.errors import ConfigError, ZarError, suggestion


@dataclass(frozen=True)
class Verb:
    """Where a command is, and what it does in a line."""

    module: str
    function: str
    about: str

    def __call__(self, argv: Sequence[str]) -> int:
        """Runs it with the words after its name; returns its exit status."""
        try:
            module = importlib.import_module(f"zar_ray.commands.{self.module}")
        except ZarError as error:
            # An installed package's method that cannot be loaded.
            return fail(error)
        return getattr(module, self.function)(argv)


COMMANDS = {
    "eval": Verb("eval", "eval_command", "Evaluate methods on a dataset, a manifest, a list or a folder of videos."),
    "ablate": Verb("eval", "ablate_command", "Evaluate many settings in one pass over the videos, and compare them."),
    "predict": Verb("predict", "predict_command", "Rank given labels for given files, before and after adaptation."),
    "train": Verb("train", "train_command", "Train CLIP on the videos of a manifest, through Ray Train."),
    "data index": Verb(
        "data",
        "data_index_command",
        "Find a benchmark's, a folder's or a list's videos, probe them and write the manifest.",
    ),
    "data show": Verb("data", "data_show_command", "Show what a manifest holds."),
    "data list": Verb(
        "data", "data_list_command", "List the benchmarks, their protocols, and whether their manifests are there."
    ),
    "data audit": Verb("data", "data_audit_command", "Look for mistakes in a manifest, or in lists and their labels."),
    "data shots": Verb(
        "data", "data_shots_command", "Draw a few-shot training set from a benchmark's official training videos."
    ),
    "report run": Verb("report", "report_run_command", "Write a finished run's report as one HTML file."),
    "report compare": Verb(
        "report", "report_compare_command", "Compare finished runs, video by video where they are of the same videos."
    ),
    "report mlflow": Verb("report", "report_mlflow_command", "Send a finished run to MLflow."),
    "report table": Verb("report", "report_table_command", "Show a published table beside your own finished runs."),
    "checkpoint import": Verb(
        "checkpoint",
        "checkpoint_import_command",
        "Make a zar-ray checkpoint of another system's file, and account for its tensors.",
    ),
    "checkpoint export": Verb(
        "checkpoint", "checkpoint_export_command", "Write a checkpoint for open_clip, or in OpenAI's layout."
    ),
    "checkpoint merge": Verb("checkpoint", "checkpoint_merge_command", "Average the weights of checkpoints."),
    "checkpoint parity": Verb(
        "checkpoint",
        "checkpoint_parity_command",
        "Hold this code against reference vectors of official implementations.",
    ),
    "cost": Verb("cost", "cost_command", "Say what models hold, train and compute, and what ZAR's tuning adds."),
    "doctor": Verb("doctor", "doctor_command", "Say what works on this machine and what does not."),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  zar {words:<{width}}  {verb.about}" for words, verb in COMMANDS.items()]
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
        verb = COMMANDS.get(" ".join(words[:length]))
        if verb is not None:
            return verb(words[length:])
    within = [known for known in COMMANDS if known.startswith(f"{words[0]} ")]
    said = " ".join(words[:2]) if within else words[0]
    return fail(ConfigError(f'no command "{said}"{suggestion(said, within or list(COMMANDS))}'))


if __name__ == "__main__":
    sys.exit(main())
