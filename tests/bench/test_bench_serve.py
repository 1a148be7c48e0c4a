"""The service's bench: what its numbers come to, and a run against a small service."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console
from serving_backends import served_here

from zar_ray.adaptation.rankings import RankedLabel
from zar_ray.client import ServiceError


@pytest.fixture(scope="module")
def bench(load_bench):
    return load_bench("serve")


@pytest.fixture(scope="module")
def service(tiny_checkpoint, tmp_path_factory):
    """A service that takes two requests at a time, and keeps one waiting."""
    limits = {"concurrent": 2, "queued": 1, "retry_after": 1}
    options = {"checkpoint": tiny_checkpoint, "limits": limits}
    with served_here(options, tmp_path_factory.mktemp("uploads")) as address:
        yield address


def classification(engine=0.0):
    return SimpleNamespace(timings=SimpleNamespace(decode=engine, encode=engine, adapt=engine))


class TestArithmetic:
    def test_of_the_direct_side(self, bench):
        direct = bench.summarise_direct([(0.01, 0.09), (0.02, 0.08), (0.03, 0.17)])
        assert (direct.videos, direct.decode, direct.adapt) == (3, 0.02, 0.09)
        assert direct.p50 == pytest.approx(0.1)
        assert direct.p95 == pytest.approx(0.19)
        assert direct.per_second == pytest.approx(3 / 0.4)

    def test_of_a_load(self, bench):
        """The first fifth and what comes after the end are not counted, but for refusals and errors."""
        ok = [bench.Answer(at, 0.5 + at / 100, "ok", 0.4) for at in (1.0, 1.9, 2.0, 4.0, 6.0, 10.0, 10.1)]
        rest = [bench.Answer(at, 0.01, code) for at, code in ((0.1, "overloaded"), (9, "overloaded"), (11, "timeout"))]
        load = bench.summarise(3, [ok[:4] + rest, ok[4:]], 10.0)
        assert (load.clients, load.answered, load.refused, load.others) == (3, 7, 2, {"timeout": 1})
        assert load.per_second == 4 / 16
        assert load.p50 == pytest.approx(0.55)
        assert load.p95 == pytest.approx(0.6 - 0.15 * 0.04)
        assert load.overhead_p50 == pytest.approx(0.15)
        assert load.overhead_p95 == pytest.approx(load.p95 - 0.4)

    def test_of_no_answers(self, bench):
        load = bench.summarise(2, [[bench.Answer(5.0, 0.01, "overloaded")]], 10.0)
        assert (load.answered, load.refused, load.others, load.per_second) == (0, 1, {}, 0.0)
        assert load.p50 is load.p95 is load.overhead_p50 is load.overhead_p95 is None

    def test_of_scores(self, bench):
        ours = [RankedLabel(label="a", score=0.75), RankedLabel(label="b", score=0.25)]
        assert bench.largest_difference(ours, {"b": 0.5, "a": 0.7, "c": 0.0}) == 0.25

    @pytest.mark.parametrize(("rates", "goodput"), [((10.0, 20.0, 16.0), 0.9), ((0.0,), None)])
    def test_of_goodput(self, bench, rates, goodput):
        def load(rate):
            return bench.Load(1, 1, 0, {}, rate, None, None, None, None)

        report = bench.Report({}, {}, {}, None, tuple(map(load, rates)), load(18.0), 0.0, {}, {}, {})
        assert report.peak == max(rates)
        assert report.goodput == goodput


class Clock:
    """Stands still but for those who sleep, and for `tick`."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def tick(self):
        self.now += 0.125


@pytest.fixture
def clock(bench, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


class TestLoads:
    def test_clients_ask_together_and_again_at_once_until_the_end(self, bench, clock):
        # An eighth of a second passes whenever all three wait for their answers.
        together = threading.Barrier(3, action=clock.tick, timeout=20)

        def once():
            together.wait()
            return classification(0.01)

        answers = bench.run_load(lambda: once, 3, 0.5)
        assert sorted(one.at for one in answers) == [0.125] * 3 + [0.25] * 3 + [0.375] * 3 + [0.5] * 3
        assert {(one.code, one.seconds) for one in answers} == {("ok", 0.125)}
        assert all(one.engine == pytest.approx(0.03) for one in answers)
        assert set(clock.slept) == {0.0}

    def test_who_was_refused_waits_as_long_as_he_was_told_and_not_beyond_the_end(self, bench, clock):
        def once():
            raise ServiceError("http://x", "full", 503, "overloaded", "r", 0.25)

        answers = bench.run_load(lambda: once, 1, 0.625)
        assert [one.at for one in answers] == [0.0, 0.25, 0.5]
        assert {(one.code, one.engine) for one in answers} == {("overloaded", None)}
        assert clock.slept == [0.25, 0.25, 0.125]


@pytest.mark.slow
def test_a_run(bench, service, tiny_checkpoint, tmp_path, capsys):
    path = tmp_path / "serve.json"
    words = f"--url {service} --checkpoint {tiny_checkpoint} --class-count 5 --clients 1 2 --seconds 1 --direct 2"
    limits = f"--concurrent 2 --queued 1 --overload 3 --threads 1 --json {path}"
    assert bench.main([*words.split(), *limits.split()]) == 0
    report = json.loads(path.read_text())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert [load["clients"] for load in report["loads"]] == [1, 2]
    for load in report["loads"]:
        assert load["answered"] > 0
        assert load["refused"] == 0
        assert 0 < load["overhead_p50"] < load["p50"] <= load["p95"]
    assert report["overload"]["clients"] == 9
    assert report["overload"]["refused"] > 0
    assert not any(load["others"] for load in (*report["loads"], report["overload"]))
    assert report["difference"] < 1e-5
    assert report["direct"]["videos"] == 4
    assert report["goodput"] > 0
    assert str(tiny_checkpoint.parent) not in path.read_text()
    said = capsys.readouterr().out
    assert "overhead at one client" in said
    assert "of the peak" in said


def test_shows_what_there_is(bench):
    direct = bench.Direct(2, 0.01, 0.09, 0.1, 0.12, 10.0)
    load = bench.Load(1, 50, 0, {}, 9.0, 0.12, 0.2, 0.02, 0.05)
    full = bench.Load(96, 40, 30, {"timeout": 2}, 8.0, 3.0, 4.0, 2.0, 3.0)
    machine = {"cpu": "A CPU", "cpus": 2, "torch": "2", "load_average": 0.5}
    video = {"bytes": 2048, "frames": 20, "width": 64, "height": 48}
    memory, cpu = {"ingress": 300 * 2**20}, {"direct": 0.15, "ingress": 0.004}
    report = bench.Report(
        machine, {"class_count": 5}, video, direct, (load,), full, 1e-7, memory, {"ingress": 290 * 2**20}, cpu
    )
    console = Console(file=io.StringIO(), width=120)
    bench.show(report, console)
    said = console.file.getvalue()
    assert "1 │" not in said
    for part in (
        "0.90",
        "1.20",
        "1.67",
        "2 timeout",
        "20.0 ms beyond",
        "0.89 of the peak",
        "300 MiB at most, +10",
        "150.0 direct",
        "ingress 4.0",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--url http://127.0.0.1:1", "--url goes with --checkpoint"),
        ("--json nowhere/b.json", "there is no such folder"),
        ("--url http://127.0.0.1:1 --checkpoint {checkpoint}", "nothing answers there"),
    ],
)
def test_mistakes_are_one_line(bench, tiny_checkpoint, capsys, words, said):
    assert bench.main(words.format(checkpoint=tiny_checkpoint).split()) != 0
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.startswith("bench: ")
    assert output.err.count("\n") == 1


def test_another_model_is_noticed(bench, service, tmp_path, capsys):
    other = bench.make_checkpoint(tmp_path / "other.safetensors")
    assert bench.main(["--url", service, "--checkpoint", str(other), "--class-count", "3"]) == 2
    assert "another model" in capsys.readouterr().err


@pytest.mark.process
def test_openmp_s_threads_wait_as_the_service_s_do(repository):
    """They would in busy loops, were PyTorch loaded before zar_ray."""
    program = (
        "import os, sys, builtins; sys.path.insert(0, 'bench'); load = builtins.__import__\n"
        "def watched(name, *rest, **named):\n"
        "    assert name != 'torch' or 'OMP_WAIT_POLICY' in os.environ\n"
        "    return load(name, *rest, **named)\n"
        "builtins.__import__ = watched\n"
        "import serve; print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "PASSIVE"
