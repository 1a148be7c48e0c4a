"""Classes that are held out of the candidate classes: their videos stay in a run, as ones that show none of these."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zar_ray.data.classes import by_key, name_key
from zar_ray.data.datasets import parse_class_names
from zar_ray.data.options import DatasetOptions
from zar_ray.data.protocols import EvaluationSplit
from zar_ray.errors import ConfigError, suggestion

_SHARE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*")
_OPTION = "--unknown-classes"


def share_of_classes(text: str) -> float | None:
    """The share that ``0.2`` or ``20%`` names; None of anything else, which names classes."""
    found = _SHARE.fullmatch(text)
    return None if found is None else float(found[1]) / (100 if found[2] else 1)


def plain_words(options: DatasetOptions) -> str:
    """What is held out, as a part of a run's name; empty where nothing is."""
    if options.unknown_classes is None:
        return ""
    share = share_of_classes(options.unknown_classes)
    if share is None:
        return f"unknown-{Path(options.unknown_classes).stem[:40]}"
    return f"unknown{share:g}" + (f"seed{options.unknown_seed}" if options.unknown_seed else "")


def held_out_classes(splits: Sequence[EvaluationSplit], options: DatasetOptions) -> tuple[str, ...]:
    """The classes that the options hold out, as the splits spell them.

    Of a share it is that of all splits' classes together, drawn by `unknown_seed`: a larger share adds to a smaller
    one.

    Raises:
        ConfigError: The option is no share between 0 and 1, or names a class that no split has; or the videos may show
            several classes.
    """
    text = options.unknown_classes
    if text is None:
        return ()
    if any(split.multi_label for split in splits):
        raise ConfigError(f"{_OPTION}: a video of {splits[0].benchmark} may show several classes; leave the option out")
    names = tuple(dict.fromkeys(name for split in splits for name in split.class_names))
    share = share_of_classes(text)
    if share is not None:
        if not 0 < share < 1:
            raise ConfigError(f"{_OPTION} {text}: is to be a share between 0 and 1, as 0.2 or 20%, or names of classes")
        drawn = np.random.default_rng(options.unknown_seed).permutation(len(names))
        return tuple(names[place] for place in sorted(drawn[: max(1, round(share * len(names)))].tolist()))
    known = {**by_key(names), **{name: name for name in names}}
    found = {}
    for name in parse_class_names(text):
        spelled = known.get(name, known.get(name_key(name)))
        if spelled is None:
            raise ConfigError(f'{_OPTION}: "{name}" is no class of {splits[0].benchmark}{suggestion(name, names)}')
        found[spelled] = None
    return tuple(found)


def hold_out(split: EvaluationSplit, held_out: Sequence[str]) -> EvaluationSplit:
    """The same videos, to be classified among the other classes; a label beyond those is a place in `held_out`.

    Raises:
        ConfigError: Fewer than two classes are left.
    """
    if not held_out:
        return split
    names = tuple(name for name in split.class_names if name not in held_out)
    if len(names) < 2:
        raise ConfigError(
            f"{_OPTION}: leaves {len(names)} of the {len(split.class_names)} classes of {split.benchmark}, split "
            f"{split.name}, and choosing needs two"
        )
    place = {name: number for number, name in enumerate((*names, *held_out))}
    moved = [place[name] for name in split.class_names]
    return replace(
        split,
        class_names=names,
        held_out=tuple(held_out),
        labels=tuple(tuple(moved[number] for number in ids) for ids in split.labels),
        exchanged=frozenset(moved[number] for number in split.exchanged),
    )
