"""`ray job submit -- python jobs/eval.py --dataset k600`: the same options and the same code as `zar eval`."""

import sys

from zar_ray.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
