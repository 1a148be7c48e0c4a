"""What `zar COMMAND --help` prints: the common options with examples; all of them by topic under `--help-all`."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from zar_ray.commands.entries import Entry, entries_of

MOST_COLUMNS = 100

COMMON: dict[str, tuple[str, ...]] = {
    "zar eval": (
        *("dataset", "protocol", "split", "class-names", "limit"),
        *("model", "pretrained", "checkpoint", "precision", "device"),
        *("method", "views.frames", "views.eval-frames", "template", "seeds", "sweep"),
        *("output", "name", "features", "resume", "retry-failed", "overwrite", "report"),
        *("num-workers", "batch-size", "address"),
    ),
    "zar train": (
        *("dataset", "split", "protocol", "shots", "seeds", "validation"),
        *("model", "pretrained", "checkpoint", "architecture", "trains", "precision", "device"),
        *("frames", "batch-size", "micro-batch", "epochs", "steps", "lr", "seed"),
        *("output", "storage", "name", "overwrite", "num-workers", "decode-workers", "address"),
    ),
    "zar predict": (
        *("videos", "list", "labels", "method", "template", "seeds", "top-k", "csv", "json-lines"),
        *("model", "pretrained", "checkpoint", "precision", "device"),
        *("views.frames", "views.eval-frames", "server", "at-once", "token"),
    ),
}
COMMON |= {"zar ablate": COMMON["zar eval"]}
"""Of commands with too many options for a screen: those that most people ask for."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "zar eval": (
        "zar eval --dataset k600 --checkpoint vifi-clip.pth --method zero_shot zar",
        "zar eval --dataset videos/ --model ViT-B-16-quickgelu ViT-L-14-quickgelu --seeds 0 1 2",
        "zar eval --config mine.yaml --dry-run",
    ),
    "zar ablate": (
        "zar ablate --dataset hmdb51 --sweep confidence",
        "zar ablate --dataset hmdb51 --sweep mine.yaml --seeds 0 1 2",
    ),
    "zar train": (
        "zar train --config conf/train/k400_zar.yaml --output zar.safetensors",
        "zar train --dataset hmdb51 --protocol few_shot --shots 2 4 --seeds 1 2 3 --output few.safetensors",
    ),
    "zar predict": (
        'zar predict a.mp4 b.mp4 --labels "riding a bike,high jump"',
        "zar predict clips/ --labels labels.txt --csv found.csv",
        "zar predict --labels labels.txt --server http://host:8000 -- -a.mp4",
    ),
}

RUNS = (
    Entry("config", "FILE", "Options from a YAML file, beneath those of the command line.", "The command"),
    Entry("show-config", "", "Print the resolved options and do nothing else.", "The command"),
    Entry(
        "dry-run",
        "",
        "Check all that can be checked, and say what would run; of an evaluation also what it takes here.",
        "The command",
    ),
)
"""What a run's line may hold besides its options."""

RESULTS = (
    *RUNS,
    Entry("quiet", "", "Print the results alone.", "The command"),
    Entry("json", "", "Print the results as JSON; how it goes goes to standard error.", "The command"),
)
"""The same of a run that ends with results."""

_HELP = Entry("help", "", "This help.", "")


class Helped(SystemExit):
    """A command's end after its help.

    Attributes:
        entries: Everything that may stand on its line.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__(0)
        self.entries = entries


def print_help(
    kind: Callable[..., Any] | type[Any], prog: str, about: str, argv: Sequence[str], *, run: tuple[Entry, ...] = ()
) -> None:
    """Prints the help that a command line asks for, and ends the command; nothing where it asks for none.

    Args:
        kind: The options' class, or the function that is called with them.
        prog: The command.
        about: What it does.
        argv: The words after the command.
        run: What a run's line may hold besides its options.

    Raises:
        Helped: It asked for help.
    """
    words = list(argv[: argv.index("--")]) if "--" in argv else list(argv)
    if not {"-h", "--help", "--help-all"}.intersection(words):
        return
    known = [*entries_of(kind), *run, replace(_HELP, topic=run[0].topic if run else "")]
    common = COMMON.get(prog, ())
    everything = "--help-all" in words or not common
    width = min(MOST_COLUMNS, shutil.get_terminal_size((MOST_COLUMNS, 24)).columns)
    arguments = " ".join(one.value if one.required else f"[{one.value}]" for one in known if one.positional)
    lines = [" ".join(f"usage: {prog} {arguments} [OPTIONS]".split()), ""]
    lines += _wrapped(about, width)
    if everything:
        for topic, of_topic in groupby(_together(known), key=lambda one: one.topic):
            lines += ["", *([f"{topic}:"] if topic else []), *_table(list(of_topic), width)]
    else:
        by_name = {one.name: one for one in known}
        shown = [by_name[name] for name in common if name in by_name]
        lines += ["", *_table([*shown, *run[1:], _HELP], width, brief=True)]
        lines += ["", f"--help-all shows all {len(known)} options by topic; --config FILE takes them from a YAML file."]
    if prog in EXAMPLES:
        lines += ["", "examples:", *(f"  {line}" for line in EXAMPLES[prog])]
    print("\n".join(lines), flush=True)
    raise Helped(known)


def about_of(function: Callable[..., Any]) -> str:
    """What a docstring says before its sections."""
    text, _, _ = (inspect.getdoc(function) or "").partition("\nArgs:")
    return text.strip()


def _together(known: list[Entry]) -> list[Entry]:
    """Entries with those of a topic side by side, topics in the order in which they are first met."""
    topics = list(dict.fromkeys(one.topic for one in known))
    return sorted(known, key=lambda one: topics.index(one.topic))


def _wrapped(text: str, width: int) -> list[str]:
    paragraphs = (" ".join(one.split()) for one in text.split("\n\n"))
    return [
        line for one in paragraphs for line in textwrap.wrap(one, width, break_long_words=False, break_on_hyphens=False)
    ]


def _table(known: list[Entry], width: int, brief: bool = False) -> list[str]:
    """Lines of two columns; of a name too long for its column the text begins on the line below."""
    longest = 34
    indent = min(longest, max(len(one.written) for one in known)) + 4
    lines = []
    for one in known:
        about = one.about.partition("; ")[0].partition(". ")[0].rstrip(".") + "." if brief else one.about
        if one.default is not None and f"default {one.default}" not in about:
            about = f"{about} [{one.default}]"
        texts = textwrap.wrap(about, width - indent, break_long_words=False, break_on_hyphens=False) or [""]
        written = f"  {one.written}"
        if len(written) + 2 > indent:
            lines.append(written)
            written = ""
        lines.append(f"{written:<{indent}}{texts[0]}".rstrip())
        lines += [f"{'':<{indent}}{text}" for text in texts[1:]]
    return lines
