#!/usr/bin/env bash
# Makes the environment if need be and runs the tests: scripts/test.sh [PYTEST ARGS]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
exec "$PYTHON" -m pytest "$@"
