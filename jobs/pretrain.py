"""`ray job submit -- python jobs/pretrain.py --config FILE`: the same options and the same code as `zar train`."""

import sys

from zar_ray.commands.train import train_command

if __name__ == "__main__":
    sys.exit(train_command(sys.argv[1:]))
