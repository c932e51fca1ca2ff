#!/usr/bin/env bash
# All tests, on a real engine. Arguments go to pytest, whose summary is the last line.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh

step 1/3 Python scripts/setup.sh
step 2/3 engine scripts/engine-up.sh
echo "[3/3] tests …"
exec .venv/bin/python -m pytest "$@"
