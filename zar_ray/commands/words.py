"""The words of `zar predict`, put in an order that leaves no option a video."""

from __future__ import annotations

from collections.abc import Sequence

from zar_ray.commands.entries import entries_of
from zar_ray.data.finding import STDIN, looks_like_videos
from zar_ray.options.base import Options


def videos_last(argv: Sequence[str], kind: type[Options]) -> list[str]:
    """The words with all videos behind ``--``, where no option that takes several values has some of them.

    Behind such an option, and its first value, a video is what reads as one (`looks_like_videos`), and behind
    ``--seeds`` what is no number, with all words after it up to the next option.

    Args:
        argv: The words after the command.
        kind: The options' class; of an option that it does not know any number of values may stand behind it.
    """
    known = {f"--{one.name}": one for one in entries_of(kind)}
    switches = {name for name, one in known.items() if not one.value}
    switches |= {f"--{name}" for name in ("show-config", "dry-run", "help", "help-all")} | {"-h"}
    line, behind = (list(argv[: argv.index("--")]), argv[argv.index("--") + 1 :]) if "--" in argv else (argv, ())
    options: list[str] = []
    videos: list[str] = []
    values = 0  # what the option before takes at least yet
    several, of = False, ""
    for word in line:
        if word.startswith("--") or word == "-h":
            of, sign, _ = word.partition("=")
            name = of.replace("--no-", "--", 1) if of not in known else of
            several = name not in switches and (name not in known or known[name].several)
            values = 0 if sign or name in switches else 1
            options.append(word)
        elif values or (several and not _is_video(word, of)) or (word.startswith("-") and word != STDIN):
            values = 0
            options.append(word)
        else:
            several = False
            videos.append(word)
    return [*options, "--", *videos, *behind] if videos else list(argv)


def _is_video(word: str, option: str) -> bool:
    return looks_like_videos(word) or (option == "--seeds" and not word.isdecimal())
