"""`ray job submit -- python jobs/pretrain.py --config FILE`: the same options and the same code as `zar train`."""

import sys

from zar_ray.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
