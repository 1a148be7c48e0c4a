"""Run by every Python that tests start: importing PyTorch takes a fifth less without its collector of cycles.

Hundreds of processes do hardly anything else. What is collected later here is a few megabytes.
"""

import gc

gc.set_threshold(100_000, 50, 100)
