"""Reads a page as a browser would, as far as tests look at it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "wbr", "input"}
ADDRESSES = ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")


@dataclass
class Read(HTMLParser):
    """What a page holds."""

    tags: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    alts: list[str | None] = field(default_factory=list)
    headings: list[tuple[int, str]] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ADDRESSES]
        self.addresses += re.findall(r"url\(([^)]*)\)", given.get("style") or "")
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "img":
            self.alts.append(given.get("alt"))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        within = self.open[-1] if self.open else ""
        if within == "style":
            self.addresses += re.findall(r"url\(([^)]*)\)", data)
            assert "@import" not in data
            return
        if re.fullmatch("h[1-6]", within):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)
        elif self.headings and self.headings[-1][0] == 3:
            title = self.headings[-1][1]
            self.sections[title] = self.sections.get(title, "") + data
        self.text += data


def read_page(page: str) -> Read:
    """Reads a page, and checks what every page promises: it needs nothing besides itself and is fit for all readers."""
    read = Read()
    read.feed(page)
    read.close()
    assert not read.open
    assert page.startswith("<!DOCTYPE html>")
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    for address in read.addresses:
        # The Explorer lies beside a report and is another page; what a page shows is all in it.
        assert address.startswith(("data:", "#")) or address.endswith("explorer.html"), address[:80]
        assert ":" not in address or address.startswith("data:")
        if address.startswith("#"):
            assert address[1:] in read.ids
        if address.startswith("data:image/svg+xml;base64,"):
            drawing = base64.b64decode(address.partition(",")[2]).decode()
            assert "<script" not in drawing
            for inner in re.findall(r'(?:href|src)="([^"]*)"', drawing) + re.findall(r"url\(([^)]*)\)", drawing):
                assert inner.startswith(("#", "data:")), inner[:80]
    assert len(set(read.ids)) == len(read.ids)
    assert all(read.alts), "a picture has no text in its place"
    levels = [level for level, _ in read.headings]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    empty = [title for level, title in read.headings if level == 3 and not read.sections.get(title, "").strip()]
    assert not empty, f"sections that say nothing: {empty}"
    return read
