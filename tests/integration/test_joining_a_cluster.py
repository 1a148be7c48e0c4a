"""Which cluster is joined."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import ray
from zar_ray.cluster import connected
with connected():
    print("address", ray.get_runtime_context().gcs_address)
"""


def test_another_programs_own_cluster_is_left_alone(ray_cluster):
    """It ends with that program, and would take whoever joined it along."""
    import ray

    with tempfile.TemporaryDirectory(prefix="zar-ray-", dir="/tmp") as folder:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**environment, "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    (address,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("address ")]
    assert address != ray.get_runtime_context().gcs_address


def test_a_live_cluster_that_is_named_is_joined(ray_cluster):
    import ray

    alive = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "RAY_ADDRESS": alive},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"address {alive}"
