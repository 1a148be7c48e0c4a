"""`ray job submit -- python jobs/ablate.py --dataset k600 --sweep lr`: the same options and code as `zar ablate`."""

import sys

from zar_ray.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv[1:]]))
