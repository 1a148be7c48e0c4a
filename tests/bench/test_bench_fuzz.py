"""The bench of mutated videos: what it counts, keeps and calls a failure."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest


@pytest.fixture(scope="module")
def bench(repository):
    spec = importlib.util.spec_from_file_location("bench_fuzz", repository / "bench" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_fuzz"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.process
def test_all_files_go_through_all_stages(bench, tmp_path, capsys):
    words = ["--files", "12", "--no-commands", "--samples", str(tmp_path), "--workers", "2"]
    assert bench.main([*words, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert {stage: sum(kinds.values()) for stage, kinds in found["counts"].items() if stage != "job"} == {
        "probe": 12,
        "whole": 12,
        "windows": 12,
    }
    assert found["commands"] == []
    assert "unforeseen" in capsys.readouterr().out


def test_what_must_not_be_is_a_failure(bench, monkeypatch, capsys):
    for kind, status in (("crash", 0), ("hang", 0), ("unforeseen", 1), ("dead", 1), ("escaped", 1), ("lost", 1)):
        outcome = bench.Outcome("whole", "a.mp4", kind, "what is said", 1.0)
        monkeypatch.setattr(bench, "run", lambda *_, outcome=outcome: ([outcome], []))
        assert bench.main([]) == status
        assert f"whole: {kind}: a.mp4: what is said" in capsys.readouterr().out
    monkeypatch.setattr(bench, "run", lambda *_: ([], ["zar predict: exit status 134"]))
    assert bench.main([]) == 1
