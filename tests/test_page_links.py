"""Links between the pages: each leads to a file of the repository, and to a heading that is there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "bench" / "RESULTS.md", *(ROOT / "docs").glob("*.md")])


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What leads to a page's headings: as GitHub makes them, with a number behind the second of the same words."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ +(.*?) *$", prose(page), re.MULTILINE):
        word = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{word}-{seen[word]}" if seen[word] else word)
        seen[word] += 1
    return found


def dead_links(page: Path) -> list[str]:
    """The links of a page, but for those to other hosts, that lead nowhere."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        file, _, anchor = link.partition("#")
        place = page.parent / file if file else page
        if "://" not in link and not (place.exists() and (not anchor or anchor in anchors(place))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page):
    assert dead_links(page) == []


def test_dead_links_are_seen(tmp_path):
    (tmp_path / "b.md").write_text("# One `two`, three\n## Again\n## Again\n```\n# Not this\n```\n")
    good = ["b.md", "b.md#one-two-three", "b.md#again-1", "#a", "https://example.org/none"]
    bad = ["c.md", "b.md#two", "b.md#again-2", "b.md#not-this", "#b"]
    (tmp_path / "a.md").write_text(
        "# A\n" + " ".join(f"[x]({link})" for link in good + bad) + "\n```\n[y](d.md)\n```\n"
    )
    assert dead_links(tmp_path / "a.md") == bad
