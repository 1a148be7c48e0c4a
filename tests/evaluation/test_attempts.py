"""What is made of a process that never put a video down: by its own end, its node's, and what the kernel did there."""

from __future__ import annotations

import pytest

from zar_ray.evaluation import attempts
from zar_ray.evaluation.attempts import Attempt, ended_for_memory, losses


@pytest.mark.parametrize(
    ("told", "nodes", "before", "end"),
    [
        ("crashed", {"n": 3}, 3, "crashed"),
        ("crashed", {"n": 4}, 3, "memory"),
        ("crashed", {"other": 9}, 3, "node"),
        ("memory", {"n": 3}, 3, "memory"),
        ("unclear", {"n": 5}, 3, "unclear"),
    ],
)
def test_a_death_is_the_videos_own_only_where_nothing_else_happened(monkeypatch, told, nodes, before, end):
    monkeypatch.setattr(attempts, "_well", lambda asked: {one: nodes[one] for one in asked if one in nodes})
    monkeypatch.setattr(attempts, "_exits", lambda workers: dict.fromkeys(workers, (told, f"{told} it was")))
    one = Attempt("v", "adapt", "n", "w", "host:7", before)
    ((video, found, line), lost) = losses(["v", "away"], [one, Attempt("done", "decode", "n", "w", "host:7", 0)])
    assert (video, found) == ("v", end)
    assert "adapt by host:7 on node n" in line
    assert ("kernel" in line) == (told == "crashed" and end == "memory")
    assert lost[:2] == ("away", "node")


def test_what_the_kernel_ended_is_read_where_it_is_told(monkeypatch, tmp_path):
    counts = tmp_path / "vmstat"
    monkeypatch.setattr(attempts, "_KERNEL_COUNTS", counts)
    assert ended_for_memory() == 0
    counts.write_text("nr_free_pages 17\noom_kill 12\npgfault 4\n")
    assert ended_for_memory() == 12
    counts.write_text("nr_free_pages 17\n")
    assert ended_for_memory() == 0
