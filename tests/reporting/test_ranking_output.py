"""What people and spreadsheets get of many ranked files."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from zar_ray.adaptation.rankings import RankedLabel, Ranking
from zar_ray.errors import ConfigError
from zar_ray.reporting import rankings as shown
from zar_ray.reporting.ranking_files import rankings_csv
from zar_ray.reporting.rankings import print_rankings


def ranked(video: str, method: str, *labels: str, error: str | None = None) -> Ranking:
    after = tuple(RankedLabel(label, 0.5 / (1 + place), 0.25) for place, label in enumerate(labels))
    return Ranking(video, method, after[::-1], after, (0, 4) if labels else (), None if error else "odd", error)


FOUND = [
    ranked("a.mp4", "zero_shot", "riding", "=1+1", "swimming"),
    ranked("a.mp4", "zar", "=1+1", "riding", "swimming"),
    ranked("=cmd.mp4", "zero_shot", error="no video\rin it"),
    ranked("=cmd.mp4", "zar", error="no video\rin it"),
    ranked(os.fsdecode(b"\xff.mp4"), "zero_shot", "riding", "swimming", "=1+1"),
    ranked(os.fsdecode(b"\xff.mp4"), "zar", "riding", "swimming", "=1+1"),
]
VIDEOS = ["a.mp4", "=cmd.mp4", os.fsdecode(b"\xff.mp4")]


def printed(found=FOUND, videos=VIDEOS, **more) -> tuple[str, int]:
    console = Console(file=io.StringIO(), width=200)
    failed = print_rankings(found, console, videos, ("zero_shot", "zar"), random_weights=False, **more)
    return console.file.getvalue(), failed


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_whatever_the_terminal_has_letters_for(encoding, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", output)
    printed([ranked("\xe9.mp4", "zar", "\u8df3")], json_lines=True)
    output.flush()
    content = output.buffer.getvalue().decode(encoding)
    assert json.loads(content)["video"] == "\xe9.mp4"
    assert json.loads(content)["after"][0]["label"] == "\u8df3"


def test_labels_are_counted_at_the_end():
    said, failed = printed()
    assert failed == 2
    summary = said[said.index("3 files, 1 failed") :].split()
    assert summary[5:7] == ["zero_shot", "zar"]
    counts = dict(zip(summary[8::3], zip(summary[9::3], summary[10::3], strict=True), strict=True))
    assert counts == {"riding": ("2", "1"), "=1+1": ("0", "1")}
    assert "files" not in printed(FOUND[:2], VIDEOS[:1])[0]


def test_beside_a_table_only_what_failed_is_printed():
    written = []
    said, _ = printed(write=written.append)
    assert written == FOUND
    assert "failed: no video" in said
    assert "swimming" not in said.partition("3 files")[0]


def test_many_labels_are_cut_and_the_rest_counted(monkeypatch):
    monkeypatch.setattr(shown, "_MOST_LABELS", 3)
    found = [ranked(f"{n}.mp4", method, f"label {n}") for n in range(7) for method in ("zero_shot", "zar")]
    assert "and 4 more labels" in printed(found, [f"{n}.mp4" for n in range(7)])[0]


def test_lines_of_json_stand_alone(capsys):
    said, _ = printed(json_lines=True)
    assert said == ""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["video"] for one in lines][::2] == ["a.mp4", "=cmd.mp4", "\\udcff.mp4"]


def test_the_bar_stands_on_a_terminal_alone(monkeypatch, capfd):
    printed()
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(shown, "Console", lambda **more: Console(force_terminal=True, width=100, **more))
    printed()
    assert "files" in capfd.readouterr().err
    printed(FOUND[:2], VIDEOS[:1])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("top_k", [1, 3])
def test_a_row_a_file_and_method_and_a_column_a_rank(tmp_path, top_k):
    place = tmp_path / "new" / "found.csv"
    with rankings_csv(str(place), top_k) as write:
        for one in FOUND:
            write(one)
        assert not place.exists()
    rows = list(csv.DictReader(place.open(encoding="utf-8", newline="")))
    assert [(row["video"], row["method"]) for row in rows[:3]] == [
        ("a.mp4", "zero_shot"),
        ("a.mp4", "zar"),
        ("'=cmd.mp4", "zero_shot"),
    ]
    assert [rows[1][f"label_{rank}"] for rank in range(1, top_k + 1)] == ["'=1+1", "riding", "swimming"][:top_k]
    assert f"label_{top_k + 1}" not in rows[0]
    assert float(rows[0]["score_1"]) == FOUND[0].after[0].score
    assert (rows[0]["std_1"], rows[0]["label_before"], rows[0]["seeds"]) == ("0.25", "swimming", "0 4")
    assert (rows[2]["label_1"], rows[2]["score_1"], rows[2]["error"]) == ("", "", "no video\nin it")
    assert len(rows) == len(FOUND)


def test_what_breaks_off_leaves_the_file_as_it_was(tmp_path):
    place = tmp_path / "found.csv"
    place.write_text("older")

    def breaks_off() -> None:
        with rankings_csv(str(place), 2) as write:
            write(FOUND[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks_off()
    assert place.read_text() == "older"
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_is_no_table(tmp_path: Path):
    with pytest.raises(ConfigError, match="is a folder"), rankings_csv(str(tmp_path), 2):
        pass
