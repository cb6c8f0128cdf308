#!/usr/bin/env bash
# Checks and measures one GPU in at most six minutes: scripts/gpu_check.sh [ARGS]
# ARGS are those of `python -m dpo_jax.bench.gpu_check`, such as --out=FOLDER,
# --data=FILE.jsonl.gz, --tiny (a rehearsal on a CPU) and --list.
#   scripts/gpu_check.sh                 reaches the registries: makes an
#     environment with CUDA and kernels first, and one with TRL; both are kept,
#     and their time is not counted.
#   WHEELS=FOLDER scripts/gpu_check.sh   reaches nothing: takes $PYTHON (python3),
#     which has jax, flax, optax, orbax, torch and transformers, and the wheels
#     of FOLDER, made by scripts/gpu_wheels.sh; an empty WHEELS= adds none.
set -euo pipefail
if [ -z "${WHEELS+set}" ]; then
  export DPO_JAX_PYTHON=${DPO_JAX_PYTHON:-3.12} DPO_JAX_GPU=1
  source "$(dirname "$0")/environment.sh"
  way='registries reached, requirements-gpu.txt'
  trl=${TRL_PYTHON:-}
  if [ -z "$trl" ] && [[ " $* " != *" --list "* ]]; then
    trl=.venv-trl/bin/python
    if [ ! -e .venv-trl/made ] && [ -z "${DPO_JAX_VENV:-}" ]; then
      "$PYTHON" -m venv .venv-trl
      "$trl" -m pip install --quiet --disable-pip-version-check \
        trl==1.16.0 peft==0.21.2
      touch .venv-trl/made
    fi
  fi
else
  wheels=$(realpath "${WHEELS:-.}")
  way='nothing to fetch, no wheels'
  [ -z "$WHEELS" ] || way='nothing to fetch, a folder of wheels'
  PYTHON=$(command -v "${PYTHON:-python3}")
  trl=${TRL_PYTHON:-$PYTHON}
  cd "$(dirname "$0")/.."
  if [ -n "$WHEELS" ]; then
    site=$PWD/.venv-wheels
    rm -rf "$site"
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile \
      --disable-pip-version-check --no-cache-dir --target "$site" "$wheels"/*.whl
    # tokamax imports its profiler, of 32 MB, which only its own timing calls.
    mkdir -p "$site/xprof/cli/tools"
    touch "$site/xprof/cli/tools/get_kernel_stats_tool.py"
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
  fi
fi
exec "$PYTHON" -m dpo_jax.bench.gpu_check --way="$way" --trl_python="$trl" "$@"
