#!/usr/bin/env bash
# Makes the environment if it is missing and runs the tests: scripts/test.sh [PYTEST ARGS]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
# Up to four processes; `-n 0` runs the tests in one.
exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
