#!/usr/bin/env bash
# Hundreds of short runs, each with a real fault. Arguments go to `python -m tests.faults`, whose table comes last.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh

step 1/3 Python scripts/setup.sh
step 2/3 engine scripts/engine-up.sh
echo "[3/3] faults …"
exec .venv/bin/python -m tests.faults "$@"
