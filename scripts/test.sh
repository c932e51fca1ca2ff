#!/usr/bin/env bash
# All tests, on a real engine. Arguments go to pytest, whose summary is the last line.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh
. scripts/apt.sh

if can_install && ! command -v ssh-keygen >/dev/null; then # its keys sign in the tests
    apt_update >/dev/null
    apt_install openssh-client >/dev/null
fi

step 1/3 Python scripts/setup.sh
step 2/3 engine scripts/engine-up.sh
echo "[3/3] tests …"
exec .venv/bin/python -m pytest "$@"
