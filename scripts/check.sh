#!/usr/bin/env bash
# Lint, types and the tests that need no engine: under a minute. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh

step 1/5 Python scripts/setup.sh
step 2/5 lint .venv/bin/ruff check
step 3/5 format .venv/bin/ruff format --check
step 4/5 types .venv/bin/mypy
show 5/5 "tests without an engine" .venv/bin/python -m pytest -q -n auto -m "not engine and not tracking and not slow" "$@"
