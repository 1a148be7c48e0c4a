"""The commands `zar features VERB`."""

from __future__ import annotations

import math
import time
from typing import Annotated

import tyro

from zar_ray.commands.parsing import verb
from zar_ray.options.base import Bytes, Seconds
from zar_ray.terminal import output_console


def age(seconds: float) -> str:
    """Time since something, in its largest whole unit."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    return next((f"{seconds // length:.0f} {unit}" for unit, length in units if seconds >= length), "now")


@verb("zar features show")
def features_show_command(folder: Annotated[str, tyro.conf.Positional]) -> int:
    """Shows models, videos, bytes and ages of the image features in a folder or at a URI.

    Args:
        folder: What `--features` named.
    """
    from zar_ray.evaluation.feature_folder import look, stores_in
    from zar_ray.reporting.blocks import Block, print_block
    from zar_ray.reporting.numbers import counted, size

    spaces = [look(store) for store in stores_in(folder)]
    rows, notes, now = [], [], time.time()
    for space in spaces:
        what = space.store.space
        model = (space.store.model, what["model"], what["precision"], str(what["decoder"]))
        used = [age(now - pack.used) for pack in space.packs] or ["-"]
        files = (f"{space.videos:,}", f"{len(space.packs):,}", size(space.bytes))
        rows.append((*model, *files, used[0], used[-1]))
        notes += space.damaged
    every = sum(space.videos for space in spaces), sum(space.bytes for space in spaces)
    title = f"{folder}: features of {counted(every[0], 'video')}, {size(every[1])}"
    columns = ("model", "weights", "precision", "decoder", "videos", "files", "size", "oldest use", "last use")
    print_block(Block(title, columns, rows, notes, words=4), output_console())
    return 0


@verb("zar features prune")
def features_prune_command(
    folder: Annotated[str, tyro.conf.Positional],
    max_bytes: Bytes | None = None,
    older_than: Seconds | None = None,
    dry_run: bool = False,
) -> int:
    """Deletes the features that were not used for longest, and puts small files together; runs may go on meanwhile.

    Args:
        folder: What `--features` named.
        max_bytes: Bytes, or 500GB, that may stay.
        older_than: Seconds, or 30d, after which features that no run read are deleted.
        dry_run: Only say what would be deleted.
    """
    from zar_ray.evaluation.feature_folder import prune, stores_in

    stores = stores_in(folder)
    gone = prune(stores, max_bytes, older_than, dry_run)
    would = "would delete" if dry_run else "deleted"
    print(f"{folder}: {would} {gone.entries} entries in {gone.packs} files, {gone.bytes:,} bytes; {gone.left:,} stay")
    if not dry_run:
        fewer = sum(store.merge(math.inf) for store in stores)
        print(f"{fewer} files fewer, as small ones were put together")
    return 0
