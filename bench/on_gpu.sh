#!/bin/sh
# Ten minutes on one GPU: what a machine with a GPU, its own PyTorch and no network can say of zar-ray. See
# bench/on_gpu.py for the options, and bench/RESULTS.md for how to carry the packages that such a machine lacks.
set -eu
bench=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
carried=
if ls "$bench"/carried/*.whl >/dev/null 2>&1; then
    carried=$(mktemp -d)
    trap 'rm -rf "$carried"' EXIT
    for wheel in "$bench"/carried/*.whl; do
        "$python" -m zipfile -e "$wheel" "$carried"
    done
fi
PYTHONPATH="$bench/..:$bench${carried:+:$carried}${PYTHONPATH:+:$PYTHONPATH}"
# Nothing is taken from the folder that this is called from.
PYTHONSAFEPATH=1
export PYTHONPATH PYTHONSAFEPATH
"$python" "$bench/on_gpu.py" "$@"
