"""`zar methods`: what it lists follows from what the methods declare, and docs/methods.md says the same."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import pytest

from zar_ray.adaptation import catalogue
from zar_ray.adaptation.base import Method
from zar_ray.adaptation.catalogue import known_methods
from zar_ray.adaptation.methods import METHODS
from zar_ray.commands.main import main
from zar_ray.options.base import Options, option


def test_every_method_is_there_with_its_source():
    found = {one.method: one for one in known_methods()}
    assert list(found) == list(METHODS)
    for name, one in found.items():
        method = METHODS[name]
        assert one.about == method.description
        assert ("context" in one.needs) == (method.updates == "context")
        assert (one.stream == "no") == (method.open_stream is None)
    assert all(one.source[-4:].isdigit() for one in found.values())
    assert {name for name, one in found.items() if one.stream.startswith("with")} == {"zar", "memo", "tent"}


def test_the_docs_table_is_the_declarations(repository):
    lines = (repository / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()
    first = lines.index("| method | needs | updates | stream | costs a video |")
    table = lines[first + 2 : lines.index("", first)]
    expected = []
    for one in known_methods():
        stream = one.stream.replace("with ", "with `") + "`" if one.stream.startswith("with") else one.stream
        expected.append(f"| `{one.method}` | {one.needs} | {one.updates} | {stream} | {one.cost} |")
    assert table == expected


@pytest.mark.parametrize("words", [("cache", "CVPR"), ("STREAM", "evaluation view"), ("text tower", "2025")])
def test_all_words_are_looked_for_in_all_cells(words, capsys):
    assert main(["methods", *words]) == 0
    said = capsys.readouterr().out
    found = [one for one in known_methods() if all(word.casefold() in one.words for word in words)]
    assert 0 < len(found) < len(METHODS)
    shown = [line.split()[0] for line in said.splitlines() if line.split()[:1] and line.split()[0] in METHODS]
    assert shown == [one.method for one in found]
    assert f"{len(found)} of {len(METHODS)}" in said


def test_programs_read_json_and_csv(capsys):
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == [one.cells for one in known_methods()]
    assert main(["methods", "--csv"]) == 0
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == rows
    assert main(["methods", "--csv", "--json"]) == 2
    assert capsys.readouterr().err == "zar: --json and --csv: give one of them\n"


def test_what_is_not_there_is_one_line(capsys):
    assert main(["methods", "zap", "cache"]) == 2
    assert capsys.readouterr().err == (
        "zar: zar methods: nothing has zap and cache; leave a word away, or all of them\n"
    )


class _Own(Options):
    stream: bool = option(True, "Goes on.")


def test_a_packages_method_says_whose_it_is(monkeypatch):
    def rule(videos, classes, options, shared):
        return []

    opened = SimpleNamespace
    bare = Method("bare", "nothing much", rule)
    full = Method(
        "full", "a lot", rule, _Own, needs_views=True, needs_pixels=lambda own: own.stream, updates="weights",
        is_stream=lambda own: own.stream, open_stream=opened, changes="the head", also_needs="sound", cost="an hour",
        source="Doe, 2031",
    )  # fmt: skip
    offered = {"bare": ("package hay", bare), "full": ("zar-ray", full)}
    monkeypatch.setattr(catalogue, "offered_methods", lambda: offered)
    first, second = known_methods()
    assert first.cells == {
        "method": "bare", "about": "nothing much", "needs": "the evaluation view", "updates": "nothing",
        "stream": "no", "cost": "16 images", "source": "(package hay)",
    }  # fmt: skip
    assert second.needs == "views, pixels, weights in full precision, sound"
    assert (second.updates, second.stream, second.source) == ("the head", "yes", "Doe, 2031")
    assert second.cost.endswith(" images; an hour")
    assert "hay" in first.words
