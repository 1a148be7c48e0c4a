"""A device that a cluster's nodes cannot use ends a run before it starts; on Ray itself."""

from __future__ import annotations

import pytest
import torch

from zar_ray.cluster import connected
from zar_ray.errors import RunError
from zar_ray.evaluation.preflight import check_devices


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the nodes have a GPU")
def test_a_task_on_each_node_says_what_its_pytorch_can_use(ray_cluster):
    with connected():
        check_devices(0.0, "cpu")
        with pytest.raises(RunError, match=r"^node \S+: device cuda: there is .*choose --device cpu$"):
            check_devices(0.0, "cuda")
