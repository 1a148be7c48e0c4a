"""Processes that only receive, decode or pass on load no PyTorch: seconds, and hundreds of megabytes, of each."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    "module",
    [
        "zar_ray.serving.ingress_deployment",
        "zar_ray.serving.decoder_deployment",
        "zar_ray.video.sandbox",
        "zar_ray.evaluation.stages.decode",
        "zar_ray.training.messages",
    ],
)
def test_it_loads_no_pytorch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
