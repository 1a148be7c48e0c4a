"""The page's files as they lie: complete, without anything from elsewhere, and readable in both colour schemes."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

import zar_ray

PAGE = Path(zar_ray.__file__).parent / "serving" / "page"
NAMES = sorted(file.name for file in PAGE.iterdir())
SCRIPTS = [name for name in NAMES if name.endswith(".js")]
# Text and what it stands on; 4.5 to 1 is WCAG's AA.
READ = [
    *((text, ground) for text in ("ink", "soft", "accent") for ground in ("ground", "card")),
    ("on-accent", "accent"),
    ("ink", "warn"),
    ("bad", "card"),
    *((text, "bad-ground") for text in ("bad", "ink", "soft", "accent")),
]
# Edges of fields and bars of charts; 3 to 1.
SEEN = [("edge", "card"), ("before", "card"), ("after", "card"), ("accent", "card")]


class Elements(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag = self.found[-1][0] if self.found else ""
        self.texts[tag] = self.texts.get(tag, "") + data


def read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements() -> list[tuple[str, dict[str, str | None]]]:
    return Elements(read("index.html")).found


@pytest.mark.process
@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_no_minute_has_sixty_seconds():
    script = f"{read('dom.js')}\nconsole.log([0.5, 119.4, 119.7, 3600].map(duration).join('; '));"
    words = ["node", "--input-type=module", "-"]
    done = subprocess.run(words, input=script, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.replace("\xa0", " ") == "500 ms; 1 min 59 s; 2 min 0 s; 60 min 0 s\n"


def test_the_page_s_files_are_part_of_the_package():
    assert {"index.html", "page.css", "page.js"} <= set(NAMES)
    assert all((files("zar_ray.serving") / "page" / name).is_file() for name in NAMES)
    # The service hands out this folder whole: what else lies here would be public.
    assert {Path(name).suffix for name in NAMES} == {".html", ".css", ".js"}


def test_every_file_is_reached_from_the_page(elements):
    linked = [attributes.get("href") or attributes.get("src") or "" for tag, attributes in elements if tag != "a"]
    reached = {link.removeprefix("page/") for link in linked if link.startswith("page/")}
    waiting = [name for name in reached if name in SCRIPTS]
    while waiting:
        imported = re.findall(r'^(?:import|export)\b[^;]*?from "\./([^"]+)";', read(waiting.pop()), re.MULTILINE)
        waiting += [name for name in imported if name not in reached]
        reached.update(imported)
    assert reached | {"index.html"} == set(NAMES)


def test_nothing_is_asked_of_elsewhere(elements):
    links = [value for _, attributes in elements for name, value in attributes.items() if name in ("href", "src")]
    assert all(re.fullmatch(r"page/[a-z]+\.(css|js)|docs|#[a-z]+|data:,", str(link)) for link in links), links
    for name in NAMES:
        # The name of SVG's namespace is an address that nobody visits.
        text = read(name).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|[\"'(]//|@import|\burl\(", text), name


def test_nothing_is_inline_that_the_policy_forbids(elements):
    for tag, attributes in elements:
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    for name in SCRIPTS:
        assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function)\b", read(name))
        assert not re.search(r"localStorage|sessionStorage|document\.cookie|indexedDB", read(name)), "tokens stay"


def test_every_field_has_a_label_and_every_reference_a_target(elements):
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    wrapped = {"windowed", "explain"}
    fields = {attributes["id"] for tag, attributes in elements if tag in ("input", "select", "textarea")}
    assert fields == labelled - {None} | wrapped
    for _, attributes in elements:
        for reference in str(attributes.get("aria-describedby") or "").split():
            assert reference in ids
    for name in SCRIPTS:
        assert set(re.findall(r'byId\("([^"]+)"\)', read(name))) <= set(ids), name


def test_advice_is_given_for_every_code_of_the_service():
    from zar_ray.serving.problems import PROBLEMS

    advice = read("problem.js").partition("const ADVICE = {")[2].partition("};")[0]
    known = set(re.findall(r'^\s+"?([a-z-]+)"?:', advice, re.MULTILINE))
    assert set(PROBLEMS) <= known


def palettes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{([^}]*--ground[^}]*)\}", read("page.css"))
    colours = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", block)) for block in (light, dark)]
    return {"light": colours[0], "dark": colours[1]}


def luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(2 * one for one in digits) if len(digits) == 3 else digits
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme):
    colours = palettes()[scheme]
    for text, ground in READ:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for shape, ground in SEEN:
        assert contrast(colours[shape], colours[ground]) >= 3, (shape, ground)
