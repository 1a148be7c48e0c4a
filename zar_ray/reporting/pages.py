"""Pages as values, and the one HTML file that a page becomes: styles and pictures inside, no scripts, no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

import zar_ray
from zar_ray.reporting.blocks import Block
from zar_ray.storage import Storage

Drawn = Literal["svg", "png", "pdf"]
"""Kinds of files that charts are drawn as."""


@dataclass(frozen=True)
class Picture:
    """A picture inside a page.

    Attributes:
        uri: A ``data:`` URI that holds all of it.
        alt: What it shows, for those who cannot see it.
        narrow: Whether it need not take the page's whole width.
        drawn: Draws it anew, as ``svg``, ``png`` or ``pdf``; None where it is only this.
    """

    uri: str
    alt: str
    narrow: bool = False
    drawn: Callable[[Drawn], bytes] | None = None

    @classmethod
    def of(
        cls,
        content: bytes,
        kind: str,
        alt: str,
        *,
        narrow: bool = False,
        drawn: Callable[[Drawn], bytes] | None = None,
    ) -> Picture:
        """Takes a file's content, of a MIME type such as ``image/png``."""
        return cls(f"data:{kind};base64,{base64.b64encode(content).decode()}", alt, narrow, drawn)


@dataclass(frozen=True)
class Text:
    """A paragraph; a weak one is a side note or the reason why there is nothing to show."""

    text: str
    weak: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    picture: Picture
    caption: str
    kind: str = "figure"


@dataclass(frozen=True)
class Card:
    """A video: what it is called, a line about it, and pictures of it."""

    title: str
    text: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Cards:
    """Videos under a heading."""

    title: str
    cards: Sequence[Card]
    kind: str = "cards"


@dataclass(frozen=True)
class Code:
    """A command or a file, with a line over it; a folded one opens at that line."""

    title: str
    text: str
    folded: bool = False
    kind: str = "code"


Content = Text | Figure | Block | Cards | Code


@dataclass(frozen=True)
class Section:
    """A part of a page; it holds something, if only the reason why it has nothing to show."""

    title: str
    content: Sequence[Content]


def why_empty(title: str, reason: str) -> Section:
    """A section that has nothing to show, with the reason."""
    return Section(title, (Text(reason, weak=True),))


@dataclass(frozen=True)
class Group:
    """Sections under a heading."""

    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Tile:
    """A number of the headline: what it is, its value, and what belongs to it."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Page:
    """A whole page: headline tiles, names and values under them, and groups; its warning comes before any number."""

    title: str
    subtitle: str
    warning: str | None
    tiles: Sequence[Tile]
    facts: Sequence[tuple[str, str]]
    groups: Sequence[Group]


def render(page: Page, explorer: str | None = None) -> str:
    """The page as one HTML file; `explorer` is the address of a page beside it that has all videos."""
    return rendered("page.html", page=page, explorer=explorer)


def rendered(template: str, **values: Any) -> str:
    """One of the templates with these values."""
    environment = Environment(
        loader=PackageLoader("zar_ray.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["policy_hash"] = _policy_hash
    return environment.get_template(template).render(version=zar_ray.__version__, **values)


def _policy_hash(content: str) -> str:
    """How a Content-Security-Policy names the one style or script that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def write_file(content: bytes, output: str) -> str:
    """Writes a report whole or not at all, into a folder or at a URI; returns where it is.

    Raises:
        RunError: It cannot be written.
    """
    folder, name = Storage.of_file(output)
    folder.write(name, content)
    return folder.path(name)
