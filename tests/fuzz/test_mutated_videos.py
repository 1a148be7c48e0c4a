"""Mutated videos: whatever is done to a file, it costs itself alone, and something is said of it."""

from __future__ import annotations

from collections import Counter

import pytest
from fuzz_stages import FINE, STAGES, Outcome, counts, outcome_of, send_through
from mutated_videos import WAYS, mutants, pieces_of, seed_files

COUNT, SEED, TIMEOUT = 200, 17, 10.0


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, repository):
    return seed_files(tmp_path_factory.mktemp("seeds"), repository.parent / "shared" / "videos")


@pytest.mark.process
def test_a_mutated_file_costs_itself_alone(seeds, tmp_path):
    for number, mutant in enumerate(mutants(seeds, COUNT, SEED)):
        path = tmp_path / ("even", "odd")[number % 2] / mutant.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutant.content)
    outcomes = send_through(tmp_path, TIMEOUT, workers=2, say=print)
    assert [one for one in outcomes if one.kind not in FINE] == []
    found = counts(outcomes)
    opened = found["probe"]["read"] + found["probe"]["warned"]
    assert {stage: found[stage].total() for stage in STAGES} == {
        **dict.fromkeys(("probe", "whole", "windows"), COUNT),
        "job": opened,
    }
    # files that nothing opens, or that nothing harms, would show nothing
    assert COUNT // 5 < opened < COUNT
    assert (
        max(one.seconds for one in outcomes if one.stage == "whole") < TIMEOUT + 60
    )  # of which a child may take long to start


@pytest.mark.slow
def test_a_file_can_be_made_again_by_its_seed_and_number(seeds):
    some = seeds[:6]
    first, more, other = list(mutants(some, 30, 1)), list(mutants(some, 60, 1)), list(mutants(some, 30, 2))
    assert first == more[:30]
    assert all(one.content != two.content for one, two in zip(first, other, strict=True))
    originals = [path.read_bytes() for path in some]
    assert sum(one.content in originals for one in more) < 5


def test_every_way_to_hurt_a_file_is_taken(seeds):
    done = Counter(way for one in mutants(seeds[:6], 300, 0) for way in one.name.split("-")[1].split("+"))
    assert done.keys() == {way.__name__ for way in WAYS}


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("h264.mp4", b"stsz"),
        ("fragments.mp4", b"trun"),
        ("mpeg4.avi", b"strf"),
        ("h264.mkv", b"\xb0"),  # the pictures' width
    ],
)
def test_pieces_are_found_at_every_depth(seeds, name, inside):
    content = next(path for path in seeds if path.name == name).read_bytes()
    pieces = pieces_of(content)
    assert any(inside in content[piece.start : piece.body] for piece in pieces)
    assert all(piece.start <= piece.size_at < piece.body <= piece.end <= len(content) for piece in pieces)
    top, at = [piece for piece in pieces if not any(one.body <= piece.start < one.end for one in pieces)], 0
    for piece in top:
        assert piece.start - at in (0, 1), "pieces follow each other, in RIFF at even places"
        at = piece.end
    assert len(content) - at <= 1


@pytest.mark.parametrize(
    ("error", "warning", "kind"),
    [
        (None, None, "read"),
        (None, "the file ends early", "warned"),
        ("not a video, or a damaged one: moov atom not found", None, "refused"),
        ("took longer than 10 s to decode", None, "hang"),
        ("its decoder was killed by SIGSEGV", None, "crash"),
        ("crashes its decoder (killed by SIGABRT)", None, "crash"),
        ("crashes its decoder (its process ended with exit code 70)", None, "hang"),
        ("decoding it takes more memory than the limit of 5 bytes", None, "memory"),
        ("KeyError: 'what'", None, "unforeseen"),
        ("dead: the process that decodes videos cannot be started", None, "dead"),
        ("two\nlines", None, "escaped"),
        ("lost", None, "lost"),
    ],
)
def test_outcomes_are_told_apart(error, warning, kind):
    assert outcome_of("probe", "a.mp4", error, warning, 0.0) == Outcome(
        "probe", "a.mp4", kind, error or warning or "", 0.0
    )
