#!/usr/bin/env bash
# Checks format and lint: scripts/lint.sh; `scripts/lint.sh --fix` repairs.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
if [ "${1:-}" = --fix ]; then
  "$PYTHON" -m ruff format . && "$PYTHON" -m ruff check --fix .
else
  "$PYTHON" -m ruff format --check . && "$PYTHON" -m ruff check .
fi
