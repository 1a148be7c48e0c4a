"""What is made of losses: a video that kills is given up, whatever else goes down meanwhile, and no other one is."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.evaluation import recovery
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.spec import POSITION
from zar_ray.evaluation.streams import StreamState
from zar_ray.results.folder import Ledger, RunFolder
from zar_ray.results.rows import ResultRow, to_table

CLAIM = st.sampled_from(["crashed", "node", "memory", "unclear"])


class Notes:
    """Stands for `Attempts`: what a pretended cluster knows of one pass, the ends by video."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    def unfinished(self):
        return self.ends


class Cluster:
    """Runs blocks as a cluster does whose nodes and processes die.

    Args:
        run: The run.
        poison: Videos whose process dies each time.
        fate: Called with a video and how often it was tried alone; its end if its try is lost, else None.

    Attributes:
        loses_all: Whether each block of the first pass is lost.
        tells: Whether blocks that were not lost tell of their videos, as they do unless their process dies after them.
    """

    def __init__(self, run, poison, fate) -> None:
        self.run, self.poison, self.fate, self.loses_all = run, poison, fate, True
        self.tells, self.progress = True, None
        self.folder = RunFolder(run.spec.storage)
        self.tries: Counter[str] = Counter()

    def done(self, video: str, error: str | None = None) -> None:
        cases = self.run.spec.cases
        self.folder.add(to_table([ResultRow(video, case.case_id, case.method, error=error) for case in cases]))
        if self.tells:
            self.progress.advance(1, failed=error is not None)

    def blocks(self, videos, size, attempts) -> None:
        ids = videos["video_id"].to_pylist()
        for start in range(0, len(ids), size):
            block = ids[start : start + size]
            if attempts is None:
                if not self.poison & {*block} and not self.loses_all:
                    for video in block:
                        self.done(video)
                continue
            (video,) = block
            self.tries[video] += 1
            end = self.fate(video, self.tries[video])
            if video in self.poison and end is None:
                attempts.ends += [(video, "crashed")] * 2
            elif end is not None:
                attempts.ends.append((video, end))
            else:
                self.done(video)

    def in_order(self, videos, size, attempts) -> None:
        for row in videos.to_pylist():
            video, position = row["video_id"], row[POSITION.name]
            self.tries[video] += 1
            end = self.fate(video, self.tries[video]) or ("crashed" if video in self.poison else None)
            if end is not None:
                attempts.ends.append((video, end))
                return
            self.done(video)
            StreamState(position + 1, {}).write(self.run.spec.storage)

    def go(self, monkeypatch) -> str:
        said = io.StringIO()
        monkeypatch.setattr(recovery, "Attempts", Notes)
        monkeypatch.setattr(
            recovery, "losses", lambda lost, ends: [(video, end, end) for video, end in ends if video in lost]
        )
        ledger, spec = Ledger(self.folder), self.run.spec
        videos = self.run.workload.table()
        if spec.streams:
            todo, blocks = recovery.unseen(videos, spec, ledger, self.folder), self.in_order
        else:
            todo, blocks = recovery.lacking(videos, spec, ledger), self.blocks
        with VideoProgress(Console(file=said, width=200), len(todo)) as progress:
            self.progress = progress
            recovery.run_videos(todo, spec, self.folder, ledger, 4, blocks, progress)
        return said.getvalue()

    @property
    def failed(self) -> set[str]:
        table = self.folder.results()
        return set(table.filter(table["error"].is_valid())["video_id"].to_pylist())


@pytest.fixture(params=["blocks", "stream"])
def start(request, begin, tiny_checkpoint, tmp_path):
    options = {"method": ("tent",), "tent": {"stream": True, "lr": 0.01}} if request.param == "stream" else {}
    begun = begin("run", tiny_checkpoint, **(options or {"method": ("zero_shot",)}))

    def make(poison, fate) -> Cluster:
        begun.spec.storage.delete_folder()
        if begun.spec.streams:
            StreamState(0, {}).write(begun.spec.storage)
        return Cluster(begun, {*poison}, fate)

    return begun.workload.manifest.table["video_id"].to_pylist(), make


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_killer_is_given_up_and_no_other_whatever_nodes_go_meanwhile(start, data):
    ids, make = start
    poison = data.draw(st.sets(st.sampled_from(ids), max_size=3), "poison")
    # Of at most four tries; each good video has one that nothing disturbs, as there are five.
    lost = data.draw(st.dictionaries(st.sampled_from(ids), st.lists(CLAIM, max_size=4)), "lost")
    lost = {video: ends for video, ends in lost.items() if ends.count("crashed") < 2}
    cluster = make(poison, lambda video, tries: dict(enumerate(lost.get(video, ()), start=1)).get(tries))
    cluster.loses_all = bool(lost)
    with pytest.MonkeyPatch.context() as patch:
        cluster.go(patch)
    assert cluster.failed == poison
    assert set(cluster.folder.results()["video_id"].to_pylist()) == {*ids}


def test_where_nodes_go_each_time_the_run_stops_and_blames_nobody(start, monkeypatch):
    ids, make = start
    cluster = make((), lambda video, tries: "node" if video == ids[3] else None)
    with pytest.raises(RunError, match=r"1 videos? .*lost 5 times, each time with .*same command continues"):
        cluster.go(monkeypatch)
    assert cluster.failed == set()


def test_what_is_lost_each_time_without_a_death_of_its_own_is_given_up_and_says_how(start, monkeypatch):
    ids, make = start
    ends = ["memory", "unclear", "node"]
    cluster = make((), lambda video, tries: ends[tries % 3] if video == ids[2] else None)
    said = cluster.go(monkeypatch)
    assert cluster.failed == {ids[2]}
    (error,) = {one for one in cluster.folder.results()["error"].to_pylist() if one}
    assert "memory ran out (1 of 5 times)" in error
    assert "lost" in said


def test_what_has_its_rows_is_counted_though_its_block_was_lost(start, monkeypatch):
    """As where a process hung at a second video after it had given one up, or died when it had written its rows."""
    ids, make = start

    def hangs(video, tries):
        if video != ids[2]:
            return None
        cluster.done(video, "decoding hung")
        return "crashed"

    cluster = make({ids[4]}, hangs)
    cluster.tells = False
    said = cluster.go(monkeypatch)
    assert cluster.failed == {ids[2], ids[4]}
    assert said.splitlines()[-1].endswith(f"(2 failed): {len(ids)}/{len(ids)} videos")


def test_a_stream_learns_again_from_a_video_whose_rows_were_written_before_its_state(start, monkeypatch):
    ids, make = start

    def dies(video, tries):
        if video != ids[2] or tries > 1:
            return None
        cluster.done(video)
        return "crashed"

    cluster = make((), dies)
    cluster.tells = False
    cluster.loses_all = False
    cluster.go(monkeypatch)
    assert cluster.failed == set()
    if cluster.run.spec.streams:
        assert [cluster.tries[video] for video in ids] == [1, 1, 2, *[1] * (len(ids) - 3)]
