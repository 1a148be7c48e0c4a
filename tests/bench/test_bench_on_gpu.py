"""Ten minutes on one GPU, in miniature on the CPU; and what becomes of steps that hang, die or find something wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

STUB = """
import os, subprocess, sys, time
ENCODER_BATCHES, TEXT_BATCHES, LSTM_METHODS = (64,), (1,), ("memo",)
class WrongError(Exception): pass
class NotMeasuredError(Exception): pass
class Size:
    of = staticmethod(lambda dry: dry)
def good(size, note): note(a=1.5, b=[2]); note(c="more")
def wrong(size, note): note(a=3); raise WrongError("off by one")
def absent(size, note): raise NotMeasuredError("there is no GPU")
def surprised(size, note): raise KeyError("nobody foresaw\\nthis")
def dies(size, note): note(a=4); os._exit(9)
def hangs(size, note):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note(a=5, c=child.pid)
    time.sleep(600)
"""
DRIVER = """
import json, sys
from dataclasses import asdict
from on_gpu import Step, run_step
if __name__ == "__main__":
    steps = [Step(name, 60, ("json",), {"a": "", "b": ""}) for name in sys.argv[1:]]
    steps.append(Step("good", 60, ("json", "no_such_package"), {"a": "", "b": ""}))
    print(json.dumps([asdict(run_step(step, True, 3.0 if step.name == "hangs" else 60.0)) for step in steps]))
"""
# Packages of these names are not to be found.
ALONE = """
import sys
from importlib.machinery import PathFinder

class Alone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Alone
"""


def modules_elsewhere(results: str) -> set[str]:
    """The packages of this environment that a machine which is as bench/RESULTS.md says does not have."""
    command = re.search(r"--dest bench/carried \\\n(.*?)```", results, re.DOTALL)
    there = re.search(r"little is left\. (.*?) are taken to\s+be there", results, re.DOTALL)
    carried = {re.sub(r"[<>=].*", "", name.strip("'\\")) for name in command[1].split()} - {""}
    found, more = set(), {*re.split(r",\s+|\s+and\s+", there[1]), "torch", "torchvision"}
    # What is carried comes without what it needs.
    while more:
        name = more.pop()
        found.add(canonicalize_name(name))
        needed = (Requirement(one) for one in requires(name) or ())
        more |= {
            one.name
            for one in needed
            if (one.marker is None or one.marker.evaluate({"extra": ""})) and canonicalize_name(one.name) not in found
        }
    found |= {canonicalize_name(name) for name in carried}
    return {
        module
        for module, distributions in packages_distributions().items()
        if module.isidentifier()
        and module != "zar_ray"
        and module not in sys.stdlib_module_names
        and not {canonicalize_name(name) for name in distributions} & found
    }


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended; whoever inherits one that has may be late to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def on_gpu(load_bench, repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "bench"))
    return load_bench("on_gpu")


@pytest.mark.process
def test_every_step_runs_in_miniature_with_what_such_a_machine_has(repository, tmp_path, tmp_path_factory, on_gpu):
    alone = tmp_path_factory.mktemp("alone")
    place = tmp_path / "figures.json"
    hidden = modules_elsewhere((repository / "bench" / "RESULTS.md").read_text())
    assert {"ray", "mlflow", "numba", "pytest"} <= hidden
    (alone / "sitecustomize.py").write_text(ALONE.replace("HIDDEN", repr(hidden)))
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(alone)}
    command = [str(repository / "bench" / "on_gpu.sh"), "--dry", "--json", str(place)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert [file.name for file in tmp_path.iterdir()] == [place.name]
    report = json.loads(place.read_text())
    steps = report["steps"]
    assert report["dry"] is True
    assert list(steps) == [step.name for step in on_gpu.STEPS]
    found = {name: (step["status"], step["why"]) for name, step in steps.items()}
    on_a_gpu_alone = {"synchronisations", "encoder_compiled"}
    expected = {name: "not measured" if name in on_a_gpu_alone else "ran" for name in steps}
    assert {name: status for name, (status, _) in found.items()} == expected, found
    assert done.returncode == 0, done.stderr
    for step in on_gpu.STEPS:
        figures = steps[step.name]["figures"]
        assert figures.keys() == step.figures.keys()
        assert done.stdout.count(f"\n{step.name} — ") + done.stdout.startswith(f"{step.name} — ") == 1
    # There is no GPU: what only one tells is null, and the table says so.
    assert steps["machine"]["figures"]["gpu"] is None
    assert steps["text_step"]["figures"]["kernels_8"] is None
    assert steps["text_step"]["figures"]["milliseconds_8"] > 0
    assert steps["out_of_memory"]["figures"]["refused"] > 0
    assert steps["decode"]["figures"]["videos_per_second"] > 0
    assert done.stdout.count("not measured") > 10


@pytest.mark.process
def test_steps_that_hang_or_die_cost_themselves_alone_and_keep_what_they_measured(repository, tmp_path):
    for name, text in (("gpu_steps.py", STUB), ("driver.py", DRIVER)):
        (tmp_path / name).write_text(text)
    (tmp_path / "on_gpu.py").write_text((repository / "bench" / "on_gpu.py").read_text())
    names = ["hangs", "dies", "surprised", "wrong", "absent", "good"]
    done = subprocess.run(
        [sys.executable, "driver.py", *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *told, missing = json.loads(done.stdout)
    outcomes = dict(zip(names, told, strict=True))
    assert [(one["status"], one["why"]) for one in told] == [
        ("failed", "took longer than the 3 s that it had"),
        ("failed", "its process ended with status 9"),
        ("failed", "KeyError: 'nobody foresaw\\nthis'"),
        ("wrong", "off by one"),
        ("not measured", "there is no GPU"),
        ("ran", None),
    ]
    assert [one["figures"]["a"] for one in told] == [5, 4, None, 3, None, 1.5]
    assert outcomes["good"]["figures"]["b"] == [2]
    assert outcomes["good"]["details"] == {"c": "more"}
    assert (missing["status"], missing["why"]) == ("not measured", "needs no_such_package")
    assert missing["figures"] == {"a": None, "b": None}
    assert not runs(outcomes["hangs"]["details"]["c"]), "what a step started outlived it"


@pytest.mark.parametrize(("only", "status"), [(["machine", "decode"], 0), (["decode", "lstm"], 1)])
def test_what_no_time_was_left_for_is_not_measured_and_a_check_that_did_not_run_did_not_hold(
    on_gpu, capsys, tmp_path, only, status
):
    place = tmp_path / "figures.json"
    assert on_gpu.main(["--dry", "--seconds", "0", "--json", str(place), "--only", *only]) == status
    steps = json.loads(place.read_text())["steps"]
    assert {step["why"] for step in steps.values()} == {"no time was left"}
    assert steps.keys() == set(only)
    assert capsys.readouterr().out.count("— not measured (0 s): no time was left") == 2


def test_mistakes_are_one_line(on_gpu, capsys, tmp_path):
    assert on_gpu.main(["--json", str(tmp_path / "nowhere" / "figures.json")]) == 2
    assert capsys.readouterr().err.endswith("figures.json: there is no such folder\n")


@pytest.mark.process
@pytest.mark.parametrize("breaks", ["raise RuntimeError('operator torchvision::nms does not exist')", "os._exit(3)"])
def test_a_library_that_cannot_be_loaded_costs_those_that_need_it_alone(repository, tmp_path, breaks):
    (tmp_path / "open_clip.py").write_text(f"import os\n{breaks}\n")
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{tmp_path}:{environment.get('PYTHONPATH', '')}"
    place = tmp_path / "figures.json"
    only = ["--only", "machine", "lstm", "decode"]
    command = [str(repository / "bench" / "on_gpu.sh"), "--dry", "--json", str(place), *only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    steps = json.loads(place.read_text())["steps"]
    assert {name: step["status"] for name, step in steps.items()} == {
        "machine": "ran",
        "lstm": "failed",
        "decode": "ran",
    }
    assert steps["lstm"]["why"] in (
        "RuntimeError: operator torchvision::nms does not exist",
        "its process ended with status 3",
    )
    assert done.returncode == 1


def test_a_method_that_fails_hides_no_others_numbers(on_gpu, monkeypatch):
    steps, noted = sys.modules["gpu_steps"], {}

    def compare(place, names, size):
        if names == ("zar",):
            raise RuntimeError("CUDA error: invalid argument")
        return {"before": 1e-6, "after": 0.2 if names == ("tpt",) else 1e-5}

    monkeypatch.setattr(steps, "save_tiny", lambda folder, **parts: folder)
    monkeypatch.setattr(steps, "_compare", compare)
    with pytest.raises(steps.WrongError) as caught:
        steps.methods(steps.Size(dry=True), lambda **figures: noted.update(figures))
    assert str(caught.value) == (
        "zar: RuntimeError: CUDA error: invalid argument; tpt: logits after differ by 2.0e-01, more than 5e-02"
    )
    total = 1 + len(noted["differences_after"])
    assert noted["compared"] == f"{total - 1} of {total}"
    assert noted["difference_after"] == 0.2


def test_wrong_numbers_are_found(on_gpu, monkeypatch):
    steps = sys.modules["gpu_steps"]
    noted = {}
    for worst, right in ((1e-3, True), (1e-1, False), (float("nan"), False)):
        monkeypatch.setattr(steps, "save_tiny", lambda folder, **parts: folder)
        monkeypatch.setattr(steps, "_compare", lambda *told, worst=worst: {"before": 0.0, "after": worst})
        for step in (steps.methods, steps.lstm):
            if right:
                step(steps.Size(dry=True), noted.update)
            else:
                with pytest.raises(steps.WrongError, match="more than 5e-02"):
                    step(steps.Size(dry=True), lambda **figures: noted.update(figures))
    assert noted["difference_memo"] != noted["difference_memo"]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 9.89e14),
        ("NVIDIA H100 PCIe", 7.56e14),
        ("NVIDIA L4", 1.21e14),
        ("NVIDIA L40S", 3.62e14),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200 NVL", 8.35e14),
        ("NVIDIA A100-SXM4-80GB", 3.12e14),
    ],
)
def test_stated_peaks_are_the_named_gpus(on_gpu, name, peak):
    assert sys.modules["gpu_steps"].stated_peak(name) == peak
    assert sys.modules["gpu_steps"].stated_peak(f"Some {name}") is None
