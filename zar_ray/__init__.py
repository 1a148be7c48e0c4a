"""Zero-shot action recognition by per-video prompt tuning, evaluated and served on a Ray cluster."""

import os

__version__ = "0.1.0"

# Read by OpenMP when PyTorch is loaded. By default its threads wait for each other in busy loops; where a decoding
# process shares their cores, each wait then lasts as long as the other process keeps a thread from running. Measured
# on two cores: five to fifteen times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
