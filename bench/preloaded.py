"""What the steps of `bench/on_gpu.sh` have in common, loaded once, before their processes are forked.

What cannot be loaded, such as torchvision beside a PyTorch that it was not built for, each step finds out by itself.
"""

import contextlib
import importlib

for _name in ("zar_ray", "torch", "open_clip", "gpu_steps"):
    with contextlib.suppress(Exception):
        importlib.import_module(_name)
