"""`ray job submit` against a real cluster: the package installed, and the checkout uploaded from another folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

UPLOAD_LIMIT = 10 * 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(repository, tmp_path_factory):
    """A head node of its own, on loopback, started from the checkout as a user would; ended by its process id."""
    home = tmp_path_factory.mktemp("home")
    folder = Path("/tmp") / f"zar-ray-head-{os.getpid()}"
    dashboard = free_port()
    # The virtual environment's python must be the one that jobs find.
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "HOME": str(home),
        "ZAR_HOME": str(home / "zar"),
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        *(f"{scripts}/ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--ray-client-server-port={free_port()}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"),
        f"--temp-dir={folder}",
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
        yield address, environment
    finally:
        head.terminate()
        head.wait(timeout=60)


@pytest.fixture(scope="module")
def small_demo(cluster, tiny_checkpoint):
    """The demo's data in the cluster's own ZAR_HOME, without its training: the checkpoint is given by hand."""
    from zar_ray.demo import demo_folder

    from zar_ray.config import validate
    from zar_ray.data.synthetic import SyntheticSpec, write_synthetic

    _, environment = cluster
    spec = validate if False else SyntheticSpec()
    write_synthetic(demo_folder(Path(environment["ZAR_HOME"])), spec)


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
