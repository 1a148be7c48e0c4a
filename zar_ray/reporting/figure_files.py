"""The figures of a page as files of their own, for papers: vectors where the page has vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from zar_ray.reporting.pages import Drawn, Figure, Page, Picture
from zar_ray.storage import Storage

FOLDER = "figures"
"""Where they are, beside the page."""


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
    taken: dict[str, int] = {}
    for group in page.groups:
        for section in group.sections:
            for content in section.content:
                if isinstance(content, Figure):
                    name = re.sub(r"[^\w.+-]+", "-", f"{group.title} {section.title}").strip("-").lower()
                    taken[name] = number = taken.get(name, 0) + 1
                    yield (name if number == 1 else f"{name}-{number}"), content.picture
