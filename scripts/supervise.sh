#!/bin/bash
# scripts/supervise.sh [--tries=5] [--wait=2] -- ARGS: keeps a run going with
# nobody there. It runs `python -m dpo_jax.main ARGS` with the python in use
# ($PYTHON, or the one on the PATH), or the command that ARGS are if they do not
# begin with a flag, such as `scripts/launch_local.sh 2 -- ...`. Exit codes 0
# (done) and 2 (bad input) end it with that code. Every other end (143, a crash,
# a kill, a run that is stuck) starts the command again, which continues the run.
# After so many tries in a row without a newer checkpoint it ends with the last
# code. A signal to this script goes to the run, which saves its step, and ends
# both. In a bucket the steps are not seen: every try counts there.
set -u
usage() {
  echo "$1; fix: scripts/supervise.sh [--tries=N] [--wait=SECONDS] -- ARGS" >&2
  exit 2
}
most=5 pause=2
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --tries=*) most=${1#*=} ;;
    --wait=*) pause=${1#*=} ;;
    *) usage "'$1' is not a flag of this script" ;;
  esac
  shift
done
[[ $most =~ ^[1-9][0-9]{0,5}$ ]] || usage "--tries=$most is not allowed"
[[ $pause =~ ^[0-9]{1,5}$ ]] || usage "--wait=$pause is not allowed"
[ "${1:-}" = -- ] && [ $# -gt 1 ] || usage "-- and ARGS are missing"
shift
command=("$@")
[[ $1 == -* ]] && command=("${PYTHON:-python}" -m dpo_jax.main "$@")

workdir= next=
for word in "$@"; do
  [ -n "$next" ] && workdir=$word && next=
  case $word in
    --workdir=*) workdir=${word#*=} ;;
    --workdir) next=1 ;;
  esac
done
newest() { # the number of the newest checkpoint; '' = none
  local name last=
  for name in "$workdir"/checkpoints/[0-9]*; do
    name=${name##*/}
    [[ $name =~ ^[0-9]+$ ]] && [ "$name" -gt "${last:--1}" ] && last=$name
  done
  echo "$last"
}
task= stopped=
pass_on() {
  stopped=1
  [ -n "$task" ] && kill -"$1" "$task" 2>/dev/null
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

tries=0
while true; do
  before=$(newest)
  "${command[@]}" &
  task=$!
  while true; do
    wait "$task"
    code=$?
    # A signal to this script ends the wait, not the run.
    kill -0 "$task" 2>/dev/null || break
  done
  task=
  case $code in 0 | 2) exit $code ;; esac
  [ -n "$stopped" ] && exit $code
  after=$(newest)
  if [ "$after" = "$before" ]; then tries=$((tries + 1)); else tries=0; fi
  where="exit code $code, checkpoint ${after:-none}"
  if [ $tries -ge "$most" ]; then
    echo "supervise: $where; $tries tries without progress; fix: read the last line of the run" >&2
    exit $code
  fi
  echo "supervise: $where; starting again (try $((tries + 1)) of $most)" >&2
  sleep "$pause" & wait $!
  [ -n "$stopped" ] && exit $code
done
