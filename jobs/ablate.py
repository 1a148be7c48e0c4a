"""`ray job submit -- python jobs/ablate.py --dataset k600 --sweep lr`: the same options and code as `zar ablate`."""

import sys

from zar_ray.commands.eval import ablate_command

if __name__ == "__main__":
    sys.exit(ablate_command(sys.argv[1:]))
