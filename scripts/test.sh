#!/usr/bin/env bash
# Makes the environment if it is missing and runs the tests:
#   scripts/test.sh [--python=3.12] [--jax=0.11.2] [--quick] [PYTEST ARGS]
# --quick: the half that depends most on jax and takes least time; a path among
# the PYTEST ARGS does not narrow it.
set -euo pipefail
quick=()
while [ $# -gt 0 ]; do
  case $1 in
    --python=*) export DPO_JAX_PYTHON=${1#*=} ;;
    --jax=*) export DPO_JAX_JAX=${1#*=} ;;
    --quick)
      # Without the manual's commands. Named files are not ignored by --ignore.
      shopt -s extglob
      root=$(dirname "$0")/..
      quick=(-m 'not slow' tests/losses tests/models tests/storage
        $(cd "$root" && eval 'ls tests/test_!(docs*|extending).py'))
      ;;
    *) break ;;
  esac
  shift
done
source "$(dirname "$0")/environment.sh"
# Up to four processes; `-n 0` runs the tests in one.
exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist worksteal \
  "${quick[@]}" "$@"
