"""`zar models`: what can be loaded by name."""

from __future__ import annotations

import csv
import io

import open_clip
import pytest

from zar_ray.commands import models
from zar_ray.commands.main import main
from zar_ray.models.catalogue import known_models
from zar_ray.models.systems.registry import known_systems


@pytest.fixture(scope="module")
def everything():
    return known_models()


def test_every_pair_and_every_system_is_there(everything):
    found = {(one.model, one.tag) for one in everything}
    assert found == {*open_clip.list_pretrained(), *((name, "-") for name in known_systems())}
    assert {one.model for one in everything if one.tuned.startswith("no")} == {"a5", "tcclip", "xclip"}


@pytest.fixture
def counted(everything, monkeypatch):
    """The names of the models whose sizes the command has counted, of which each takes a good part of a second."""
    monkeypatch.setattr(models, "known_models", lambda: everything)
    names = []

    def sizes(one):
        names.append(one.model)
        return "1.5", "98.76"

    monkeypatch.setattr(models, "_sizes", sizes)
    return names


@pytest.mark.parametrize(
    "words", [("siglip2", "384"), ("SQUASH", "dfn"), ("openai", "rn50"), ("causal", "336"), ("openai",)]
)
def test_all_words_are_looked_for_in_all_cells(everything, counted, words, capsys):
    assert main(["models", *words]) == 0
    said = capsys.readouterr().out
    found = [one for one in everything if all(word.casefold() in one.words for word in words)]
    assert found
    for one in found:
        assert all(word.casefold() in one.words for word in words)
        assert f"{one.model} " in said
    assert said.count("\n") == len(found) + 3
    assert f"{len(found)} of {len(everything)}" in said
    distinct = {one.model for one in found}
    assert sorted(counted) == (sorted(distinct) if len(distinct) <= 12 else [])
    assert ("98.76" in said) == bool(counted)


def test_sizes_are_counted_of_however_many_where_they_are_asked_for(everything, counted):
    assert main(["models", "siglip", "--sizes"]) == 0
    assert set(counted) == {one.model for one in everything if "siglip" in one.words}
    assert len(counted) == len(set(counted)) > 12


@pytest.mark.slow
@pytest.mark.parametrize(("words", "model"), [(("PE-Core-T",), "PE-Core-T-16-384"), (("RN50", "cc12m"), "RN50")])
def test_sizes_are_counted_of_few(words, model, capsys):
    assert main(["models", *words]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{model} "))
    parameters, per_image = row.split()[3:5]
    assert float(parameters) > 1
    assert float(per_image) > 0.1


def test_programs_read_csv(everything, counted, capsys):
    assert main(["models", "b-16", "siglip", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = [one for one in everything if "b-16" in one.words and "siglip" in one.words]
    assert [(row["model"], row["tag"], row["text tower"]) for row in rows] == [
        (one.model, one.tag, one.text) for one in found
    ]
    assert {row["GFLOPs an image"] for row in rows} == {"98.76"}


def test_what_is_not_there_is_one_line(capsys):
    assert main(["models", "siglip9", "squash"]) == 2
    assert capsys.readouterr().err == (
        "zar: zar models: nothing has siglip9 and squash; leave a word away, or all of them\n"
    )
