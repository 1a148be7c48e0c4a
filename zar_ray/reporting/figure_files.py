"""The figures of a page as files of their own, for papers: vectors where the page has vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

from zar_ray.reporting.pages import Drawn, Figure, Page, Picture
from zar_ray.storage import Storage

FOLDER = "figures"
"""Where they are, beside the page."""

_GROUP_LENGTH = 40  # characters, of four bytes at most


def write_figures(page: Page, place: str, form: Drawn) -> str:
    """Writes all figures of a page into `FOLDER` beside it, named after the parts of the page; returns where that is.

    Args:
        page: The page.
        place: Where its file is.
        form: What kind of files.

    Raises:
        RunError: They cannot be written.
    """
    folder, _ = Storage.of_file(place)
    for name, picture in _named(page):
        if picture.drawn is not None:
            folder.write(f"{FOLDER}/{name}.{form}", picture.drawn(form))
    return folder.path(FOLDER)


def _named(page: Page) -> Iterator[tuple[str, Picture]]:
    taken: set[str] = set()
    for group in page.groups:
        for section in group.sections:
            for content in section.content:
                if isinstance(content, Figure):
                    name = plain = _plain(group.title, section.title)
                    for number in count(2):
                        if name not in taken:
                            break
                        name = f"{plain}-{number}"
                    taken.add(name)
                    yield name, content.picture


def _plain(group: str, section: str) -> str:
    """A part's name for a file; of a group's, which may name many options, as much as file systems take."""
    return re.sub(r"[^\w.+-]+", "-", f"{group[:_GROUP_LENGTH]} {section}").strip("-").lower()
