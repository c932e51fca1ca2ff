#!/usr/bin/env bash
# From a fresh clone to a recorded run. Arguments are overrides of the experiment's configuration.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh

step 1/4 Python scripts/setup.sh
step 2/4 engine scripts/engine-up.sh
if [ -e conf/local/default.yaml ]; then
    echo "[3/4] this machine: as noted in conf/local/default.yaml (repro doctor --write looks again)"
else
    show 3/4 "this machine" .venv/bin/repro doctor --write
fi

experiment=mnist
for override; do
    case $override in experiment=*) experiment= ;; esac # the user's own choice
done
if [ -n "$experiment" ] && ! .venv/bin/python scripts/can_fetch.py "$experiment"; then # it said why
    experiment=digits
    echo "MNIST cannot be fetched here: running experiment=$experiment instead, whose data is in the image"
fi
verbose=()
[ -z "${V:-}" ] || verbose=(-v)
set -- ${experiment:+"experiment=$experiment"} "${verbose[@]+"${verbose[@]}"}" "$@"
echo "[4/4] python -m repro.run $* …"
exec .venv/bin/python -m repro.run "$@"
