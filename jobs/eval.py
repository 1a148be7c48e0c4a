"""`ray job submit -- python jobs/eval.py --dataset k600`: the same options and the same code as `zar eval`."""

import sys

from zar_ray.commands.eval import eval_command

if __name__ == "__main__":
    sys.exit(eval_command(sys.argv[1:]))
