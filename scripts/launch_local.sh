#!/bin/bash
# scripts/launch_local.sh [--dry-run] [--uncommitted] N -- ARGS: runs N
# processes of `python -m dpo_jax.main ARGS` on this machine, as one run, with
# the python in use ($PYTHON, or the one on the PATH). The GPUs are divided among
# them; on the CPU each has its part of --xla_force_host_platform_device_count in
# XLA_FLAGS, or one device. Every line has the number of its process before it.
# The exit code is that of the first process that fails; the others then end by
# themselves.
set -u
source "$(dirname "$0")/launch_common.sh"
usage() { refuse "$1" 'scripts/launch_local.sh [--dry-run] N -- ARGS'; }
while [[ ${1:-} == --?* ]]; do
  case $1 in
    --dry-run) dry=1 ;;
    --uncommitted) uncommitted=1 ;;
    *) usage "$1: not a flag of this script" ;;
  esac
  shift
done
count=${1:-}
[[ $count =~ ^[1-9][0-9]{0,3}$ ]] || usage "'$count' is not a number of processes"
[ "${2:-}" = -- ] || usage "-- is missing after $count"
shift 2
python=${PYTHON:-python}
need "$python" 'source scripts/environment.sh, and export PYTHON'
committed
# They share the cores when they encode.
export DPO_JAX_PROCESSES_PER_HOST=$count

# The devices: numbers of GPUs, or a count on the CPU.
gpus=()
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
[ "${JAX_PLATFORMS:-}" = cpu ] && gpus=()
flag=--xla_force_host_platform_device_count
total=$count
[[ ${XLA_FLAGS:-} =~ $flag=([0-9]+) ]] && total=${BASH_REMATCH[1]}
[ ${#gpus[@]} -gt 0 ] && total=${#gpus[@]}
each=$((total / count))
[ $((each * count)) -eq "$total" ] ||
  usage "$total devices cannot be divided among $count processes"

if [ -n "${DPO_JAX_PORT:-}" ]; then
  port=$DPO_JAX_PORT
else # a free one, of the system's choice
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') || exit 2
fi
start() { # the process of a rank, in the place of this shell
  if [ ${#gpus[@]} -gt 0 ]; then
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]:$(($1 * each)):$each}")
    export CUDA_VISIBLE_DEVICES
  else
    export XLA_FLAGS="${XLA_FLAGS:-} $flag=$each"
  fi
  local command=("$python" -m dpo_jax.main "${@:2}"
    --coordinator_address="localhost:$port" --num_processes="$count"
    --process_id="$1")
  [ -z "$dry" ] || {
    words "${command[@]}"
    exit
  }
  exec "${command[@]}"
}
if [ -n "$dry" ]; then
  for ((rank = 0; rank < count; rank++)); do (start $rank "$@"); done
  exit 0
fi
tasks=()
for ((rank = 0; rank < count; rank++)); do
  start $rank "$@" > >(sed -u "s/^/[$rank] /") 2> >(sed -u "s/^/[$rank] /" >&2) &
  tasks+=($!)
done
trap 'kill -TERM "${tasks[@]}" 2>/dev/null' TERM
trap : INT # a terminal tells all of them itself
code=0
while [ ${#tasks[@]} -gt 0 ]; do
  wait -n -p ended "${tasks[@]}"
  last=$?
  [ -n "${ended:-}" ] || continue # a signal came to this shell
  [ $code -eq 0 ] && code=$last
  left=()
  for task in "${tasks[@]}"; do [ "$task" = "$ended" ] || left+=("$task"); done
  tasks=("${left[@]}")
done
exit $code
