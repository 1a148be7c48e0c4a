"""`ray job submit` against a real cluster: the package installed, and the checkout uploaded from another folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

UPLOAD_LIMIT = 10 * 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(repository, tmp_path_factory, processes_below):
    """A head node of its own, on loopback, started from the checkout as a user would; ended by its process id."""
    home = tmp_path_factory.mktemp("home")
    folder = Path("/tmp") / f"zar-ray-head-{os.getpid()}"
    dashboard, metrics = free_port(), free_port()
    # The virtual environment's python must be the one that jobs find.
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "HOME": str(home),
        "ZAR_HOME": str(home / "zar"),
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_metrics_report_interval_ms": "500",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        *(f"{scripts}/ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--ray-client-server-port={free_port()}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"),
        *(f"--metrics-export-port={metrics}", f"--temp-dir={folder}"),
    ]
    log = home / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            command, cwd=repository, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        limit = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
                break
            except OSError:
                if head.poll() is not None or time.monotonic() > limit:
                    pytest.fail(f"the head node did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
        yield address, {**environment, "METRICS": f"http://127.0.0.1:{metrics}/metrics"}
    finally:
        # Asked nicely, the head node waits half a minute for its own processes.
        started = [head.pid, *processes_below(head.pid)]
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait(timeout=60)


def submit(cluster, folder: Path, *words: str) -> str:
    address, environment = cluster
    done = subprocess.run(
        [f"{Path(sys.executable).parent}/ray", "job", "submit", "--address", address, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def evaluation(dataset: Path, checkpoint: Path, *more: str) -> list[str]:
    options = ["--checkpoint", str(checkpoint), "--limit", "3", "--views.frames", "2", "--method", "zar"]
    return ["--", "python", "jobs/eval.py", "--dataset", str(dataset), *options, *more]


def test_submitted_from_the_checkout_where_the_package_is_installed(cluster, video_folder, tiny_checkpoint, repository):
    said = submit(cluster, repository, *evaluation(video_folder, tiny_checkpoint))
    home = Path(cluster[1]["ZAR_HOME"])
    (run,) = (home / "runs").glob(f"{video_folder.name}_*")
    summary = json.loads((run / "run.json").read_text())["study"]["whole"]
    assert (summary["videos"], summary["failed"]) == (3, 0)
    assert summary["mlflow"]["run_id"]
    assert (home / "runs" / "mlflow.db").is_file()
    assert str(run) in said
    assert not (repository / "mlflow.db").exists()


def told(cluster) -> dict[str, float]:
    """What the node's metrics port has of this package's counts, by measure and by outcome or stage."""
    with urllib.request.urlopen(cluster[1]["METRICS"], timeout=10) as answer:
        lines = re.findall(r"^(ray_zar_\w+){(.*)} (\S+)$", answer.read().decode(), re.MULTILINE)
    counts: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in lines:
        (of,) = re.findall(r'(?:outcome|stage)="(\w+)"', labels) or [""]
        counts[f"{name} {of}"] += float(value)
    return counts


def test_its_nodes_metrics_port_tells_of_the_job_before(cluster):
    expected = {
        "ray_zar_videos_total finished": 3,
        **{f"ray_zar_stage_seconds_count {stage}": 3 for stage in ("decode", "encode", "adapt")},
    }
    limit = time.monotonic() + 20
    while not expected.items() <= (counts := told(cluster)).items() and time.monotonic() < limit:
        time.sleep(0.5)
    assert expected.items() <= counts.items(), counts
    assert "ray_zar_videos_total failed" not in counts
    assert counts["ray_zar_stage_seconds_sum adapt"] > 0


def test_submitted_with_the_checkout_as_working_dir_from_another_folder(
    cluster, video_folder, tiny_checkpoint, repository, tmp_path
):
    output = tmp_path / "results"
    command = evaluation(video_folder, tiny_checkpoint, "--output", str(output), "--no-mlflow")
    submit(cluster, tmp_path, "--working-dir", str(repository), *command)
    (run,) = output.glob(f"{video_folder.name}_*")
    assert json.loads((run / "run.json").read_text())["study"]["whole"]["finished"] == 3
    assert packed_size(repository) < UPLOAD_LIMIT


def packed_size(repository: Path) -> int:
    """Bytes of what Ray uploads: all that .gitignore leaves, zipped."""
    listed = subprocess.run(
        ["git", "-C", str(repository), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        check=True,
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in listed.stdout.decode().split("\0"):
            if name and (repository / name).is_file():
                archive.write(repository / name, name)
    return content.tell()


def asked(cluster, path: str, body: dict[str, object] | None = None) -> dict[str, str]:
    """The answer of the cluster's jobs server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{cluster[0]}/api/jobs/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_a_job_that_is_stopped_says_that_the_same_command_continues_it(
    cluster, video_folder, tiny_checkpoint, repository, tmp_path
):
    words = evaluation(video_folder, tiny_checkpoint, "--output", str(tmp_path), "--no-mlflow")[2:]
    words[0] = str(repository / words[0])
    job = asked(cluster, "", {"entrypoint": f"python {shlex.join(words)}"})["submission_id"]

    def until(path: str, name: str, wanted: str) -> str:
        limit = time.monotonic() + 120
        while wanted not in (said := str(asked(cluster, f"{job}{path}")[name])):
            assert time.monotonic() < limit, said
            time.sleep(0.1)
        return said

    until("/logs", "logs", "loading ")
    asked(cluster, f"{job}/stop", {})
    until("", "status", "STOPPED")
    said = until("/logs", "logs", "zar: interrupted; what is finished is kept, and the same command continues it\n")
    assert "Traceback" not in said
