"""The Slurm script, run with stand-ins for Slurm's commands, Ray and Python: what it starts, and that it ends it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ray.scripts.scripts import cli

from zar_ray.commands.parsing import parse_run
from zar_ray.study.options import EvalConfig

# What a stand-in does after it has written down what it was called with. `srun` runs its command here, once; Ray's
# nodes stay until they are ended; the evaluation does as the test says. A cluster's list of nodes may be longer than a
# pipe holds.
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; seq -f other-%g 9000; fi',
    "srun": """
        while [ "${1#--}" != "$1" ]; do shift; done
        exec "$@"
    """,
    "hostname": "echo 10.0.0.1 fe80::1",
    "ray": 'if [ "$1" = start ]; then echo $$ >> "$RECORD/nodes"; exec sleep 60; fi',
    "python": 'if [ "$1" = - ]; then cat > "$RECORD/wait.py"; else eval "$EVALUATION"; fi',
}


@pytest.fixture
def script(deploy) -> Path:
    """The script."""
    return deploy / "slurm/eval.sbatch"


class Job:
    """A run of the script on two made-up nodes."""

    def __init__(self, script: Path, folder: Path, evaluation: str, **environment: str) -> None:
        self.record = folder
        programs = folder / "programs"
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/activate").touch()
        programs.mkdir()
        for name, does in STAND_INS.items():
            program = programs / name
            program.write_text(
                f'#!/bin/bash\nprintf "%s\\0" {name} "$@" > "$RECORD/call.$BASHPID.$EPOCHREALTIME"\n{does}\n'
            )
            program.chmod(0o755)
        slurm = {
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "4",
        }
        path = f"{programs}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            ["bash", str(script), "--dataset", "k600", "--output", "/shared/runs", "--name", "k600"],
            env={**os.environ, **slurm, "PATH": path, "RECORD": str(folder), "EVALUATION": evaluation, **environment},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def calls(self, *words: str) -> list[list[str]]:
        """The calls that begin with some words."""
        every = [file.read_text().split("\0")[:-1] for file in self.record.glob("call.*")]
        return [call for call in every if call[: len(words)] == [*words]]

    def nodes(self) -> list[int]:
        """The process ids of Ray's nodes."""
        return [int(line) for line in (self.record / "nodes").read_text().split()]

    def when(self, ready) -> None:
        limit = time.monotonic() + 120
        while not ready():
            assert time.monotonic() < limit, self.calls()
            time.sleep(0.02)


@pytest.fixture
def begin(script, tmp_path):
    """Begins a job; whatever it left is ended at last, by its session."""
    begun: list[Job] = []

    def make(evaluation: str = "true", **environment: str) -> Job:
        begun.append(Job(script, tmp_path / "job", evaluation, **environment))
        return begun[-1]

    (tmp_path / "job").mkdir()
    yield make
    for job in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
        job.process.communicate()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.process
def test_it_is_a_bash_script(script):
    subprocess.run(["bash", "-n", script], check=True)
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text("utf-8"), re.MULTILINE))
    assert "requeue" in directives
    assert re.fullmatch(r"\d\d:\d\d:\d\d", directives["time"])
    assert directives["signal"] == "B:USR1@120"
    assert directives["open-mode"] == "append"


@pytest.mark.process
def test_a_head_and_workers_and_one_evaluation_on_the_head(begin):
    # The evaluation waits for both nodes, so that each has been called.
    job = begin('until [ "$(wc -l < "$RECORD/nodes")" = 2 ]; do sleep 0.02; done')
    _, error = job.process.communicate(timeout=60)
    assert job.process.returncode == 0, error
    starts = job.calls("ray", "start")
    (head,) = [call for call in starts if "--head" in call]
    (worker,) = [call for call in starts if "--head" not in call]
    for call in starts:
        # Ray's own parser takes them.
        options = cli.commands["start"].make_context("start", call[2:]).params
        assert (options["num_cpus"], options["num_gpus"], options["block"]) == (16, 4, True)
    address = f"10.0.0.1:{cli.commands['start'].make_context('start', head[2:]).params['port']}"
    assert f"--address={address}" in worker
    ((_, script, *words),) = job.calls("python", "jobs/eval.py")
    assert script == "jobs/eval.py"
    options = parse_run(EvalConfig, words, "zar eval").options
    assert (options.address, options.dataset, options.output) == (address, "k600", "/shared/runs")
    (waits,) = job.calls("python", "-")
    assert waits[2:] == [address, "2"]
    compile((job.record / "wait.py").read_text(), "wait.py", "exec")
    # One step is kept off the head's node: the workers'.
    (of_workers,) = [call for call in job.calls("srun") if "--exclude=node-a" in call]
    assert "bash" in of_workers
    assert all("--nodelist=node-a" in call for call in job.calls("srun") if call != of_workers)
    assert not any(alive(pid) for pid in job.nodes())


@pytest.mark.process
@pytest.mark.parametrize("status", [1, 3])
def test_a_failed_evaluation_is_the_jobs_failure_and_leaves_nothing(begin, status):
    job = begin(f'until [ "$(wc -l < "$RECORD/nodes")" = 2 ]; do sleep 0.02; done; exit {status}')
    job.process.communicate(timeout=60)
    assert job.process.returncode == status
    assert not any(alive(pid) for pid in job.nodes())
    assert not job.calls("scontrol", "requeue")


@pytest.mark.process
@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_everything_and_before_the_time_limit_asks_for_more(begin, sent):
    job = begin("exec sleep 60")
    job.when(lambda: (job.record / "nodes").exists() and len(job.nodes()) == 2)
    job.when(lambda: job.calls("python", "jobs/eval.py"))
    job.process.send_signal(sent)
    job.process.communicate(timeout=60)
    assert job.process.returncode == 143
    assert [call[2] for call in job.calls("scontrol", "requeue")] == (["4711"] if sent == signal.SIGUSR1 else [])
    assert not any(alive(pid) for pid in job.nodes())


@pytest.mark.process
def test_begun_again_it_is_the_same_command(begin):
    job = begin("true", SLURM_RESTART_COUNT="1")
    job.process.communicate(timeout=60)
    ((_, _, *words),) = job.calls("python", "jobs/eval.py")
    assert shlex.join(words).endswith("--dataset k600 --output /shared/runs --name k600")


@pytest.mark.process
def test_one_node_has_no_workers(begin):
    job = begin("true", SLURM_JOB_NUM_NODES="1")
    job.process.communicate(timeout=60)
    assert all("--head" in call for call in job.calls("ray", "start"))
